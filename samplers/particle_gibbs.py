r"""Particle Gibbs: a Markov chain of complete solutions, moved by conditional SMC.

The target is pi(x) \propto p(x) exp(s(x)). The first of J sweeps is plain SMC with n
particles, whose evidence estimate Z0 starts the chain; every later one is a conditional
SMC (`samplers.conditional_smc`) given the reference. Each sweep draws the reference of
the next from its n particles in proportion to their weights W.

A kernel that leaves pi invariant preserves proper weighting, and the mean over that
draw is given by the weighted particles of the sweep. Hence for every number of sweeps

    E[ Z0 (1/J) sum_j sum_i W_j^i phi(x_j^i) ] = sum_x p(x) exp(s(x)) phi(x).

With ancestor sampling [2] the past of the reference is drawn anew at each step. The
cost is that all prefixes repeat the future of the reference
(`samplers.parts.ancestor_weights`). The early steps then move even if all particles
descend from the reference. Backward sampling does the same after the sweep
(`samplers.backward_sampling`).

Variants: "corrected", the default, is the method above. "printed" and "released" are
the algorithm of [3] as printed and as its code runs it. Their sweeps draw by the last
reward only (`samplers.parts.published`), draw the next reference in the same way among
the n particles, and end when the n - 1 new particles have finished. The last sweep is
the result. They have no target. The code also weights the reference at each step by its
reward after the next step.

References:
    [1] Andrieu, Doucet and Holenstein 2010, Particle Markov chain Monte Carlo methods.
    [2] Lindsten, Jordan and Schoen 2014, arXiv 1401.0604, Algorithm 2.
    [3] Puri et al. 2025, arXiv 2502.01618, Algorithm 2, and its code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.ess import ess
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request
from tsi.picklable import picklable
from tsi.samplers import conditional_smc as csmc
from tsi.samplers.backward_sampling import backward_gibbs
from tsi.samplers.parts.ancestor_weights import (
    Scoring,
    log_past_weights,
    repeat_step,
    start_scoring,
)
from tsi.samplers.parts.path_record import (
    ChainSample,
    PathRecord,
    count_invalid,
    empty_paths,
    summarise,
)
from tsi.samplers.parts.potentials import Potential, telescoping
from tsi.samplers.parts.published import choose_potential
from tsi.samplers.parts.schedules import Schedule, every_step
from tsi.samplers.parts.sweep_budget import SWEEP_SIZE, path_score, shared_budget
from tsi.step_keys import with_typed_key

BEYOND = jnp.iinfo(jnp.int32).max
"""As a depth: no cut. As a slot: not stored."""


class GibbsState(NamedTuple):
    """The reference and the current sweep.

    Attributes:
        done: whether the budget is spent.
        members: stored particles that are the result, [K].
        log_weights, log_potentials, finished: of the members, [K].
        log_evidence: of the first sweep.
        iteration: number of completed sweeps.
        sweeps: number of sweeps of the budget.
        sample: summary of the reference.
        sweep: the n particles of the current sweep.
        reference: the path on which the sweep is conditioned.
        place: slot of the reference.
        pasts: candidates for the past of the reference, with ancestor sampling.
        parents, slots: as last requested, [n].
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
    place: Int[Array, ""]
    pasts: Scoring
    parents: Int[Array, "n"]
    slots: Int[Array, "n"]


