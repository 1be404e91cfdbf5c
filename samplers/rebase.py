"""REBASE: reward-balanced search.

At every step the W unfinished slots are allocated to the unfinished prefixes in
proportion to w = softmax(r / 0.2). The counts are rounded up, and allocated in order of
the weights until W is used up. A finished prefix keeps its slot, so W decreases. The
answer is a vote weighted by rewards.

Variants: "printed", the default: prefix i gets ceil(W w_i) children. "released": prefix
i gets ceil(W' w_i / sum of the weights not yet served), where W' is the number of slots
that are left, so fewer prefixes get no child. With W = 4 and weights .4, .3, .3 the
counts are 2, 2, 0 and 2, 1, 1.

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
"""The allocation of each variant."""


@picklable
def rebase(
    temperature: float = 0.2,
    *,
    variant: str = "printed",
    select: str = "weighted_vote",
    num_islands: int = 1,
) -> Sampler:
    """REBASE: reward-balanced search.

    Args:
        temperature: T in softmax(r / T); the published value is 0.2.
        variant: "printed" or "released".
        select: how one answer is chosen.
        num_islands: independent searches of N / num_islands particles.

    Raises:
        ConfigurationError: if the temperature is not positive.
        UnknownNameError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise UnknownNameError("rebase variant", variant, VARIANTS)
    allocate = VARIANTS[variant]
    if not temperature > 0.0:
        raise ConfigurationError(
            "REBASE divides rewards by its temperature, which must be positive; got "
            f"{temperature}. The published value is 0.2."
        )

    def scale_rewards(log_potentials: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.sigmoid(log_potentials) / temperature

    def choose(key: Key[Array, ""], group: Group) -> Int[Array, "n"]:
        log_weights, finished = group.log_weights, group.finished
        slots = jnp.arange(log_weights.shape[0], dtype=jnp.int32)
        unfinished_weights = jnp.where(finished, -jnp.inf, log_weights)
        counts = allocate(unfinished_weights, jnp.sum(~finished))
        # The k-th unfinished slot gets the k-th child. If no unfinished prefix has
        # weight, there are no children and every prefix keeps its slot.
        rank = jnp.cumsum(~finished) - 1
        children = jnp.searchsorted(jnp.cumsum(counts), rank, side="right")
        keeps_slot = finished | (jnp.sum(counts) == 0)
        return jnp.where(keeps_slot, slots, children).astype(jnp.int32)

    return smc(
        schedule=every_step,
        potential=latest(scale_rewards),
        select=select,
        num_islands=num_islands,
        reproduction=at_mean_weight(choose),
    )
