r"""Temperatures of parallel chains, swaps between neighbours, and their adaptation.

Chain k has the target pi_k(x) \propto p(x) exp(s(x) / T_k). Neighbours exchange their
states with probability

    min(1, pi_k(x') pi_{k+1}(x) / (pi_k(x) pi_{k+1}(x')))
        = min(1, exp((1/T_k - 1/T_{k+1}) (s(x') - s(x)))),

in pairs that alternate between even and odd k.

References:
    [1] Syed et al. 2022, arXiv 1905.02939 (alternating pairs are more efficient).
    [2] Miasojedow, Moulines and Vihola 2013, arXiv 1205.1076 (adaptation of the
        logarithms of the spacings). Differs: the hottest temperature is fixed, and
        rates are made equal to each other, not to a given rate.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.log_uniform import log_uniform
from tsi.samplers.parts.potentials import Potential


class Swap(NamedTuple):
    """The outcome of one round of swaps.

    Attributes:
        origins: which chain each chain's state comes from, [C].
        rates: the swap probability of each pair, whether or not it is due, [C - 1].
    """

    origins: Int[Array, "C"]
    rates: Float[Array, "C-1"]


def geometric_temperatures(
    num_temperatures: int, max_temperature: float
) -> tuple[float, ...]:
    """Temperatures from 1 to the hottest with equal ratios.

    Raises:
        ConfigurationError: if there are fewer than two, or the hottest is not above 1.
    """
    if num_temperatures < 2 or not max_temperature > 1.0:
        raise ConfigurationError(
            "A ladder needs at least two temperatures, the hottest above 1; got "
            f"num_temperatures={num_temperatures}, max_temperature={max_temperature}."
        )
    powers = np.linspace(0.0, 1.0, num_temperatures)
    return tuple(float(t) for t in max_temperature**powers)


def check_ladder(temperatures: Sequence[float]) -> tuple[float, ...]:
    """Check that the temperatures rise from 1, and return them.

    Raises:
        ConfigurationError: if they do not.
    """
    ladder = np.asarray(temperatures, float)
    rises = ladder.ndim == 1 and len(ladder) > 1 and bool(np.all(np.diff(ladder) > 0))
    if not rises or ladder[0] != 1.0 or not np.isfinite(ladder).all():
        raise ConfigurationError(
            "Temperatures must be at least two finite numbers that rise from 1, the "
            f"temperature of the cold chain; got {tuple(temperatures)}."
        )
    return tuple(float(t) for t in ladder)


def temper(potential: Potential, beta: Float[Array, ""] | float) -> Potential:
    """Raise the path weight of a potential, or its rank, to the power beta > 0."""
    score = potential.path_log_weight

    def path_log_weight(log_potentials: Array, step_mask: Array) -> Array:
        assert score is not None  # for the type checker
        return beta * score(log_potentials, step_mask)

    return potential._replace(
        power=beta * potential.power,
        path_log_weight=None if score is None else path_log_weight,
    )


def swap(
    key: Key[Array, ""],
    scores: Float[Array, "C"],
    log_temperatures: Float[Array, "C"],
    turn: Int[Array, ""],
) -> Swap:
    """Exchange the states of neighbours.

    Args:
        key: a typed key.
        scores: s of each chain's state.
        log_temperatures: rising.
        turn: pairs whose first chain is even are due in even turns, others in odd
            turns.
    """
    beta = jnp.exp(-log_temperatures)
    log_ratio = (beta[:-1] - beta[1:]) * (scores[1:] - scores[:-1])
    # Two states of density zero are not swapped.
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    rates = jnp.exp(jnp.minimum(log_ratio, 0.0))
    pairs = jnp.arange(rates.shape[0])
    is_due = pairs % 2 == turn % 2
    swaps = is_due & (log_uniform(key, rates.shape) < log_ratio)
    steps = swaps.astype(jnp.int32)
    chains = jnp.arange(scores.shape[0], dtype=jnp.int32)
    origins = chains + jnp.pad(steps, (0, 1)) - jnp.pad(steps, (1, 0))
    return Swap(origins, rates)


def adapt_ladder(
    log_temperatures: Float[Array, "C"],
    rates: Float[Array, "C-1"],
    turn: Int[Array, ""],
) -> Float[Array, "C"]:
    """Widen the gaps where swaps are more likely than on average.

    One step of stochastic approximation on the logarithms of the gaps, with step size
    (turn + 1)^-0.6; both ends are fixed.
    """
    gaps = jnp.diff(log_temperatures)
    step = (turn + 1.0) ** -0.6
    new_gaps = gaps * jnp.exp(step * (rates - jnp.mean(rates)))
    new_gaps = new_gaps * (log_temperatures[-1] / jnp.sum(new_gaps))
    return jnp.concatenate([jnp.zeros(1), jnp.cumsum(new_gaps)])
