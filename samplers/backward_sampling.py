r"""Particle Gibbs whose reference is drawn backwards through all generations.

After each sweep the last particle of the next reference is drawn in proportion to its
weight, and then its past, step by step towards the start: with x'_{t+1:L} chosen,
generation t offers its n prefixes with probabilities

    W_t^i  p(x'_{t+1:L} | x^i_{1:t})  exp(s(x^i_{1:t}, x'_{t+1:L}) - s(x^i_{1:t})),

dead ones included, whom no particle descends from any more [1]. Each draw is a Gibbs
step on one ancestor, so steps beyond the end of the solution may be left out.

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

from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request
from tsi.samplers import conditional_smc as csmc
from tsi.samplers.parts.path_record import (
    ChainSample,
    PathRecord,
    invalid,
    no_paths,
    summary,
)
from tsi.samplers.parts.potentials import Potential
from tsi.samplers.parts.suffix_scoring import (
    Scoring,
    log_past_weights,
    repeat_step,
    scoring,
)
from tsi.samplers.parts.sweep_budget import SWEEP
from tsi.step_keys import with_typed_key
from tsi.weights import all_dead, ess

WHOLE = jnp.iinfo(jnp.int32).max
"""A depth that cuts nothing, and a slot that is nowhere."""

FORWARD, KEEP, BACKWARD = 0, 1, 2


class Generations(NamedTuple):
    """Every particle after every step.

    Attributes:
        records: their numbers, [T, n].
        ended: which were whole solutions, [T, n].
        log_weights: W, [T, n].
    """

    records: PathRecord
    ended: Bool[Array, "T n"]
    log_weights: Float[Array, "T n"]


class BackwardState(NamedTuple):
    """Sweeps done, the reference, and the sweep in the making.

    Attributes:
        done: whether the budget is spent.
        members: stored particles that are the result, [K].
        log_weights, log_potentials, finished: of the members, [K].
        log_evidence: of the first sweep.
        iteration: sweeps completed.
        sample: numbers of the reference.
        phase: FORWARD, KEEP (the last generation becomes members) or BACKWARD.
        sweep: the n particles of the present sweep.
        generations: all of them so far.
        reference: numbers of the present reference, or the next one while it is drawn.
        place: where it is stored.
        level: t, steps of the generation that offers pasts.
        pasts: its prefixes, as they repeat the future.
        bank: which of two groups of scratch slots they use.
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


