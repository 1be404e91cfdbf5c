"""The variants of arXiv 2502.01618: as printed, as released, and with a target.

"printed" and "released" draw the ancestors of every step in proportion to a weight of
the *last* reward only. The last reward of a finished particle does not change and is
used again at every later step. So the last reward of a finished solution counts once
for each step that other particles still take. The number of such steps depends on the
other particles, and there is no target density p(x) f(x). The default everywhere is
"corrected", in which each score counts once.

    corrected   a finished particle keeps its weight, and its score counts once
    released    weights r / (1 - r), r clipped to [eps, 1 - eps], eps of float64
    printed     weights exp(r), the softmax of Algorithm 1

An impossible prefix, of log potential -inf, stays impossible in all variants. The
released code has no impossible prefixes, and gives a reward of zero the weight eps.

References:
    [1] Puri et al. 2025, arXiv 2502.01618, Algorithms 1 to 3, and its code: `pg.py`
        with `--resample-inactive`, as in the recipe of the published numbers.
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
"""The transform that each variant uses by default."""

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


def choose_potential(
    variant: str, weights: str | Transform | None, method: str
) -> Potential:
    """The potential of a variant: a product, or the published rank.

    Args:
        variant: "corrected", "released" or "printed".
        weights: transform for "corrected", by default "odds"; the other variants have
            fixed transforms.
        method: name of the method, for errors.

    Raises:
        UnknownNameError: for an unknown variant or unknown weights.
        ConfigurationError: for weights that the published variant does not use.
    """
    if variant not in VARIANTS:
        raise UnknownNameError(f"{method} variant", variant, VARIANTS)
    if variant == "corrected":
        return product("odds" if weights is None else weights)
    fixed = WEIGHTS[variant]
    if weights not in (None, fixed):
        raise ConfigurationError(
            f"{method}(variant={variant!r}) has the weights {fixed!r}, as {variant} in "
            f"the paper or its code; got weights={weights!r}. Leave "
            'weights out, or use variant="corrected".'
        )
    return latest(clipped_odds(EPSILON) if variant == "released" else "softmax")
