r"""Particle Gibbs at several temperatures, whose chains exchange references.

Chain k of C runs conditional SMC for p(x) exp(s(x) / T_k), with T_1 = 1. After each
sweep neighbouring chains may swap their references
(`samplers.parts.temperature_ladder`). The product of the targets is invariant under the
joint kernel, and the chains start properly weighted by the product of the evidence
estimates of their first sweeps. So the particles of the cold chain, weighted as in
particle Gibbs, satisfy for every number J of sweeps

    E[ prod_k Z0_k (1/J) sum_j sum_i W_j^i phi(x_j^i) ] = prod_k Z_k  E_{pi_1}[phi],

where log_evidence is the sum of the log evidence estimates of all chains; `auxiliary`
holds the path weights of the hotter chains.

Variants: "corrected", the default, is the method above. "printed" is the algorithm as
printed in [1]: its sweeps (`samplers.particle_gibbs`) with weights exp(r / T_k), and
the last sweep of the cold chain as the result. It has no target. Its swaps use r_T in
place of s. The released code of [1] has no tempering; its experiments ran parallel
chains without swaps, which is particle_filter(variant="released", num_islands=C).

References:
    [1] Puri et al. 2025, arXiv 2502.01618, Algorithm 3.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request
from tsi.picklable import picklable
from tsi.samplers import conditional_smc as csmc
from tsi.samplers.parts.path_record import (
    ChainSample,
    PathRecord,
    empty_paths,
    log_density,
    summarise,
)
from tsi.samplers.parts.potentials import Potential, telescoping
from tsi.samplers.parts.published import choose_potential
from tsi.samplers.parts.sweep_budget import SWEEP_SIZE, path_score, shared_budget
from tsi.samplers.parts.temperature_ladder import (
    adapt_ladder,
    check_ladder,
    geometric_temperatures,
    swap,
    temper,
)
from tsi.samplers.smc import SMCInfo
from tsi.step_keys import with_typed_key
from tsi.weights import weight_dtype

BEYOND = jnp.iinfo(jnp.int32).max
"""As a depth: no cut. As a slot: not stored."""

VARIANTS = ("corrected", "printed")


class TemperingState(NamedTuple):
    """Chains at C temperatures, the cold one first.

    Attributes:
        done: whether the budget is spent.
        members: stored particles of the cold chain, [K].
        log_weights, log_potentials, finished: of the members, [K].
        log_evidence: the sum of the first estimates of all chains.
        iteration: number of completed sweeps.
        sweeps: number of sweeps of the budget.
        sample: summary of the cold chain's reference.
        sweep: the particles of each chain, [C, n].
        reference: path of each chain's reference.
        place: slot of each chain's reference, [C].
        log_temperatures: [C].
        swap_rates: mean swap probability of neighbours since the ladder was fixed; the
            latest probability while the ladder adapts, [C - 1].
        parents, slots: as last requested, [W].
    """

    done: Bool[Array, ""]
    members: Int[Array, "K"]
    log_weights: Float[Array, "K"]
    log_potentials: Float[Array, "K"]
    finished: Bool[Array, "K"]
    log_evidence: Float[Array, ""]
    iteration: Int[Array, ""]
    sweeps: Int[Array, ""]
    sample: ChainSample
    sweep: csmc.Sweep
    reference: PathRecord
    place: Int[Array, "C"]
    log_temperatures: Float[Array, "C"]
    swap_rates: Float[Array, "C-1"]
    parents: Int[Array, "W"]
    slots: Int[Array, "W"]


@picklable
def parallel_tempering(
    weights: str | None = None,
    *,
    potential: Potential | None = None,
    variant: str = "corrected",
    num_temperatures: int = 3,
    max_temperature: float = 4.0,
    temperatures: Sequence[float] | None = None,
    num_sweeps: int | None = None,
    particles_per_sweep: int | None = None,
    adapt_sweeps: int = 0,
    endless: bool = False,
    select: str | None = None,
) -> Explorer:
    """Parallel tempering of particle Gibbs.

    N rollouts are J sweeps of C chains with n = N / (C J) particles each. The result
    consists of the particles of the cold chain.

    Args:
        weights: transform of the product potential, if no potential is given; by
            default "odds", and exp(r) for the variant "printed".
        potential: product, telescoping or uniform.
        variant: "corrected" or "printed".
        num_temperatures: C.
        max_temperature: the highest temperature; the ladder from 1 to it is geometric.
        temperatures: the ladder itself, rising from 1, instead of the two above.
        num_sweeps: J, by default 4; at least 2, since one sweep has no move.
        particles_per_sweep: n, instead of J.
        adapt_sweeps: number of first sweeps in which the ladder is adapted until all
            neighbours swap equally often. They are burn-in, and their particles are
            not part of the result. The explorer then states no target, because a
            ladder that depends on the past is exact only in the limit.
        endless: never done; each sweep has N / C particles per chain, which overwrite
            those of the sweep before, and between two sweeps the members are the
            particles of the cold chain.
        select: how one answer is chosen; by default "posterior"; for "printed" "argmax"
            of the last reward.

    Raises:
        ConfigurationError: for a potential without weights of prefixes, a ladder that
            does not rise from 1, both num_sweeps and particles_per_sweep, or the
            variant "printed" with a potential or adapt_sweeps.
        UnknownNameError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise UnknownNameError("parallel_tempering variant", variant, VARIANTS)
    printed = variant == "printed"
    if printed and (potential is not None or adapt_sweeps):
        raise ConfigurationError(
            'parallel_tempering(variant="printed") has fixed weights and a fixed '
            "ladder. Leave out potential and adapt_sweeps."
        )
    potential = potential or choose_potential(variant, weights, "parallel_tempering")
    # "printed" draws and swaps by this score, which does not define a target.
    score_potential = telescoping(potential.transform) if printed else potential
    score = path_score(score_potential, "parallel_tempering")
    if select is None:
        select = "argmax" if printed else "posterior"
    overwrites = endless or printed
    if temperatures is None:
        temperatures = geometric_temperatures(num_temperatures, max_temperature)
    ladder = check_ladder(temperatures)
    num_chains = len(ladder)
    if num_sweeps is not None and particles_per_sweep is not None:
        raise ConfigurationError(
            "parallel_tempering takes num_sweeps or particles_per_sweep, not both: N "
            "is their product times the number of temperatures."
        )

    def budget(num_particles: int) -> tuple[int, int]:
        each, rest = divmod(num_particles, num_chains)
        if rest:
            raise ConfigurationError(
                f"{num_particles} rollouts cannot be divided among {num_chains} "
                f"temperatures. Use a multiple of {num_chains}."
            )
        if endless:
            return shared_budget(each, 1, None, min_sweeps=1)
        sweeps, size = shared_budget(each, num_sweeps, particles_per_sweep)
        if not 0 <= adapt_sweeps < sweeps:
            raise ConfigurationError(
                f"adapt_sweeps must be at least 0 and less than the {sweeps} sweeps of "
                "the run, since the result needs a sweep after it; got "
                f"{adapt_sweeps}. Use fewer adapt_sweeps or more rollouts."
            )
        return sweeps, size

    def count_members(num_particles: int) -> int:
        sweeps, size = budget(num_particles)
        return size if overwrites else (sweeps - adapt_sweeps) * size

    def plan(num_particles: int, max_steps: int) -> Plan:
        sweeps, size = budget(num_particles)
        store = count_members(num_particles) + (num_chains - 1) * size
        return Plan(num_chains * size, store, sweeps * max_steps)

    def start_sweeps(size: int, max_steps: int) -> csmc.Sweep:
        sweep = csmc.start_sweep(size, max_steps)
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_chains, *leaf.shape)), sweep
        )

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> TemperingState:
        sweeps, size = budget(num_particles)
        members = count_members(num_particles)
        rows = jnp.arange(num_chains * size, dtype=jnp.int32)
        return TemperingState(
            done=jnp.zeros((), bool),
            members=jnp.arange(members, dtype=jnp.int32),
            log_weights=jnp.zeros(members),
            log_potentials=jnp.zeros(members),
            finished=jnp.zeros(members, bool),
            log_evidence=jnp.zeros(()),
            iteration=jnp.zeros((), jnp.int32),
            sweeps=jnp.asarray(sweeps, jnp.int32),
            sample=summarise(empty_paths((), max_steps), score),
            sweep=start_sweeps(size, max_steps),
            reference=empty_paths((num_chains,), max_steps),
            place=jnp.zeros(num_chains, jnp.int32),
            log_temperatures=jnp.asarray(np.log(ladder), weight_dtype()),
            swap_rates=jnp.zeros(num_chains - 1),
            parents=rows,
            slots=rows,
        )

    def sweep_slots(state: TemperingState) -> Int[Array, "C n"]:
        """Slots of this sweep's particles; only those of the cold chain are kept."""
        size = state.parents.shape[0] // num_chains
        # The first sweep after burn-in overwrites it.
        after = jnp.maximum(state.iteration - adapt_sweeps, 0)
        cold_start = jnp.where(overwrites, 0, after * size)
        hot_starts = state.members.shape[0] + size * jnp.arange(num_chains - 1)
        starts = jnp.concatenate([cold_start[None], hot_starts]).astype(jnp.int32)
        return starts[:, None] + jnp.arange(size, dtype=jnp.int32)

    @with_typed_key
    def ask(
        key: Key[Array, ""], state: TemperingState
    ) -> tuple[TemperingState, Request]:
        conditional, t = state.iteration > 0, state.sweep.smc.t[0]

        def fork(key: Array, sweep: csmc.Sweep, beta: Array) -> csmc.Sweep:
            # A chain that waits for the others is not resampled.
            unfinished = ~csmc.is_complete(sweep, conditional, published=printed)
            return csmc.fork(
                key,
                sweep,
                temper(potential, beta),
                conditional,
                schedule=lambda log_weights, t: unfinished,
            )

        keys = jax.random.split(key, num_chains)
        sweep = jax.vmap(fork)(keys, state.sweep, jnp.exp(-state.log_temperatures))
        slots = sweep_slots(state)
        first = (jnp.arange(slots.shape[1]) == 0) & conditional
        # A swapped reference may be in a slot of another chain: copy all in one turn.
        reference_slots = jnp.where(t == 0, state.place, slots[:, 0])[:, None]
        parents = jnp.take_along_axis(slots, sweep.smc.ancestors, axis=1)
        request = Request(
            parents=jnp.where(first, reference_slots, parents).reshape(-1),
            slots=jnp.where(first & (t > 0), BEYOND, slots).reshape(-1),
            extend=(~first & ~sweep.smc.finished).reshape(-1),
            depths=jnp.broadcast_to(jnp.where(first, BEYOND, t), slots.shape).reshape(
                -1
            ),
        )
        state = state._replace(
            sweep=sweep, parents=request.parents, slots=request.slots
        )
        return state, request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: TemperingState, reply: Reply
    ) -> tuple[TemperingState, ExplorerInfo]:
        conditional = state.iteration > 0

        def weigh(
            sweep: csmc.Sweep,
            reply: Reply,
            beta: Float[Array, ""],
            reference: PathRecord,
        ) -> tuple[csmc.Sweep, SMCInfo]:
            return csmc.weigh(
                sweep, reply, temper(potential, beta), conditional, reference
            )

        replies = jax.tree.map(lambda leaf: leaf.reshape(num_chains, -1), reply)
        sweep, info = jax.vmap(weigh)(
            state.sweep, replies, jnp.exp(-state.log_temperatures), state.reference
        )
        new_state = _finish_sweep(key, state._replace(sweep=sweep))
        return new_state, ExplorerInfo(
            state.parents,
            state.slots,
            info.ess[0],
            jnp.sum(info.num_recoveries, dtype=jnp.int32),
            jnp.sum(info.num_invalid, dtype=jnp.int32),
        )

    def complete_reference(
        sweep: csmc.Sweep,
        beta: Float[Array, ""],
        conditional: Bool[Array, ""],
        reference: PathRecord,
    ) -> csmc.Sweep:
        return csmc.complete_reference(
            sweep, temper(potential, beta), conditional, reference
        )

    def _finish_sweep(key: Key[Array, ""], state: TemperingState) -> TemperingState:
        """If all chains are complete: keep the cold particles, draw and swap."""
        key_draw, key_swap = jax.random.split(key)
        slots, conditional, sweep = sweep_slots(state), state.iteration > 0, state.sweep
        size = slots.shape[1]

        def is_complete(sweep: csmc.Sweep) -> Bool[Array, ""]:
            return csmc.is_complete(sweep, conditional, published=printed)

        complete = jnp.all(jax.vmap(is_complete)(sweep))
        if printed:
            sweep = jax.vmap(complete_reference)(
                sweep,
                jnp.exp(-state.log_temperatures),
                jnp.broadcast_to(conditional, num_chains),
                state.reference,
            )
        smc = sweep.smc
        keys = jax.random.split(key_draw, num_chains)
        indices = jax.vmap(csmc.draw)(keys, smc.log_weights)
        chains = jnp.arange(num_chains)
        proposals = jax.tree.map(lambda leaf: leaf[chains, indices], sweep.records)
        origins, rates = swap(
            key_swap,
            log_density(proposals, score),
            state.log_temperatures,
            state.iteration,
        )
        reference = jax.tree.map(lambda leaf: leaf[origins], proposals)
        fixed_sweeps = state.iteration + 1 - adapt_sweeps
        mean = state.swap_rates + (rates - state.swap_rates) / jnp.maximum(
            fixed_sweeps, 1
        )
        log_temperatures = state.log_temperatures
        if adapt_sweeps > 0:
            adapted = adapt_ladder(log_temperatures, rates, state.iteration)
            log_temperatures = jnp.where(fixed_sweeps <= 0, adapted, log_temperatures)

        def store(old: Array, new: Array) -> Array:
            return old.at[slots[0]].set(new[0])

        next_sweep = state._replace(
            done=jnp.asarray(not endless) & (state.iteration + 1 >= state.sweeps),
            log_weights=store(state.log_weights, smc.log_weights),
            log_potentials=store(state.log_potentials, smc.log_potentials),
            finished=store(state.finished, smc.finished),
            log_evidence=jnp.where(
                state.iteration == 0, jnp.sum(smc.log_evidence), state.log_evidence
            ),
            iteration=state.iteration + 1,
            sample=summarise(jax.tree.map(lambda leaf: leaf[0], reference), score),
            sweep=start_sweeps(size, reference.log_potentials.shape[-1]),
            reference=reference,
            place=slots[chains, indices][origins],
            log_temperatures=log_temperatures,
            swap_rates=mean,
        )
        return jax.tree.map(lambda a, b: jnp.where(complete, a, b), next_sweep, state)

    def temper_score(temperature: float) -> Callable[..., Array]:
        path_log_weight = temper(score_potential, 1.0 / temperature).path_log_weight
        assert path_log_weight is not None
        return path_log_weight

    return Explorer(
        plan,
        init,
        ask,
        tell,
        None if adapt_sweeps or printed else score,
        select,
        needs=("truncate",),
        auxiliary=tuple(temper_score(temperature) for temperature in ladder[1:]),
        auxiliary_temperatures=() if adapt_sweeps else tuple(map(float, ladder[1:])),
        endless=endless,
        chain=True,
        default_particles=SWEEP_SIZE * num_chains,
    )
