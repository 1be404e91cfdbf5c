"""The variance of the evidence estimate, from the genealogy of a single run.

Particles with different first ancestors are nearly independent, so the weight of pairs
of unrelated particles gives the variance of the estimate. With Eve indices E_i (the
index of the first ancestor of particle i), normalised weights W_i and R resamplings,

    V = 1 - (N / (N - 1))^(R + 1) sum over i, j with E_i != E_j of W_i W_j,

and Z_hat^2 V is an unbiased estimate of Var(Z_hat) when every resampling is
multinomial. The theorem does not cover systematic and other low-variance resampling,
for which the estimate is usually too large. The run must have a single island.

References:
    [1] Lee and Whiteley 2018, arXiv 1509.00394, equation 8 and section 4.1 (weighted
        particles; resampling at some steps only).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.weights import normalise


class Genealogy(NamedTuple):
    """The genealogy of a run's particles.

    Attributes:
        eves: index of each particle's ancestor in the first step, [N].
        unique_eves: distinct first ancestors of the particles after each step, [T].
    """

    eves: Int[Array, "N"]
    unique_eves: Int[Array, "T"]


def genealogy(
    ancestors: Int[Array, "T N"], num_steps: Int[Array, ""] | int | None = None
) -> Genealogy:
    """Trace every particle back to the first step.

    Args:
        ancestors: parent of each particle at each step, as infos and results hold them.
        num_steps: number of the T steps that were taken; all of them if None.
    """
    limit, size = ancestors.shape
    step_mask = jnp.arange(limit) < (limit if num_steps is None else num_steps)

    def trace_step(
        eves: Int[Array, "N"], step: tuple[Int[Array, "N"], Bool[Array, ""]]
    ) -> tuple[Int[Array, "N"], Int[Array, ""]]:
        parents, is_step = step
        eves = jnp.where(is_step, eves[parents], eves)
        is_eve = jnp.zeros(size, bool).at[eves].set(True)
        return eves, jnp.sum(is_eve, dtype=jnp.int32)

    start = jnp.arange(size, dtype=jnp.int32)
    return Genealogy(*jax.lax.scan(trace_step, start, (ancestors, step_mask)))


def relative_variance(
    log_weights: Float[Array, "N"],
    ancestors: Int[Array, "T N"],
    resampled: Bool[Array, "T"],
    num_steps: Int[Array, ""] | int | None = None,
) -> Float[Array, ""]:
    """Estimate Var(Z_hat) / Z_hat^2 from one run.

    Args:
        log_weights: of the particles at the end, [N].
        ancestors: parent of each particle at each step, [T, N].
        resampled: whether the step began with a resampling, [T].
        num_steps: number of the T steps that were taken; all of them if None.

    Returns:
        V. It may be negative for a single run; its product with Z_hat^2 is unbiased.
        NaN for N = 1.
    """
    size = log_weights.shape[0]
    step_mask = jnp.arange(ancestors.shape[0]) < (
        ancestors.shape[0] if num_steps is None else num_steps
    )
    eves = genealogy(ancestors, num_steps).eves
    shares = jnp.zeros(size).at[eves].add(jnp.exp(normalise(log_weights)))
    return variance_of_families(shares, jnp.sum(resampled & step_mask))


def variance_of_families(shares: Any, num_resamplings: Any) -> Any:
    """V from the weight of each family, in numpy or in jax.

    Args:
        shares: sum of the normalised weights of each Eve's descendants, [N], zeros
            included.
        num_resamplings: R.
    """
    size = shares.shape[0]
    growth = (size / (size - 1)) ** (num_resamplings + 1) if size > 1 else jnp.nan
    return 1.0 - growth * (1.0 - (shares**2).sum())
