r"""Particle Gibbs at several temperatures, whose chains exchange references.

Chain k of C runs conditional SMC for p(x) exp(s(x) / T_k), with T_1 = 1: after each
sweep neighbours may swap their references (`samplers.temperature_ladder`). Together the
chains have the product of their targets as invariant measure, and start properly
weighted by the product of the evidence estimates of their first sweeps. So the cold
chain's particles, weighted as in particle Gibbs, keep for every number J of sweeps

    E[ prod_k Z0_k (1/J) sum_j sum_i W_j^i phi(x_j^i) ] = prod_k Z_k  E_{pi_1}[phi],

and log_evidence is the sum of all chains' evidences: `auxiliary` has the path weights
of the others.

"corrected", the default, is all of the above. "printed" is what [1] prints: its own
sweeps (`samplers.particle_gibbs`) with weights exp(r / T_k), and the last one of the
cold chain as the result; it targets nothing. The probability of a swap is the same in
both, with r_T in place of s in the latter. The released code of [1] has no tempering;
its experiments ran chains beside each other without swaps, which is
particle_filter(variant="released", num_islands=C).

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
    log_density,
    no_paths,
    summary,
)
from tsi.samplers.parts.potentials import Potential, telescoping
from tsi.samplers.parts.published import potential_of
from tsi.samplers.parts.sweep_budget import SWEEP, path_score, shared_budget
from tsi.samplers.parts.temperature_ladder import (
    adapt_ladder,
    check_ladder,
    geometric,
    swap,
    temper,
)
from tsi.samplers.smc import SMCInfo
from tsi.step_keys import with_typed_key
from tsi.weights import weight_dtype

WHOLE = jnp.iinfo(jnp.int32).max
"""A depth that cuts nothing, and a slot that is nowhere."""

VARIANTS = ("corrected", "printed")


class TemperingState(NamedTuple):
    """Chains at C temperatures, the cold one first.

    Attributes:
        done: whether the budget is spent.
        members: stored particles of the cold chain, [K].
        log_weights, log_potentials, finished: of the members, [K].
        log_evidence: the sum of the chains' first estimates.
        iteration: sweeps completed.
        sweeps: that the budget has.
        sample: numbers of the cold chain's reference.
        sweep: the particles of each chain, [C, n].
        reference: numbers of each chain's reference.
        place: where it is stored, [C].
        log_temperatures: [C].
        swap_rates: mean probability of swaps between neighbours since the ladder was
            fixed; while it adapts, the latest, [C - 1].
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
    hottest: float = 4.0,
    temperatures: Sequence[float] | None = None,
    num_sweeps: int | None = None,
    particles_per_sweep: int | None = None,
    adapt_sweeps: int = 0,
    endless: bool = False,
    select: str | None = None,
) -> Explorer:
    """Parallel tempering of particle Gibbs.

    N rollouts are J sweeps of C chains with n = N / (C J) particles each. The result
    are the cold chain's particles.

    Args:
        weights: transform of the product potential, if no potential is given; odds but
            for the variant "printed", which has exp(r).
        potential: product, telescoping or uniform.
        variant: "corrected" or "printed".
        num_temperatures: C.
        hottest: temperature; those between are geometric.
        temperatures: in place of both, rising from 1.
        num_sweeps: J, by default 4; at least 2, for references of one move nothing.
        particles_per_sweep: n, in place of J.
        adapt_sweeps: during so many first sweeps the ladder is adapted until neighbours
            swap equally often. They are burn-in: their particles are no part of the
            result, nor does it claim a target, for a ladder that depends on the past
            is exact only in the limit.
        endless: never done; a sweep has N / C particles in each chain, which overwrite
            the last, and between two sweeps the members are the cold ones.
        select: how one answer is chosen; by default "posterior", and "argmax" of the
            last reward if printed.

    Raises:
        ConfigurationError: for a potential without weights of prefixes, a ladder that
            does not rise from 1, both num_sweeps and particles_per_sweep, or a
            potential or adapt_sweeps that were not printed.
        UnknownNameError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise UnknownNameError("parallel_tempering variant", variant, VARIANTS)
    printed = variant == "printed"
    if printed and (potential is not None or adapt_sweeps):
        raise ConfigurationError(
            'parallel_tempering(variant="printed") has weights of its own and a ladder '
            "that stays. Leave out potential and adapt_sweeps."
        )
    potential = potential or potential_of(variant, weights, "parallel_tempering")
    # What printed chains draw and swap by; it does not define a target.
    ranked = telescoping(potential.transform) if printed else potential
    score = path_score(ranked, "parallel_tempering")
    if select is None:
        select = "argmax" if printed else "posterior"
    overwrites = endless or printed
    if temperatures is None:
        temperatures = geometric(num_temperatures, hottest)
    ladder = check_ladder(temperatures)
    num_chains = len(ladder)
    if num_sweeps is not None and particles_per_sweep is not None:
        raise ConfigurationError(
            "parallel_tempering takes num_sweeps or particles_per_sweep: the budget N "
            "is their product times the temperatures, so one gives the other."
        )

    def budget(num_particles: int) -> tuple[int, int]:
        each, rest = divmod(num_particles, num_chains)
        if rest:
            raise ConfigurationError(
                f"{num_particles} rollouts cannot be shared by {num_chains} "
                "temperatures. Choose a number that is a multiple of them."
            )
        if endless:
            return shared_budget(each, 1, None, fewest=1)
        sweeps, size = shared_budget(each, num_sweeps, particles_per_sweep)
        if not 0 <= adapt_sweeps < sweeps:
            raise ConfigurationError(
                f"adapt_sweeps is {adapt_sweeps} of {sweeps} sweeps: it cannot be less "
                "than none, and if all adapt the ladder none is left for the result. "
                "Choose fewer adapt_sweeps or more rollouts."
            )
        return sweeps, size

    def kept(num_particles: int) -> int:
        sweeps, size = budget(num_particles)
        return size if overwrites else (sweeps - adapt_sweeps) * size

    def plan(num_particles: int, max_steps: int) -> Plan:
        sweeps, size = budget(num_particles)
        stored = kept(num_particles) + (num_chains - 1) * size
        return Plan(num_chains * size, stored, sweeps * max_steps)

    def begin(size: int, max_steps: int) -> csmc.Sweep:
        one = csmc.begin(size, max_steps)
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_chains, *leaf.shape)), one
        )

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> TemperingState:
        sweeps, size = budget(num_particles)
        members = kept(num_particles)
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
            sample=summary(no_paths((), max_steps), score),
            sweep=begin(size, max_steps),
            reference=no_paths((num_chains,), max_steps),
            place=jnp.zeros(num_chains, jnp.int32),
            log_temperatures=jnp.asarray(np.log(ladder), weight_dtype()),
            swap_rates=jnp.zeros(num_chains - 1),
            parents=rows,
            slots=rows,
        )

    def home(state: TemperingState) -> Int[Array, "C n"]:
        """Where this sweep's particles are stored; only the cold ones are kept."""
        size = state.parents.shape[0] // num_chains
        # Burn-in is overwritten by the first sweep after it.
        after = jnp.maximum(state.iteration - adapt_sweeps, 0)
        cold = jnp.where(overwrites, 0, after * size)
        hot = state.members.shape[0] + size * jnp.arange(num_chains - 1)
        starts = jnp.concatenate([cold[None], hot]).astype(jnp.int32)
        return starts[:, None] + jnp.arange(size, dtype=jnp.int32)

    @with_typed_key
    def ask(
        key: Key[Array, ""], state: TemperingState
    ) -> tuple[TemperingState, Request]:
        conditional, t = state.iteration > 0, state.sweep.smc.t[0]

        def fork(key: Array, sweep: csmc.Sweep, beta: Array) -> csmc.Sweep:
            # A chain that waits for others has nothing to gain from resampling.
            unfinished = ~csmc.is_over(sweep, conditional, published=printed)
            return csmc.fork(
                key,
                sweep,
                temper(potential, beta),
                conditional,
                schedule=lambda log_weights, t: unfinished,
            )

        keys = jax.random.split(key, num_chains)
        sweep = jax.vmap(fork)(keys, state.sweep, jnp.exp(-state.log_temperatures))
        own = home(state)
        first = (jnp.arange(own.shape[1]) == 0) & conditional
        # References may lie where another chain's will: all are copied in one turn.
        kept_at = jnp.where(t == 0, state.place, own[:, 0])[:, None]
        parents = jnp.take_along_axis(own, sweep.smc.ancestors, axis=1)
        request = Request(
            parents=jnp.where(first, kept_at, parents).reshape(-1),
            slots=jnp.where(first & (t > 0), WHOLE, own).reshape(-1),
            extend=(~first & ~sweep.smc.finished).reshape(-1),
            depths=jnp.broadcast_to(jnp.where(first, WHOLE, t), own.shape).reshape(-1),
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
        told = _swept(key, state._replace(sweep=sweep))
        return told, ExplorerInfo(
            state.parents,
            state.slots,
            info.ess[0],
            jnp.sum(info.num_recoveries, dtype=jnp.int32),
            jnp.sum(info.num_invalid, dtype=jnp.int32),
        )

    def whole(
        sweep: csmc.Sweep,
        beta: Float[Array, ""],
        conditional: Bool[Array, ""],
        reference: PathRecord,
    ) -> csmc.Sweep:
        return csmc.with_whole_reference(
            sweep, temper(potential, beta), conditional, reference
        )

    def _swept(key: Key[Array, ""], state: TemperingState) -> TemperingState:
        """If all chains are through: keep the cold particles, draw and swap."""
        key_draw, key_swap = jax.random.split(key)
        own, conditional, sweep = home(state), state.iteration > 0, state.sweep
        size = own.shape[1]

        def over_alone(sweep: csmc.Sweep) -> Bool[Array, ""]:
            return csmc.is_over(sweep, conditional, published=printed)

        over = jnp.all(jax.vmap(over_alone)(sweep))
        if printed:
            sweep = jax.vmap(whole)(
                sweep,
                jnp.exp(-state.log_temperatures),
                jnp.broadcast_to(conditional, num_chains),
                state.reference,
            )
        smc = sweep.smc
        keys = jax.random.split(key_draw, num_chains)
        chosen = jax.vmap(csmc.draw)(keys, smc.log_weights)
        chains = jnp.arange(num_chains)
        drawn = jax.tree.map(lambda leaf: leaf[chains, chosen], sweep.records)
        origins, rates = swap(
            key_swap,
            log_density(drawn, score),
            state.log_temperatures,
            state.iteration,
        )
        reference = jax.tree.map(lambda leaf: leaf[origins], drawn)
        fixed_for = state.iteration + 1 - adapt_sweeps
        mean = state.swap_rates + (rates - state.swap_rates) / jnp.maximum(fixed_for, 1)
        log_temperatures = state.log_temperatures
        if adapt_sweeps > 0:
            moved = adapt_ladder(log_temperatures, rates, state.iteration)
            log_temperatures = jnp.where(fixed_for <= 0, moved, log_temperatures)

        def stored(old: Array, new: Array) -> Array:
            return old.at[own[0]].set(new[0])

        swept = state._replace(
            done=jnp.asarray(not endless) & (state.iteration + 1 >= state.sweeps),
            log_weights=stored(state.log_weights, smc.log_weights),
            log_potentials=stored(state.log_potentials, smc.log_potentials),
            finished=stored(state.finished, smc.finished),
            log_evidence=jnp.where(
                state.iteration == 0, jnp.sum(smc.log_evidence), state.log_evidence
            ),
            iteration=state.iteration + 1,
            sample=summary(jax.tree.map(lambda leaf: leaf[0], reference), score),
            sweep=begin(size, reference.log_potentials.shape[-1]),
            reference=reference,
            place=own[chains, chosen][origins],
            log_temperatures=log_temperatures,
            swap_rates=mean,
        )
        return jax.tree.map(lambda a, b: jnp.where(over, a, b), swept, state)

    def at(temperature: float) -> Callable[..., Array]:
        tempered = temper(ranked, 1.0 / temperature).path_log_weight
        assert tempered is not None
        return tempered

    return Explorer(
        plan,
        init,
        ask,
        tell,
        None if adapt_sweeps or printed else score,
        select,
        needs=("truncate",),
        auxiliary=tuple(at(temperature) for temperature in ladder[1:]),
        auxiliary_temperatures=() if adapt_sweeps else tuple(map(float, ladder[1:])),
        endless=endless,
        chain=True,
        default_particles=SWEEP * num_chains,
    )
