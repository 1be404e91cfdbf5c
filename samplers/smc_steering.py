"""SMC steering: expand every prefix M ways, then choose without replacement.

Ordinary resampling may fill the population with copies of one good prefix. Here optimal
resampling reduces the N particles to N / M distinct ones. Each of them is copied M
times, and every copy takes its own step:

    kept        ~ optimal resampling of N / M,  with weights w'
    offspring k of kept i has weight w'_i / M

A finished prefix cannot be expanded. One of its copies keeps all its weight, and the
others have weight zero. If fewer than N / M particles have weight, they share all N
slots.

The first N steps are drawn independently. With M = 1 all particles are kept, which is
importance sampling without resampling.

References:
    [1] Lew, Zhi-Xuan, Grand and Mansinghka 2023, arXiv 2306.03081 (SMC steering).
        Differs: the number of particles is N after the expansion, not before it.
    [2] Fearnhead and Clifford 2003, see `samplers/parts/optimal_resampling.py`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Key

from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.allocation import effective_width
from tsi.samplers.parts.optimal_resampling import optimal_resampling
from tsi.samplers.parts.potentials import Potential, require_running, telescoping
from tsi.samplers.parts.reproduction import Group, Offspring, Reproduction
from tsi.samplers.parts.schedules import Schedule, every_step
from tsi.samplers.smc import smc
from tsi.step_keys import with_typed_key


@picklable
def expansion(width: int) -> Reproduction:
    """Keep n / width distinct particles of an island, and expand them.

    Args:
        width: M, copies per kept particle; values above n mean n. The rule raises
            `ConfigurationError` if M is less than one or does not divide n.
    """

    @with_typed_key
    def draw(key: Key[Array, ""], group: Group) -> Offspring:
        size = group.log_weights.shape[0]
        copies = effective_width(width, size, "smc_steering")
        max_kept = size // copies
        is_kept, log_weights = optimal_resampling(key, group.log_weights, max_kept)
        (rows,) = jnp.nonzero(is_kept, size=max_kept, fill_value=0)
        num_kept = jnp.maximum(jnp.sum(is_kept), 1)
        places = jnp.arange(size)
        ancestors = rows[(places // copies) % num_kept].astype(jnp.int32)

        weights = log_weights[ancestors]
        first = (places % copies == 0) & (places // copies < num_kept)
        full_weight = jnp.where(first, weights, -jnp.inf)
        copy_counts = jnp.zeros(size).at[ancestors].add(1.0)[ancestors]
        return Offspring(
            ancestors,
            jnp.where(
                group.finished[ancestors], full_weight, weights - jnp.log(copy_counts)
            ),
        )

    return Reproduction(draw, exact=True)


@picklable
def smc_steering(
    width: int = 4,
    *,
    schedule: Schedule = every_step,
    potential: Potential | None = None,
    select: str = "posterior",
    num_islands: int = 1,
) -> Sampler:
    """SMC steering: N / width prefixes, each expanded in `width` ways.

    Args:
        width: M, expansions per prefix; values above N mean N.
        schedule: when to resample and expand.
        potential: product, telescoping or uniform; by default telescoping("odds").
        select: how one answer is chosen.
        num_islands: independent systems of N / num_islands particles.

    Returns:
        A `Sampler` whose `init` raises `ConfigurationError` if the width does not
        divide the particles of an island.

    Raises:
        ConfigurationError: for another potential.
    """
    potential = telescoping("odds") if potential is None else potential
    return smc(
        schedule=schedule,
        potential=require_running(potential, "smc_steering"),
        select=select,
        num_islands=num_islands,
        reproduction=expansion(width),
    )
