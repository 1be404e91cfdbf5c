"""REBASE: reward-balanced search.

At every step the W unfinished slots are shared among the unfinished prefixes in
proportion to softmax(r / 0.2), rounded up and handed out best first while W lasts. A
finished prefix keeps its slot, so W shrinks. The answer is a vote weighted by rewards.

"printed", the default: prefix i gets ceil(W w_i) children while W lasts. "released":
best first, each gets ceil of its share of what is left among those that are left, so
that fewer go without. With W = 4 and weights .4, .3, .3 these are 2, 2, 0 and 2, 1, 1.

References:
    [1] Wu et al. 2024, arXiv 2408.00724, Section 3.2, and its code,
        thu-wyz/inference_scaling, rebase.py: at most 25 steps of 256 tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.allocation import rebase_counts, rebase_counts_in_turn
from tsi.samplers.parts.potentials import latest
from tsi.samplers.parts.reproduction import Group, at_mean_weight
from tsi.samplers.parts.schedules import every_step
from tsi.samplers.smc import smc

VARIANTS = {"printed": rebase_counts, "released": rebase_counts_in_turn}
"""How children are counted."""


@picklable
def rebase(
    temperature: float = 0.2,
    *,
    variant: str = "printed",
    select: str = "weighted_vote",
    num_islands: int = 1,
) -> Sampler:
    """REBASE with balance temperature 0.2.

    Args:
        temperature: T in softmax(r / T), the published 0.2.
        variant: "printed" or "released".
        select: how one answer is chosen.
        num_islands: independent searches of N / num_islands particles.

    Raises:
        ConfigurationError: if the temperature is not positive.
        UnknownNameError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise UnknownNameError("rebase variant", variant, VARIANTS)
    share_out = VARIANTS[variant]
    if not temperature > 0.0:
        raise ConfigurationError(
            f"REBASE divides rewards by its temperature, and {temperature} is not "
            "positive. Use the published 0.2 or another positive number."
        )

    def score(log_potentials: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.sigmoid(log_potentials) / temperature

    def choose(key: Key[Array, ""], group: Group) -> Int[Array, "n"]:
        log_weights, finished = group.log_weights, group.finished
        slots = jnp.arange(log_weights.shape[0], dtype=jnp.int32)
        open_weights = jnp.where(finished, -jnp.inf, log_weights)
        counts = share_out(open_weights, jnp.sum(~finished))
        # The k-th open slot gets the k-th child; if no open prefix has weight there
        # are no children and everything keeps its place.
        rank = jnp.cumsum(~finished) - 1
        children = jnp.searchsorted(jnp.cumsum(counts), rank, side="right")
        keep = finished | (jnp.sum(counts) == 0)
        return jnp.where(keep, slots, children).astype(jnp.int32)

    return smc(
        schedule=every_step,
        potential=latest(score),
        select=select,
        num_islands=num_islands,
        reproduction=at_mean_weight(choose),
    )
