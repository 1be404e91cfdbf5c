"""A Gaussian random walk whose scale and covariance adapt while it warms up.

    z' = z + exp(log_scale) 2.38 / sqrt(d) C^(1/2) normal

Acceptance steers the scale by stochastic approximation, and C is the covariance of the
positions so far, shrunk towards where it began. Both move less and less, and are fixed
once warm-up is over: a walk that went on adapting would be no Markov chain.

References:
    [1] Haario, Saksman and Tamminen 2001, An adaptive Metropolis algorithm.
    [2] Andrieu and Thoms 2008, A tutorial on adaptive MCMC, algorithm 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

PRIOR_MOVES = 10.0
"""So many moves count for the covariance that the walk began with."""
DECAY = 0.6
"""Move i changes the scale by i^-DECAY times what acceptance lacks."""


class RandomWalk(NamedTuple):
    """The proposal.

    Attributes:
        log_scale: of all coordinates.
        mean: of the positions so far, [d].
        covariance: C, [d, d].
    """

    log_scale: Float[Array, ""]
    mean: Float[Array, "d"]
    covariance: Float[Array, "d d"]


def begin(position: Float[Array, "d"], step_size: float) -> RandomWalk:
    """A walk of so large steps in each coordinate, from a position."""
    size = position.shape[0]
    covariance = step_size**2 * jnp.eye(size, dtype=position.dtype)
    return RandomWalk(jnp.zeros((), position.dtype), position, covariance)


def step(
    key: Key[Array, ""], walk: RandomWalk, position: Float[Array, "d"]
) -> Float[Array, "d"]:
    """A proposed position; the walk back is as likely."""
    size = position.shape[0]
    if size == 0:
        return position
    noise = jax.random.normal(key, position.shape, position.dtype)
    # A chain that hardly moved leaves a matrix that is singular to rounding.
    covariance = walk.covariance + 1e-6 * jnp.diag(jnp.diag(walk.covariance))
    root = jnp.linalg.cholesky(covariance)
    return position + jnp.exp(walk.log_scale) * 2.38 / size**0.5 * (root @ noise)


def adapted(
    walk: RandomWalk,
    position: Float[Array, "d"],
    accept_prob: Float[Array, ""],
    iteration: Int[Array, ""],
    target_accept_prob: float,
) -> RandomWalk:
    """The walk after one more move of warm-up.

    Args:
        walk: as it was.
        position: of the chain after the move.
        accept_prob: of the move.
        iteration: moves before this one.
        target_accept_prob: where the scale should settle.
    """
    count = iteration.astype(position.dtype) + 1.0
    lack = (accept_prob - target_accept_prob).astype(position.dtype)
    log_scale = walk.log_scale + count**-DECAY * lack
    share = 1.0 / (count + PRIOR_MOVES)
    away = position - walk.mean
    spread = jnp.outer(away, away) - walk.covariance
    return RandomWalk(
        log_scale, walk.mean + share * away, walk.covariance + share * spread
    )
