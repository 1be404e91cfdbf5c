"""A Gaussian random walk whose scale and covariance adapt during warm-up.

    z' = z + exp(log_scale) 2.38 / sqrt(d) C^(1/2) normal

Stochastic approximation adapts the scale to a given acceptance probability. C is the
covariance of the positions so far, shrunk towards its initial value. Both change less
and less, and are fixed after warm-up, since a walk that keeps adapting is not a Markov
chain.

References:
    [1] Haario, Saksman and Tamminen 2001, An adaptive Metropolis algorithm.
    [2] Andrieu and Thoms 2008, A tutorial on adaptive MCMC, algorithm 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

PRIOR_MOVES = 10.0
"""Weight of the initial covariance, as a number of moves."""
DECAY = 0.6
"""Move i changes log_scale by i^-DECAY times the excess acceptance probability."""


class RandomWalk(NamedTuple):
    """The proposal.

    Attributes:
        log_scale: log scale of all coordinates.
        mean: mean of the positions so far, [d].
        covariance: C, [d, d].
    """

    log_scale: Float[Array, ""]
    mean: Float[Array, "d"]
    covariance: Float[Array, "d d"]


def start_walk(position: Float[Array, "d"], step_size: float) -> RandomWalk:
    """A walk with this step size in each coordinate, before any move."""
    size = position.shape[0]
    covariance = step_size**2 * jnp.eye(size, dtype=position.dtype)
    return RandomWalk(jnp.zeros((), position.dtype), position, covariance)


def step(
    key: Key[Array, ""], walk: RandomWalk, position: Float[Array, "d"]
) -> Float[Array, "d"]:
    """Propose a position; the proposal is symmetric."""
    size = position.shape[0]
    if size == 0:
        return position
    noise = jax.random.normal(key, position.shape, position.dtype)
    # If the chain has hardly moved, the covariance is singular up to rounding.
    covariance = walk.covariance + 1e-6 * jnp.diag(jnp.diag(walk.covariance))
    root = jnp.linalg.cholesky(covariance)
    return position + jnp.exp(walk.log_scale) * 2.38 / size**0.5 * (root @ noise)


def adapt_walk(
    walk: RandomWalk,
    position: Float[Array, "d"],
    accept_prob: Float[Array, ""],
    iteration: Int[Array, ""],
    target_accept_prob: float,
) -> RandomWalk:
    """Adapt the walk after a move of warm-up.

    Args:
        walk: the walk before.
        position: position of the chain after the move.
        accept_prob: acceptance probability of the move.
        iteration: number of moves before this one.
        target_accept_prob: acceptance probability to which the scale adapts.
    """
    count = iteration.astype(position.dtype) + 1.0
    excess = (accept_prob - target_accept_prob).astype(position.dtype)
    log_scale = walk.log_scale + count**-DECAY * excess
    rate = 1.0 / (count + PRIOR_MOVES)
    deviation = position - walk.mean
    covariance_change = jnp.outer(deviation, deviation) - walk.covariance
    return RandomWalk(
        log_scale,
        walk.mean + rate * deviation,
        walk.covariance + rate * covariance_change,
    )
