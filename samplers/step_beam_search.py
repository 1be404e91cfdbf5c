"""Step-level beam search, which collects finished solutions outside the beam.

Each of B1 = N / width beams samples `width` = B2 next steps. Of these N candidates, the
finished ones are collected, and the B1 best unfinished ones are the next beams. The
answer is the finished solution of the highest value. Only ranks matter, not the scale
of the value head: AlphaMath's value in [-1, 1] is 2 r - 1 for a reward r, and log
potentials give the same ranks.

As a particle method, this is `beam_search(width)` with finished solutions kept
separately. If all solutions have the same number of steps, the two methods are equal,
particle for particle.

Variants: "full_width", the default: all finished candidates are collected, B1 beams
continue, and the first step is sampled N times. "released": finished and unfinished
candidates compete. A finished candidate among the best is collected and its beam ends;
other finished candidates are dropped. The first step is sampled B2 times.

References:
    [1] Chen et al. 2024, AlphaMath, arXiv 2405.03553, Section 3.3, and its code,
        MARIO-Math-Reasoning/Super_MARIO, agents/step_beam.py. In the code a solution
        that is truncated at the depth limit, or has no answer, ends its beam and is not
        collected; here it is collected with a reward of zero.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import UnknownNameError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request, undefined_ess
from tsi.picklable import picklable
from tsi.samplers.parts.allocation import effective_width
from tsi.samplers.parts.solutions import (
    best_solutions,
    count_invalid,
    empty_solutions,
    read_potentials,
    sort_best_first,
)
from tsi.step_keys import with_typed_key
from tsi.weights import weight_dtype

VARIANTS = ("full_width", "released")


class StepBeamState(NamedTuple):
    """Beams and collected solutions.

    Attributes:
        done: whether no beam is left.
        members, log_weights, log_potentials, finished: the result, [N].
        log_evidence: 0; the method has no target.
        beams: slots of the prefixes to extend, [B1].
        num_beams: current number of beams.
        max_beams: the maximum number of beams that may continue.
        collected: which slots hold collected solutions, [M].
        slot_potentials: log potentials by slot, [M].
        ended: which slots hold complete solutions, [M].
        dead: whether no beam and no collected solution has a reward above zero.
        parents, slots: of the current turn, [N].
        step_mask: rows that take a step in this turn, [N].
    """

    done: Bool[Array, ""]
    members: Int[Array, "N"]
    log_weights: Float[Array, "N"]
    log_potentials: Float[Array, "N"]
    finished: Bool[Array, "N"]
    log_evidence: Float[Array, ""]
    beams: Int[Array, "B1"]
    num_beams: Int[Array, ""]
    max_beams: Int[Array, ""]
    collected: Bool[Array, "M"]
    slot_potentials: Float[Array, "M"]
    ended: Bool[Array, "M"]
    dead: Bool[Array, ""]
    parents: Int[Array, "N"]
    slots: Int[Array, "N"]
    step_mask: Bool[Array, "N"]


@picklable
def step_beam_search(
    width: int = 4, *, variant: str = "full_width", select: str = "argmax"
) -> Explorer:
    """N / width beams of `width` samples, at the cost of at most N rollouts.

    Args:
        width: B2, samples per beam; must divide N. Values above N mean N.
        variant: "full_width" or "released".
        select: how one answer is chosen.

    Raises:
        UnknownNameError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise UnknownNameError("step_beam variant", variant, VARIANTS)
    released = variant == "released"

    def plan(num_particles: int, max_steps: int) -> Plan:
        effective_width(width, num_particles, "step_beam")
        # N collected solutions and N candidates. A child may overwrite a parent, since
        # parents are read before children are written.
        return Plan(num_particles, 2 * num_particles, max_steps)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> StepBeamState:
        copies = effective_width(width, num_particles, "step_beam")
        num_beams = num_particles // copies
        places = jnp.arange(num_particles, dtype=jnp.int32)
        all_false = jnp.zeros(2 * num_particles, bool)
        return StepBeamState(
            done=jnp.zeros((), bool),
            **empty_solutions(num_particles)._asdict(),
            log_evidence=jnp.zeros((), weight_dtype()),
            beams=places[:num_beams],
            # The released code expands the question as a single beam.
            num_beams=jnp.asarray(1 if released else num_beams, jnp.int32),
            max_beams=jnp.asarray(num_beams, jnp.int32),
            collected=all_false,
            slot_potentials=jnp.zeros(2 * num_particles, weight_dtype()),
            ended=all_false,
            dead=jnp.zeros((), bool),
            parents=places,
            slots=places,
            step_mask=places < (copies if released else num_particles),
        )

    @with_typed_key
    def ask(key: Key[Array, ""], state: StepBeamState) -> tuple[StepBeamState, Request]:
        size, num_stored = state.members.shape[0], state.collected.shape[0]
        copies = size // state.beams.shape[0]
        step_mask = jnp.repeat(
            jnp.arange(state.beams.shape[0]) < state.num_beams, copies
        )
        parents = jnp.repeat(state.beams, copies)
        free_slots = jnp.argsort(state.collected, stable=True)[:size].astype(jnp.int32)
        slots = jnp.where(step_mask, free_slots, num_stored)
        state = state._replace(parents=parents, slots=slots, step_mask=step_mask)
        return state, Request(parents, slots, step_mask)

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: StepBeamState, reply: Reply
    ) -> tuple[StepBeamState, ExplorerInfo]:
        size, was_dead = state.members.shape[0], state.dead
        potentials = state.slot_potentials.at[state.slots].set(
            read_potentials(reply), mode="drop"
        )
        ended = state.ended.at[state.slots].set(reply.finished, mode="drop")
        is_new = jnp.zeros_like(ended).at[state.slots].set(True, mode="drop")
        is_selected = (
            _select_best(is_new, potentials, state.max_beams) if released else is_new
        )
        collected = state.collected | (is_selected & ended)
        collected = _select_best(collected, potentials, size)
        alive = potentials > -jnp.inf
        # A prefix of reward zero is extended only if no other is left.
        any_alive = jnp.any(alive & (collected | (is_selected & ~ended)))
        continues = is_selected & ~ended & (alive | ~any_alive)
        num_ended = jnp.sum(is_selected & ended, dtype=jnp.int32)
        max_beams = state.max_beams - (num_ended if released else 0)
        ranked = sort_best_first(potentials, continues.astype(jnp.int32))
        num_beams = jnp.minimum(jnp.sum(continues, dtype=jnp.int32), max_beams)
        result = best_solutions(potentials, ended, collected | (is_new & ~ended), size)
        state = state._replace(
            **result._asdict(),
            done=num_beams == 0,
            beams=ranked[: state.beams.shape[0]],
            num_beams=num_beams,
            max_beams=max_beams,
            collected=collected,
            slot_potentials=potentials,
            ended=ended,
            dead=~any_alive,
        )
        info = ExplorerInfo(
            parents=state.parents,
            slots=state.slots,
            ess=undefined_ess(),
            num_recoveries=(~any_alive & ~was_dead).astype(jnp.int32),
            num_invalid=count_invalid(reply, state.step_mask),
        )
        return state, info

    return Explorer(plan, init, ask, tell, None, select)


def _select_best(
    marked: Bool[Array, "M"], log_potentials: Float[Array, "M"], max_count: Array | int
) -> Bool[Array, "M"]:
    """The `max_count` best of the marked slots, by log potential."""
    order = sort_best_first(log_potentials, marked.astype(jnp.int32))
    places = jnp.arange(marked.shape[0])
    return marked & jnp.zeros_like(marked).at[order].set(places < max_count)
