"""What arXiv 2502.01618 printed and what its code ran, beside what has a target.

Both draw the ancestors of every step in proportion to a weight of the *last* reward
alone, and a finished particle, whose last reward stays, is drawn again in every later
step by that weight. So a solution of t steps counts its last reward once for each step
that others still take: how much depends on the others, and no density p(x) f(x) is
targeted. Default everywhere is "corrected", in which each score counts once.

    corrected   a finished particle keeps its weight, and its score counts once
    released    weights r / (1 - r), r clipped to [eps, 1 - eps], eps that of float64
    printed     weights exp(r), the softmax of Algorithm 1

An impossible prefix, of log potential -inf, stays impossible in all of them; the code
knows no such thing, and would give a reward of zero the weight eps.

References:
    [1] Puri et al. 2025, arXiv 2502.01618, Algorithms 1 to 3, and its code: `pg.py`
        with `--resample-inactive`, as in the recipe that made the published numbers.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.samplers.parts.potentials import (
    Potential,
    Transform,
    latest,
    product,
)

VARIANTS = ("corrected", "released", "printed")

WEIGHTS = {"corrected": "odds", "released": "odds", "printed": "softmax"}
"""What each variant weighs by."""

EPSILON = float(np.finfo(np.float64).eps)


def clipped_odds(epsilon: float) -> Transform:
    """The odds of a reward clipped to [epsilon, 1 - epsilon].

    Args:
        epsilon: in (0, 1/2).
    """
    bound = math.log1p(-epsilon) - math.log(epsilon)

    def transform(log_potentials: Float[Array, "..."]) -> Float[Array, "..."]:
        clipped = jnp.clip(log_potentials, -bound, bound)
        return jnp.where(log_potentials == -jnp.inf, -jnp.inf, clipped)

    return transform


def potential_of(
    variant: str, weights: str | Transform | None, method: str
) -> Potential:
    """The potential of a variant: a product, or the rank that was published.

    Args:
        variant: "corrected", "released" or "printed".
        weights: of the corrected one, by default "odds"; the others have their own.
        method: named in errors.

    Raises:
        UnknownNameError: for an unknown variant or name of weights.
        ConfigurationError: for weights that were neither run nor printed.
    """
    if variant not in VARIANTS:
        raise UnknownNameError(f"{method} variant", variant, VARIANTS)
    if variant == "corrected":
        return product("odds" if weights is None else weights)
    own = WEIGHTS[variant]
    if weights not in (None, own):
        raise ConfigurationError(
            f"{method}(variant={variant!r}) weighs by {own}, as was {variant}; weights "
            f"of {weights!r} would be neither what was run nor what was printed. Leave "
            'weights out, or use variant="corrected".'
        )
    return latest(clipped_odds(EPSILON) if variant == "released" else "softmax")