@picklable
def particle_gibbs(
    weights: str | None = None,
    *,
    potential: Potential | None = None,
    num_sweeps: int | None = None,
    particles_per_sweep: int | None = None,
    ancestor_sampling: bool = False,
    backward_sampling: bool = False,
    scheme: csmc.Scheme = csmc.conditional_multinomial,
    schedule: Schedule = every_step,
    variant: str = "corrected",
    endless: bool = False,
    select: str | None = None,
) -> Explorer:
    """Particle Gibbs, optionally with ancestor or backward sampling.

    N rollouts are J sweeps of n = N / J particles, and the result has all N particles.
    In later sweeps one of them is the reference, which costs no new step.

    Args:
        weights: transform of the product potential, if no potential is given; by
            default "odds", and exp(r) for the variant "printed".
        potential: product, telescoping or uniform.
        num_sweeps: J, by default 4; at least 2, since one sweep is SMC.
        particles_per_sweep: n, instead of J.
        ancestor_sampling: also draw the past of the reference; needs a target with
            `replay`, and up to T turns for each of T steps.
        backward_sampling: draw the next reference backwards through all generations,
            which are stored; has the requirements of ancestor sampling, and needs
            (T + 2) n more stored prefixes.
        scheme: how ancestors are drawn given the ancestor of the reference.
        schedule: when ancestors are drawn; a symmetric function of the weights.
        variant: "corrected"; "released", as in the code of [3]; or "printed", as in its
            Algorithm 2.
        endless: never done; each sweep has all N particles and overwrites the sweep
            before, and between two sweeps the members are those of the latest sweep.
        select: how one answer is chosen; by default "posterior"; for the published
            variants "argmax" of the last reward.

    Raises:
        ConfigurationError: for a potential without weights of prefixes, both num_sweeps
            and particles_per_sweep, or settings that contradict each other.
        UnknownNameError: for an unknown variant.
    """
    published = variant in ("released", "printed")
    if published and (potential is not None or ancestor_sampling or backward_sampling):
        raise ConfigurationError(
            f"particle_gibbs(variant={variant!r}) has fixed weights and moves. "
            "Leave out potential, ancestor_sampling and backward_sampling."
        )
    potential = potential or choose_potential(variant, weights, "particle_gibbs")
    # A published sweep draws its next reference by this score, not by a target.
    score_potential = telescoping(potential.transform) if published else potential
    score = path_score(score_potential, "particle_gibbs")
    if select is None:
        select = "argmax" if published else "posterior"
    if num_sweeps is not None and particles_per_sweep is not None:
        raise ConfigurationError(
            "particle_gibbs takes num_sweeps or particles_per_sweep, not both: N is "
            "their product."
        )
    is_default = scheme is csmc.conditional_multinomial and schedule is every_step
    if published and not is_default:
        raise ConfigurationError(
            f"particle_gibbs(variant={variant!r}) draws independently at every step. "
            "Leave out scheme and schedule."
        )
    if (ancestor_sampling or backward_sampling) and not is_default:
        raise ConfigurationError(
            "Ancestor and backward sampling draw the reference's ancestors separately, "
            "which is correct only if all ancestors are independent and drawn at every "
            "step. Leave out scheme and schedule."
        )
    if backward_sampling and ancestor_sampling:
        raise ConfigurationError(
            "Backward sampling draws the whole past of the reference. Leave out "
            "ancestor_sampling."
        )
    overwrites = endless or published

    def budget(num_particles: int) -> tuple[int, int]:
        if endless:
            return 1, shared_budget(num_particles, 1, None, min_sweeps=1)[1]
        return shared_budget(num_particles, num_sweeps, particles_per_sweep)

    if backward_sampling:
        return backward_gibbs(potential, score, budget, endless=endless, select=select)

    def plan(num_particles: int, max_steps: int) -> Plan:
        sweeps, size = budget(num_particles)
        num_scratch = size if ancestor_sampling else 0
        turns = max_steps
        if ancestor_sampling:
            turns += max_steps * (max_steps - 1) // 2
        return Plan(size, count_members(num_particles) + num_scratch, sweeps * turns)

    def count_members(num_particles: int) -> int:
        return budget(num_particles)[1] if overwrites else num_particles

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> GibbsState:
        sweeps, size = budget(num_particles)
        members = count_members(num_particles)
        zero = jnp.zeros((), jnp.int32)
        no_pasts = empty_paths((size,), max_steps)
        rows = jnp.arange(size, dtype=jnp.int32)
        all_false = jnp.zeros(size, bool)
        return GibbsState(
            done=jnp.zeros((), bool),
            members=jnp.arange(members, dtype=jnp.int32),
            log_weights=jnp.zeros(members),
            log_potentials=jnp.zeros(members),
            finished=jnp.zeros(members, bool),
            log_evidence=jnp.zeros(()),
            iteration=zero,
            sweeps=jnp.asarray(sweeps, jnp.int32),
            sample=summarise(empty_paths((), max_steps), score),
            sweep=csmc.start_sweep(size, max_steps),
            reference=empty_paths((), max_steps),
            place=zero,
            pasts=Scoring(no_pasts, all_false, zero),
            parents=rows,
            slots=rows,
        )

    def sweep_slots(state: GibbsState) -> Int[Array, "n"]:
        """Slots of this sweep's particles."""
        size = state.parents.shape[0]
        bank = 0 if overwrites else state.iteration * size
        return bank + jnp.arange(size, dtype=jnp.int32)

    def is_repeating(state: GibbsState) -> Bool[Array, ""]:
        """Whether this turn repeats a step of the reference."""
        is_due = (state.iteration > 0) & (state.sweep.smc.t > 0)
        return ancestor_sampling & is_due & (state.pasts.step < state.reference.length)

    @with_typed_key
    def ask(key: Key[Array, ""], state: GibbsState) -> tuple[GibbsState, Request]:
        key_past, key_fork = jax.random.split(key)
        forked, request = _fork(key_past, key_fork, state)
        if ancestor_sampling:
            repeats = is_repeating(state)
            forked, request = jax.tree.map(
                lambda a, b: jnp.where(repeats, a, b),
                (state, _request_repeats(state)),
                (forked, request),
            )
        return forked._replace(parents=request.parents, slots=request.slots), request

    def _fork(
        key_past: Key[Array, ""], key_fork: Key[Array, ""], state: GibbsState
    ) -> tuple[GibbsState, Request]:
        """Draw ancestors, and extend all particles but the reference."""
        sweep, slots = state.sweep, sweep_slots(state)
        t, conditional = sweep.smc.t, state.iteration > 0
        reference, lineage = state.reference, jnp.zeros((), jnp.int32)
        reference_slot, stores_reference = state.place, t == 0
        if ancestor_sampling:
            log_w = log_past_weights(
                state.pasts, sweep.records, sweep.smc.log_weights, t, score
            )
            is_due = conditional & (t > 0)
            lineage = jnp.where(is_due, csmc.draw(key_past, log_w), 0)
            joined = jax.tree.map(lambda leaf: leaf[lineage], state.pasts.joined)
            reference = jax.tree.map(
                lambda new, old: jnp.where(is_due, new, old), joined, reference
            )
            # If the reference has no steps left, nothing was repeated.
            bank = jnp.where(state.reference.length > t, scratch_slots(state), slots)
            past_slot = jnp.where(lineage > 0, bank[lineage], slots[0])
            reference_slot = jnp.where(is_due, past_slot, reference_slot)
            stores_reference = stores_reference | (lineage > 0)
        sweep = csmc.fork(
            key_fork,
            sweep,
            potential,
            conditional,
            lineage=lineage,
            scheme=scheme,
            schedule=schedule,
        )
        first = (jnp.arange(slots.shape[0]) == 0) & conditional
        request = Request(
            parents=jnp.where(first, reference_slot, slots[sweep.smc.ancestors]),
            slots=jnp.where(first & ~stores_reference, BEYOND, slots),
            extend=~first & ~sweep.smc.finished,
            depths=jnp.where(first, BEYOND, t),
            sources=jnp.full_like(slots, -1) if ancestor_sampling else None,
        )
        return state._replace(sweep=sweep, reference=reference), request

    def scratch_slots(state: GibbsState) -> Int[Array, "n"]:
        return state.members.shape[0] + jnp.arange(
            state.parents.shape[0], dtype=jnp.int32
        )

    def _request_repeats(state: GibbsState) -> Request:
        """Extend every candidate by the next step of the reference."""
        slots, t = sweep_slots(state), state.sweep.smc.t
        is_first_step = state.pasts.step == t
        return Request(
            parents=jnp.where(is_first_step, slots, scratch_slots(state)),
            slots=scratch_slots(state),
            extend=state.pasts.possible,
            depths=jnp.where(is_first_step, t, BEYOND) + jnp.zeros_like(slots),
            sources=jnp.broadcast_to(slots[0], slots.shape),
        )

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: GibbsState, reply: Reply
    ) -> tuple[GibbsState, ExplorerInfo]:
        conditional = state.iteration > 0
        sweep, info = csmc.weigh(
            state.sweep,
            reply,
            potential,
            conditional,
            state.reference,
            one_reward_ahead=variant == "released",
        )
        new_state = _finish_sweep(key, state._replace(sweep=sweep))
        turn_ess, recoveries, num_invalid = (
            info.ess,
            info.num_recoveries,
            info.num_invalid,
        )
        if ancestor_sampling:
            repeats = is_repeating(state)
            pasts = repeat_step(state.pasts, reply, state.reference.length)
            new_pasts = start_scoring(
                new_state.sweep.records,
                new_state.sweep.smc.finished,
                new_state.reference.length,
                new_state.sweep.smc.t,
            )
            new_state = jax.tree.map(
                lambda a, b: jnp.where(repeats, a, b),
                state._replace(pasts=pasts),
                new_state._replace(pasts=new_pasts),
            )
            turn_ess = jnp.where(repeats, ess(state.sweep.smc.log_weights), turn_ess)
            recoveries = jnp.where(repeats, 0, recoveries)
            num_invalid = jnp.where(
                repeats, count_invalid(reply, state.pasts.possible), num_invalid
            )
        parents, slots = state.parents, state.slots
        return new_state, ExplorerInfo(
            parents, slots, turn_ess, recoveries, num_invalid
        )

    def _finish_sweep(key: Key[Array, ""], state: GibbsState) -> GibbsState:
        """If all particles are complete, keep them and draw the next reference."""
        conditional, size = state.iteration > 0, state.parents.shape[0]
        complete = csmc.is_complete(state.sweep, conditional, published=published)
        sweep = state.sweep
        if published:
            sweep = csmc.complete_reference(
                sweep, potential, conditional, state.reference
            )
        smc, records = sweep
        index = csmc.draw(key, smc.log_weights)
        reference = jax.tree.map(lambda leaf: leaf[index], records)
        slots = sweep_slots(state)

        def store(old: Array, new: Array) -> Array:
            return old.at[slots].set(new)

        done = jnp.asarray(not endless) & (state.iteration + 1 >= state.sweeps)
        next_sweep = state._replace(
            done=done,
            log_weights=store(state.log_weights, smc.log_weights),
            log_potentials=store(state.log_potentials, smc.log_potentials),
            finished=store(state.finished, smc.finished),
            log_evidence=jnp.where(
                state.iteration == 0, smc.log_evidence, state.log_evidence
            ),
            iteration=state.iteration + 1,
            sample=summarise(reference, score),
            sweep=csmc.start_sweep(size, records.log_potentials.shape[-1]),
            reference=reference,
            place=slots[index],
        )
        return jax.tree.map(lambda a, b: jnp.where(complete, a, b), next_sweep, state)

    needs = ("truncate", "replay") if ancestor_sampling else ("truncate",)
    return Explorer(
        plan,
        init,
        ask,
        tell,
        None if published else score,
        select,
        needs=needs,
        endless=endless,
        chain=True,
        default_particles=SWEEP_SIZE,
    )
