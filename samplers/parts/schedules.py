"""When to resample: `(log_weights [N], t) -> bool`, for each island separately.

For every schedule, nothing is resampled before the first step, when all particles are
equal, nor in an island whose weights are all zero.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.errors import ConfigurationError
from tsi.ess import ess

Schedule = Callable[[Array, Array], Array]


def every_step(log_weights: Float[Array, "N"], t: Int[Array, ""]) -> Bool[Array, ""]:
    """Resample before every step."""
    return jnp.ones((), bool)


def never(log_weights: Float[Array, "N"], t: Int[Array, ""]) -> Bool[Array, ""]:
    """Never resample: N independent runs of the policy."""
    return jnp.zeros((), bool)


def ess_below(fraction: float) -> Schedule:
    """Resample when the effective sample size falls below `fraction` times N.

    Raises:
        ConfigurationError: if the fraction is not in [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise ConfigurationError(
            f"ess_below needs a fraction of the particles in [0, 1]; got {fraction}."
        )
    # A nested function could not be pickled.
    return functools.partial(_ess_below, fraction)


def _ess_below(
    fraction: float, log_weights: Float[Array, "N"], t: Int[Array, ""]
) -> Bool[Array, ""]:
    return ess(log_weights) < fraction * log_weights.shape[-1]