def _at(tree: Any, index: Int[Array, ""]) -> Any:
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
        budget: N to (sweeps, n).
        endless: never done, members of the latest sweep only.
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
        none = jnp.zeros((max_steps, size), bool)
        return BackwardState(
            done=jnp.zeros((), bool),
            members=jnp.arange(num_particles, dtype=jnp.int32),
            log_weights=jnp.zeros(num_particles),
            log_potentials=jnp.zeros(num_particles),
            finished=jnp.zeros(num_particles, bool),
            log_evidence=jnp.zeros(()),
            iteration=zero,
            sample=summary(no_paths((), max_steps), score),
            phase=zero,
            sweep=csmc.begin(size, max_steps),
            generations=Generations(
                no_paths((max_steps, size), max_steps),
                none,
                jnp.zeros((max_steps, size)),
            ),
            reference=no_paths((), max_steps),
            place=zero,
            level=zero,
            pasts=Scoring(no_paths((size,), max_steps), none[0], zero),
            bank=zero,
            parents=rows,
            slots=rows,
        )

    def rows(state: BackwardState) -> Int[Array, "n"]:
        return jnp.arange(state.parents.shape[0], dtype=jnp.int32)

    def generation(state: BackwardState, t: Array) -> Int[Array, "n"]:
        """Where particles of t steps are stored."""
        start = state.members.shape[0] + jnp.maximum(t - 1, 0) * state.parents.shape[0]
        return start + rows(state)

    def scratch(state: BackwardState) -> Int[Array, "n"]:
        max_steps = state.generations.ended.shape[0]
        return generation(state, max_steps + 1 + state.bank)

    def home(state: BackwardState) -> Int[Array, "n"]:
        """Where this sweep's members are stored."""
        start = 0 if endless else state.iteration * state.parents.shape[0]
        return start + rows(state)

    @with_typed_key
    def ask(key: Key[Array, ""], state: BackwardState) -> tuple[BackwardState, Request]:
        t, conditional = state.sweep.smc.t, state.iteration > 0
        forked = csmc.fork(key, state.sweep, potential, conditional)
        first = (rows(state) == 0) & conditional
        forward = Request(
            parents=jnp.where(
                first, state.place, generation(state, t)[forked.smc.ancestors]
            ),
            slots=generation(state, t + 1),
            extend=~first & ~forked.smc.finished,
            # The reference is in every generation with as many steps as the others.
            depths=jnp.where(first, t + 1, t),
            sources=jnp.full_like(state.parents, -1),
        )
        keep = Request(
            parents=generation(state, t),
            slots=home(state),
            extend=jnp.zeros_like(first),
            depths=jnp.full_like(state.parents, WHOLE),
            sources=forward.sources,
        )
        starts = state.pasts.step == state.level
        backward = Request(
            parents=jnp.where(starts, generation(state, state.level), scratch(state)),
            slots=scratch(state),
            extend=state.pasts.possible,
            depths=keep.depths,
            sources=jnp.broadcast_to(state.place, first.shape),
        )
        request = _select(state.phase == KEEP, keep, backward)
        request = _select(state.phase == FORWARD, forward, request)
        sweep = _select(state.phase == FORWARD, forked, state.sweep)
        parents, slots = request.parents, request.slots
        return state._replace(sweep=sweep, parents=parents, slots=slots), request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: BackwardState, reply: Reply
    ) -> tuple[BackwardState, ExplorerInfo]:
        key_forward, key_backward = jax.random.split(key)
        forward, info = _forward(key_forward, state, reply)
        backward = _backward(key_backward, state, reply)
        level = state.reference.length - 1
        keep = _over(_offering(state._replace(phase=jnp.full_like(level, 2)), level))
        told = _select(state.phase == KEEP, keep, backward)
        told = _select(state.phase == FORWARD, forward, told)
        steps, scores = state.phase == FORWARD, state.phase == BACKWARD
        bad = jnp.where(scores, invalid(reply, state.pasts.possible), 0)
        return told, ExplorerInfo(
            state.parents,
            state.slots,
            jnp.where(steps, info.ess, ess(state.sweep.smc.log_weights)),
            jnp.where(steps, info.num_recoveries, 0),
            jnp.where(steps, info.num_invalid, bad),
        )

    def _forward(
        key: Key[Array, ""], state: BackwardState, reply: Reply
    ) -> tuple[BackwardState, Any]:
        """Particles one step longer; once all are whole, one of them is drawn."""
        sweep, info = csmc.weigh(
            state.sweep, reply, potential, state.iteration > 0, state.reference
        )
        smc, mine = sweep.smc, home(state)
        generations = jax.tree.map(
            lambda stack, new: stack.at[state.sweep.smc.t].set(new),
            state.generations,
            Generations(sweep.records, smc.finished, smc.log_weights),
        )
        state = state._replace(sweep=sweep, generations=generations)
        chosen = csmc.draw(key, smc.log_weights)
        evidence = jnp.where(state.iteration == 0, smc.log_evidence, state.log_evidence)
        ended = state._replace(
            log_weights=state.log_weights.at[mine].set(smc.log_weights),
            log_potentials=state.log_potentials.at[mine].set(smc.log_potentials),
            finished=state.finished.at[mine].set(smc.finished),
            log_evidence=evidence,
            phase=jnp.full_like(state.phase, KEEP),
            reference=_at(sweep.records, chosen),
            place=mine[chosen],
        )
        return _select(jnp.all(smc.finished), ended, state), info

    def _offering(state: BackwardState, level: Int[Array, ""]) -> BackwardState:
        """The generation of `level` steps offers pasts."""
        offer = _at(state.generations, jnp.maximum(level - 1, 0))
        length = state.reference.length
        pasts = scoring(offer.records, offer.ended, length, level)
        return state._replace(level=level, pasts=pasts)

    def _backward(
        key: Key[Array, ""], state: BackwardState, reply: Reply
    ) -> BackwardState:
        """The future repeated by one step; once it is whole, a past is drawn."""
        length = state.reference.length
        state = state._replace(pasts=repeat_step(state.pasts, reply, length))
        offer = _at(state.generations, state.level - 1)
        log_w = log_past_weights(
            state.pasts, offer.records, offer.log_weights, state.level, score
        )
        chosen = csmc.draw(key, log_w)
        joined = state._replace(
            reference=_at(state.pasts.joined, chosen),
            place=scratch(state)[chosen],
            bank=1 - state.bank,
        )
        # A reference of density zero is its own only past.
        joined = _select(all_dead(log_w), state, joined)
        drawn = _over(_offering(joined, state.level - 1))
        return _select(state.pasts.step >= length, drawn, state)

    def _over(state: BackwardState) -> BackwardState:
        """Whether the reference is drawn to its start, or needed no more."""
        size, kept = state.parents.shape[0], state.members.shape[0]
        last = jnp.asarray(not endless) & ((state.iteration + 1) * size >= kept)
        max_steps = state.generations.ended.shape[0]
        over = state._replace(
            done=last,
            iteration=state.iteration + 1,
            sample=summary(state.reference, score),
            phase=jnp.full_like(state.phase, FORWARD),
            sweep=csmc.begin(size, max_steps),
        )
        return _select(last | (state.level < 1), over, state)

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
        default_particles=SWEEP,
    )
