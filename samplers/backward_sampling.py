r"""Particle Gibbs whose reference is drawn backwards through all generations.

After each sweep the final particle of the next reference is drawn in proportion to its
weight. Its past is then drawn step by step, backwards: given x'_{t+1:L}, one of the n
prefixes of generation t is drawn with probabilities proportional to

    W_t^i  p(x'_{t+1:L} | x^i_{1:t})  exp(s(x^i_{1:t}, x'_{t+1:L}) - s(x^i_{1:t})),

including prefixes that have no descendants left [1]. Each draw is a Gibbs step on one
ancestor, so steps beyond the end of the solution can be omitted.

References:
    [1] Whiteley 2010, in the discussion of Andrieu, Doucet and Holenstein.
    [2] Lindsten and Schoen 2013, Backward simulation methods, section 5 (targets that
        are not Markov).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.ess import ess
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request
from tsi.samplers import conditional_smc as csmc
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
from tsi.samplers.parts.potentials import Potential
from tsi.samplers.parts.sweep_budget import SWEEP_SIZE
from tsi.step_keys import with_typed_key
from tsi.weights import all_dead

NO_CUT = jnp.iinfo(jnp.int32).max
"""As a depth: no cut."""

FORWARD, KEEP, BACKWARD = 0, 1, 2


class Generations(NamedTuple):
    """All particles after every step.

    Attributes:
        records: the numbers of their paths, [T, n].
        ended: which of them were complete solutions, [T, n].
        log_weights: W, [T, n].
    """

    records: PathRecord
    ended: Bool[Array, "T n"]
    log_weights: Float[Array, "T n"]


class BackwardState(NamedTuple):
    """The reference and the current sweep.

    Attributes:
        done: whether the budget is spent.
        members: stored particles that are the result, [K].
        log_weights, log_potentials, finished: of the members, [K].
        log_evidence: of the first sweep.
        iteration: sweeps completed.
        sample: summary of the reference.
        phase: FORWARD, KEEP (the last generation becomes members) or BACKWARD.
        sweep: the n particles of the current sweep.
        generations: the particles of this sweep after each step so far.
        reference: path of the current reference; in the backward phase, of the next.
        place: slot in which the reference is stored.
        level: t, number of steps of the generation from which a past is drawn.
        pasts: candidates of that generation, which repeat the future.
        bank: which of two groups of scratch slots the candidates use.
        parents, slots: as last requested, [n].
    """

    done: Bool[Array, ""]
    members: Int[Array, "K"]
    log_weights: Float[Array, "K"]
    log_potentials: Float[Array, "K"]
    finished: Bool[Array, "K"]
    log_evidence: Float[Array, ""]
    iteration: Int[Array, ""]
    sample: ChainSample
    phase: Int[Array, ""]
    sweep: csmc.Sweep
    generations: Generations
    reference: PathRecord
    place: Int[Array, ""]
    level: Int[Array, ""]
    pasts: Scoring
    bank: Int[Array, ""]
    parents: Int[Array, "n"]
    slots: Int[Array, "n"]


def _select(mask: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b), new, old)


def _index(tree: Any, index: Int[Array, ""]) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def backward_gibbs(
    potential: Potential,
    score: Callable[..., Array],
    budget: Callable[[int], tuple[int, int]],
    *,
    endless: bool,
    select: str,
) -> Explorer:
    """Particle Gibbs with backward sampling: see `particle_gibbs`.

    Args:
        potential: product, telescoping or uniform.
        score: its path weight.
        budget: maps N to (sweeps, n).
        endless: never done; only the particles of the latest sweep are members.
        select: how one answer is chosen.
    """

    def plan(num_particles: int, max_steps: int) -> Plan:
        sweeps, size = budget(num_particles)
        turns = max_steps + 1 + max_steps * (max_steps - 1) // 2
        return Plan(size, num_particles + (max_steps + 2) * size, sweeps * turns)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> BackwardState:
        _, size = budget(num_particles)
        zero = jnp.zeros((), jnp.int32)
        rows = jnp.arange(size, dtype=jnp.int32)
        all_false = jnp.zeros((max_steps, size), bool)
        return BackwardState(
            done=jnp.zeros((), bool),
            members=jnp.arange(num_particles, dtype=jnp.int32),
            log_weights=jnp.zeros(num_particles),
            log_potentials=jnp.zeros(num_particles),
            finished=jnp.zeros(num_particles, bool),
            log_evidence=jnp.zeros(()),
            iteration=zero,
            sample=summarise(empty_paths((), max_steps), score),
            phase=zero,
            sweep=csmc.start_sweep(size, max_steps),
            generations=Generations(
                empty_paths((max_steps, size), max_steps),
                all_false,
                jnp.zeros((max_steps, size)),
            ),
            reference=empty_paths((), max_steps),
            place=zero,
            level=zero,
            pasts=Scoring(empty_paths((size,), max_steps), all_false[0], zero),
            bank=zero,
            parents=rows,
            slots=rows,
        )

    def rows(state: BackwardState) -> Int[Array, "n"]:
        return jnp.arange(state.parents.shape[0], dtype=jnp.int32)

    def generation_slots(state: BackwardState, t: Array) -> Int[Array, "n"]:
        """Slots of the particles of t steps."""
        start = state.members.shape[0] + jnp.maximum(t - 1, 0) * state.parents.shape[0]
        return start + rows(state)

    def scratch_slots(state: BackwardState) -> Int[Array, "n"]:
        max_steps = state.generations.ended.shape[0]
        return generation_slots(state, max_steps + 1 + state.bank)

    def member_slots(state: BackwardState) -> Int[Array, "n"]:
        """Slots of this sweep's members."""
        start = 0 if endless else state.iteration * state.parents.shape[0]
        return start + rows(state)

    @with_typed_key
    def ask(key: Key[Array, ""], state: BackwardState) -> tuple[BackwardState, Request]:
        t, conditional = state.sweep.smc.t, state.iteration > 0
        forked = csmc.fork(key, state.sweep, potential, conditional)
        first = (rows(state) == 0) & conditional
        forward_request = Request(
            parents=jnp.where(
                first, state.place, generation_slots(state, t)[forked.smc.ancestors]
            ),
            slots=generation_slots(state, t + 1),
            extend=~first & ~forked.smc.finished,
            # In every generation the reference has as many steps as the other
            # particles.
            depths=jnp.where(first, t + 1, t),
            sources=jnp.full_like(state.parents, -1),
        )
        keep_request = Request(
            parents=generation_slots(state, t),
            slots=member_slots(state),
            extend=jnp.zeros_like(first),
            depths=jnp.full_like(state.parents, NO_CUT),
            sources=forward_request.sources,
        )
        is_first_step = state.pasts.step == state.level
        backward_request = Request(
            parents=jnp.where(
                is_first_step,
                generation_slots(state, state.level),
                scratch_slots(state),
            ),
            slots=scratch_slots(state),
            extend=state.pasts.possible,
            depths=keep_request.depths,
            sources=jnp.broadcast_to(state.place, first.shape),
        )
        request = _select(state.phase == KEEP, keep_request, backward_request)
        request = _select(state.phase == FORWARD, forward_request, request)
        sweep = _select(state.phase == FORWARD, forked, state.sweep)
        parents, slots = request.parents, request.slots
        return state._replace(sweep=sweep, parents=parents, slots=slots), request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: BackwardState, reply: Reply
    ) -> tuple[BackwardState, ExplorerInfo]:
        key_forward, key_backward = jax.random.split(key)
        forward_state, info = _step_forward(key_forward, state, reply)
        backward_state = _step_backward(key_backward, state, reply)
        level = state.reference.length - 1
        keep_state = _finish_sweep(
            _offer_pasts(state._replace(phase=jnp.full_like(level, 2)), level)
        )
        new_state = _select(state.phase == KEEP, keep_state, backward_state)
        new_state = _select(state.phase == FORWARD, forward_state, new_state)
        steps, repeats = state.phase == FORWARD, state.phase == BACKWARD
        num_invalid = jnp.where(repeats, count_invalid(reply, state.pasts.possible), 0)
        return new_state, ExplorerInfo(
            state.parents,
            state.slots,
            jnp.where(steps, info.ess, ess(state.sweep.smc.log_weights)),
            jnp.where(steps, info.num_recoveries, 0),
            jnp.where(steps, info.num_invalid, num_invalid),
        )

    def _step_forward(
        key: Key[Array, ""], state: BackwardState, reply: Reply
    ) -> tuple[BackwardState, Any]:
        """Weight the extended particles; when all are complete, draw one of them."""
        sweep, info = csmc.weigh(
            state.sweep, reply, potential, state.iteration > 0, state.reference
        )
        smc, slots = sweep.smc, member_slots(state)
        generations = jax.tree.map(
            lambda stack, new: stack.at[state.sweep.smc.t].set(new),
            state.generations,
            Generations(sweep.records, smc.finished, smc.log_weights),
        )
        state = state._replace(sweep=sweep, generations=generations)
        index = csmc.draw(key, smc.log_weights)
        evidence = jnp.where(state.iteration == 0, smc.log_evidence, state.log_evidence)
        ended_state = state._replace(
            log_weights=state.log_weights.at[slots].set(smc.log_weights),
            log_potentials=state.log_potentials.at[slots].set(smc.log_potentials),
            finished=state.finished.at[slots].set(smc.finished),
            log_evidence=evidence,
            phase=jnp.full_like(state.phase, KEEP),
            reference=_index(sweep.records, index),
            place=slots[index],
        )
        return _select(jnp.all(smc.finished), ended_state, state), info

    def _offer_pasts(state: BackwardState, level: Int[Array, ""]) -> BackwardState:
        """Take the candidates for a past from the generation of `level` steps."""
        offer = _index(state.generations, jnp.maximum(level - 1, 0))
        length = state.reference.length
        pasts = start_scoring(offer.records, offer.ended, length, level)
        return state._replace(level=level, pasts=pasts)

    def _step_backward(
        key: Key[Array, ""], state: BackwardState, reply: Reply
    ) -> BackwardState:
        """Repeat one step of the future; when all are repeated, draw a past."""
        length = state.reference.length
        state = state._replace(pasts=repeat_step(state.pasts, reply, length))
        offer = _index(state.generations, state.level - 1)
        log_w = log_past_weights(
            state.pasts, offer.records, offer.log_weights, state.level, score
        )
        index = csmc.draw(key, log_w)
        joined = state._replace(
            reference=_index(state.pasts.joined, index),
            place=scratch_slots(state)[index],
            bank=1 - state.bank,
        )
        # A reference of density zero keeps its past.
        joined = _select(all_dead(log_w), state, joined)
        with_past = _finish_sweep(_offer_pasts(joined, state.level - 1))
        return _select(state.pasts.step >= length, with_past, state)

    def _finish_sweep(state: BackwardState) -> BackwardState:
        """End the sweep if the reference is complete or no further sweep needs it."""
        size, num_members = state.parents.shape[0], state.members.shape[0]
        done = jnp.asarray(not endless) & ((state.iteration + 1) * size >= num_members)
        max_steps = state.generations.ended.shape[0]
        next_sweep = state._replace(
            done=done,
            iteration=state.iteration + 1,
            sample=summarise(state.reference, score),
            phase=jnp.full_like(state.phase, FORWARD),
            sweep=csmc.start_sweep(size, max_steps),
        )
        return _select(done | (state.level < 1), next_sweep, state)

    needs = ("truncate", "replay")
    return Explorer(
        plan,
        init,
        ask,
        tell,
        score,
        select,
        needs=needs,
        endless=endless,
        chain=True,
        default_particles=SWEEP_SIZE,
    )
