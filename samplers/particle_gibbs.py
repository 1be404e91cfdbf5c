r"""Particle Gibbs: a Markov chain of whole solutions, moved by conditional SMC.

The target is pi(x) \propto p(x) exp(s(x)). The first of J sweeps is plain SMC with n
particles, whose evidence estimate Z0 starts the chain; every later one is a conditional
SMC (`samplers.conditional_smc`) given the reference. Each sweep draws the reference of
the next from its n particles in proportion to their weights W.

A kernel that leaves pi invariant keeps what is properly weighted so, and the mean over
that draw is the sweep's weighted particles. Hence for every number of sweeps

    E[ Z0 (1/J) sum_j sum_i W_j^i phi(x_j^i) ] = sum_x p(x) exp(s(x)) phi(x).

With ancestor sampling [2] the reference's past is drawn afresh at each step, which the
prefixes pay for by repeating its future (`samplers.suffix_scoring`): it moves where
without it all particles have long descended from the reference. Backward sampling does
the same after the sweep (`samplers.backward_sampling`).

"corrected", the default, is all of the above. "printed" and "released" are what [3]
printed and ran: sweeps that draw by the last reward alone (`samplers.published`), whose
next reference is drawn in the same way among the n, and end with their n - 1 fresh
particles; the last sweep is the result. They target nothing. In the code, moreover, the
reference is weighed at each step by its reward after the next one.

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
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request
from tsi.picklable import picklable
from tsi.samplers import conditional_smc as csmc
from tsi.samplers.backward_sampling import backward_gibbs
from tsi.samplers.parts.path_record import (
    ChainSample,
    PathRecord,
    invalid,
    no_paths,
    summary,
)
from tsi.samplers.parts.potentials import Potential, telescoping
from tsi.samplers.parts.published import potential_of
from tsi.samplers.parts.schedules import Schedule, every_step
from tsi.samplers.parts.suffix_scoring import (
    Scoring,
    log_past_weights,
    repeat_step,
    scoring,
)
from tsi.samplers.parts.sweep_budget import SWEEP, path_score, shared_budget
from tsi.step_keys import with_typed_key
from tsi.weights import ess

WHOLE = jnp.iinfo(jnp.int32).max
"""A depth that cuts nothing."""


class GibbsState(NamedTuple):
    """Sweeps done, the reference, and the sweep in the making.

    Attributes:
        done: whether the budget is spent.
        members: stored particles that are the result, [K].
        log_weights, log_potentials, finished: of the members, [K].
        log_evidence: of the first sweep.
        iteration: sweeps completed.
        sweeps: that the budget has.
        sample: numbers of the reference.
        sweep: the n particles of the present sweep.
        reference: numbers of the path that it is conditioned on.
        place: where that path is stored.
        pasts: candidates for the reference's past, with ancestor sampling.
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
    """Particle Gibbs, with ancestor sampling if asked for.

    N rollouts are J sweeps of n = N / J particles, and all N particles are the result;
    those of later sweeps include the reference, a copy that costs no new step.

    Args:
        weights: transform of the product potential, if no potential is given; odds but
            for the variant "printed", which has exp(r).
        potential: product, telescoping or uniform.
        num_sweeps: J, by default 4; at least 2, for one sweep is SMC.
        particles_per_sweep: n, in place of J.
        ancestor_sampling: also draw the reference's past; needs a target with `replay`,
            and up to T turns for each of T steps.
        backward_sampling: draw the next reference backwards through all generations,
            which are kept; needs what ancestor sampling needs, and (T + 2) n more
            stored prefixes.
        scheme: how ancestors are drawn given the reference's.
        schedule: when; a symmetric function of the weights.
        variant: "corrected"; "released" as the code of [3] runs it; or "printed", as
            its Algorithm 2 says.
        endless: never done; each sweep has all N particles and overwrites the last,
            and between two sweeps the members are those of the latest.
        select: how one answer is chosen; by default "posterior", and "argmax" of the
            last reward in the published variants.

    Raises:
        ConfigurationError: for a potential without weights of prefixes, both num_sweeps
            and particles_per_sweep, or settings that contradict each other.
        UnknownNameError: for an unknown variant.
    """
    published = variant in ("released", "printed")
    if published and (potential is not None or ancestor_sampling or backward_sampling):
        raise ConfigurationError(
            f"particle_gibbs(variant={variant!r}) has weights and moves of its own. "
            "Leave out potential, ancestor_sampling and backward_sampling."
        )
    potential = potential or potential_of(variant, weights, "particle_gibbs")
    # What a published sweep draws its next reference by; it does not define a target.
    ranked = telescoping(potential.transform) if published else potential
    score = path_score(ranked, "particle_gibbs")
    if select is None:
        select = "argmax" if published else "posterior"
    if num_sweeps is not None and particles_per_sweep is not None:
        raise ConfigurationError(
            "particle_gibbs takes num_sweeps or particles_per_sweep: the budget N is "
            "their product, so one gives the other."
        )
    plain = scheme is csmc.conditional_multinomial and schedule is every_step
    if published and not plain:
        raise ConfigurationError(
            f"particle_gibbs(variant={variant!r}) draws independently at every step. "
            "Leave out scheme and schedule."
        )
    if (ancestor_sampling or backward_sampling) and not plain:
        raise ConfigurationError(
            "Ancestor and backward sampling draw the reference's ancestors apart from "
            "the others', which is right if all are independent and drawn at every "
            "step. Leave scheme and schedule as they are."
        )
    if backward_sampling and ancestor_sampling:
        raise ConfigurationError(
            "Backward sampling draws the reference's whole past by itself. Leave out "
            "ancestor_sampling."
        )
    overwrites = endless or published

    def budget(num_particles: int) -> tuple[int, int]:
        if endless:
            return 1, shared_budget(num_particles, 1, None, fewest=1)[1]
        return shared_budget(num_particles, num_sweeps, particles_per_sweep)

    if backward_sampling:
        return backward_gibbs(potential, score, budget, endless=endless, select=select)

    def plan(num_particles: int, max_steps: int) -> Plan:
        sweeps, size = budget(num_particles)
        scratch = size if ancestor_sampling else 0
        turns = max_steps
        if ancestor_sampling:
            turns += max_steps * (max_steps - 1) // 2
        return Plan(size, kept(num_particles) + scratch, sweeps * turns)

    def kept(num_particles: int) -> int:
        return budget(num_particles)[1] if overwrites else num_particles

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> GibbsState:
        sweeps, size = budget(num_particles)
        members = kept(num_particles)
        zero = jnp.zeros((), jnp.int32)
        nobody = no_paths((size,), max_steps)
        rows = jnp.arange(size, dtype=jnp.int32)
        none = jnp.zeros(size, bool)
        return GibbsState(
            done=jnp.zeros((), bool),
            members=jnp.arange(members, dtype=jnp.int32),
            log_weights=jnp.zeros(members),
            log_potentials=jnp.zeros(members),
            finished=jnp.zeros(members, bool),
            log_evidence=jnp.zeros(()),
            iteration=zero,
            sweeps=jnp.asarray(sweeps, jnp.int32),
            sample=summary(no_paths((), max_steps), score),
            sweep=csmc.begin(size, max_steps),
            reference=no_paths((), max_steps),
            place=zero,
            pasts=Scoring(nobody, none, zero),
            parents=rows,
            slots=rows,
        )

    def home(state: GibbsState) -> Int[Array, "n"]:
        """Where this sweep's particles are stored."""
        size = state.parents.shape[0]
        bank = 0 if overwrites else state.iteration * size
        return bank + jnp.arange(size, dtype=jnp.int32)

    def scores(state: GibbsState) -> Bool[Array, ""]:
        """Whether this turn repeats the reference's steps."""
        due = (state.iteration > 0) & (state.sweep.smc.t > 0)
        return ancestor_sampling & due & (state.pasts.step < state.reference.length)

    @with_typed_key
    def ask(key: Key[Array, ""], state: GibbsState) -> tuple[GibbsState, Request]:
        key_past, key_fork = jax.random.split(key)
        forked, request = _fork(key_past, key_fork, state)
        if not ancestor_sampling:
            kept = forked
        else:
            now = scores(state)
            repeating = _repeating(state)
            kept, request = jax.tree.map(
                lambda a, b: jnp.where(now, a, b),
                (state, repeating),
                (forked, request),
            )
        return kept._replace(parents=request.parents, slots=request.slots), request

    def _fork(
        key_past: Key[Array, ""], key_fork: Key[Array, ""], state: GibbsState
    ) -> tuple[GibbsState, Request]:
        """Ancestors are drawn and the particles but the reference take a step."""
        sweep, own = state.sweep, home(state)
        t, conditional = sweep.smc.t, state.iteration > 0
        reference, lineage = state.reference, jnp.zeros((), jnp.int32)
        kept_at, keeps = state.place, t == 0
        if ancestor_sampling:
            log_w = log_past_weights(
                state.pasts, sweep.records, sweep.smc.log_weights, t, score
            )
            due = conditional & (t > 0)
            lineage = jnp.where(due, csmc.draw(key_past, log_w), 0)
            joined = jax.tree.map(lambda leaf: leaf[lineage], state.pasts.joined)
            reference = jax.tree.map(
                lambda new, old: jnp.where(due, new, old), joined, reference
            )
            # Nothing was repeated of a reference that has no steps left.
            bank = jnp.where(state.reference.length > t, scratch(state), own)
            past_at = jnp.where(lineage > 0, bank[lineage], own[0])
            kept_at = jnp.where(due, past_at, kept_at)
            keeps = keeps | (lineage > 0)
        sweep = csmc.fork(
            key_fork,
            sweep,
            potential,
            conditional,
            lineage=lineage,
            scheme=scheme,
            schedule=schedule,
        )
        first = (jnp.arange(own.shape[0]) == 0) & conditional
        request = Request(
            parents=jnp.where(first, kept_at, own[sweep.smc.ancestors]),
            slots=jnp.where(first & ~keeps, WHOLE, own),
            extend=~first & ~sweep.smc.finished,
            depths=jnp.where(first, WHOLE, t),
            sources=jnp.full_like(own, -1) if ancestor_sampling else None,
        )
        return state._replace(sweep=sweep, reference=reference), request

    def scratch(state: GibbsState) -> Int[Array, "n"]:
        return state.members.shape[0] + jnp.arange(
            state.parents.shape[0], dtype=jnp.int32
        )

    def _repeating(state: GibbsState) -> Request:
        """Every past is extended by the reference's next step."""
        own, t = home(state), state.sweep.smc.t
        starts = state.pasts.step == t
        return Request(
            parents=jnp.where(starts, own, scratch(state)),
            slots=scratch(state),
            extend=state.pasts.possible,
            depths=jnp.where(starts, t, WHOLE) + jnp.zeros_like(own),
            sources=jnp.broadcast_to(own[0], own.shape),
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
            ahead=variant == "released",
        )
        told = _finish_sweep(key, state._replace(sweep=sweep))
        size, recoveries, bad = info.ess, info.num_recoveries, info.num_invalid
        if ancestor_sampling:
            now = scores(state)
            pasts = repeat_step(state.pasts, reply, state.reference.length)
            fresh = scoring(
                told.sweep.records,
                told.sweep.smc.finished,
                told.reference.length,
                told.sweep.smc.t,
            )
            told = jax.tree.map(
                lambda a, b: jnp.where(now, a, b),
                state._replace(pasts=pasts),
                told._replace(pasts=fresh),
            )
            size = jnp.where(now, ess(state.sweep.smc.log_weights), size)
            recoveries = jnp.where(now, 0, recoveries)
            bad = jnp.where(now, invalid(reply, state.pasts.possible), bad)
        parents, slots = state.parents, state.slots
        return told, ExplorerInfo(parents, slots, size, recoveries, bad)

    def _finish_sweep(key: Key[Array, ""], state: GibbsState) -> GibbsState:
        """If all particles are whole: keep them, draw the reference, begin again."""
        conditional, size = state.iteration > 0, state.parents.shape[0]
        over = csmc.is_over(state.sweep, conditional, published=published)
        sweep = state.sweep
        if published:
            sweep = csmc.with_whole_reference(
                sweep, potential, conditional, state.reference
            )
        smc, records = sweep
        chosen = csmc.draw(key, smc.log_weights)
        reference = jax.tree.map(lambda leaf: leaf[chosen], records)
        mine = home(state)

        def stored(old: Array, new: Array) -> Array:
            return old.at[mine].set(new)

        done = jnp.asarray(not endless) & (state.iteration + 1 >= state.sweeps)
        ended = state._replace(
            done=done,
            log_weights=stored(state.log_weights, smc.log_weights),
            log_potentials=stored(state.log_potentials, smc.log_potentials),
            finished=stored(state.finished, smc.finished),
            log_evidence=jnp.where(
                state.iteration == 0, smc.log_evidence, state.log_evidence
            ),
            iteration=state.iteration + 1,
            sample=summary(reference, score),
            sweep=csmc.begin(size, records.log_potentials.shape[-1]),
            reference=reference,
            place=mine[chosen],
        )
        return jax.tree.map(lambda a, b: jnp.where(over, a, b), ended, state)

    needs = ("truncate", "replay") if ancestor_sampling else ("truncate",)
    claim = None if published else score
    return Explorer(
        plan,
        init,
        ask,
        tell,
        claim,
        select,
        needs=needs,
        endless=endless,
        chain=True,
        default_particles=SWEEP,
    )
