"""Step-level beam search: finished solutions leave the beam and are collected.

Each of B1 = N / width beams samples `width` = B2 next steps; of these N candidates the
finished ones are put aside and the B1 best unfinished ones are the next beams. The
answer is the finished solution of the highest value. The value head's scale does not
matter, only ranks do: AlphaMath's value in [-1, 1] is 2 r - 1 of a reward r, and a log
potential ranks as either does.

In the language of particles it is `beam_search(width)` with the finished kept apart:
where all solutions have the same number of steps the two are equal, particle for
particle.

"full_width", the default: all that finish are put aside, B1 beams go on, and the first
step is sampled N times. "released": candidates compete finished or not, a finished one
among the best is put aside and takes its beam with it, others that finished are lost,
and the first step is sampled B2 times.

References:
    [1] Chen et al. 2024, AlphaMath, arXiv 2405.03553, Section 3.3, and its code,
        MARIO-Math-Reasoning/Super_MARIO, agents/step_beam.py. There a solution that is
        cut at the depth limit, or has no answer, takes its beam with it and is not put
        aside; here it is, with a reward of zero.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import UnknownNameError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request, no_size
from tsi.picklable import picklable
from tsi.samplers.parts.allocation import effective_width
from tsi.samplers.parts.solutions import (
    best_first,
    best_solutions,
    no_solutions,
    not_numbers,
    read_potentials,
)
from tsi.step_keys import with_typed_key
from tsi.weights import weight_dtype

VARIANTS = ("full_width", "released")


class StepBeamState(NamedTuple):
    """Beams, and the solutions put aside.

    Attributes:
        done: whether no beam is left.
        members, log_weights, log_potentials, finished: the result, [N].
        log_evidence: 0; nothing is targeted.
        beams: slots of the prefixes to extend, [B1].
        num_beams: how many of them there are.
        max_beams: how many there may be.
        collected: slots of solutions put aside, [M].
        told: log potentials by slot, [M].
        ended: whether it is a whole solution, by slot, [M].
        dead: whether no beam and no solution put aside has a reward above zero.
        parents, slots: of the turn under way, [N].
        took: rows that take a step in it, [N].
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
    told: Float[Array, "M"]
    ended: Bool[Array, "M"]
    dead: Bool[Array, ""]
    parents: Int[Array, "N"]
    slots: Int[Array, "N"]
    took: Bool[Array, "N"]


@picklable
def step_beam_search(
    width: int = 4, *, variant: str = "full_width", select: str = "argmax"
) -> Explorer:
    """N / width beams of `width` samples, at the cost of at most N rollouts.

    Args:
        width: B2, samples of each beam; if N is smaller, N. Must divide N.
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
        # N solutions put aside and N candidates: one's parent may be overwritten, for
        # parents are read before children are written.
        return Plan(num_particles, 2 * num_particles, max_steps)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> StepBeamState:
        copies = effective_width(width, num_particles, "step_beam")
        num_beams = num_particles // copies
        places = jnp.arange(num_particles, dtype=jnp.int32)
        none = jnp.zeros(2 * num_particles, bool)
        return StepBeamState(
            done=jnp.zeros((), bool),
            **no_solutions(num_particles)._asdict(),
            log_evidence=jnp.zeros((), weight_dtype()),
            beams=places[:num_beams],
            # The code expands the question once, as a beam of its own.
            num_beams=jnp.asarray(1 if released else num_beams, jnp.int32),
            max_beams=jnp.asarray(num_beams, jnp.int32),
            collected=none,
            told=jnp.zeros(2 * num_particles, weight_dtype()),
            ended=none,
            dead=jnp.zeros((), bool),
            parents=places,
            slots=places,
            took=places < (copies if released else num_particles),
        )

    @with_typed_key
    def ask(key: Key[Array, ""], state: StepBeamState) -> tuple[StepBeamState, Request]:
        size, stored = state.members.shape[0], state.collected.shape[0]
        copies = size // state.beams.shape[0]
        took = jnp.repeat(jnp.arange(state.beams.shape[0]) < state.num_beams, copies)
        parents = jnp.repeat(state.beams, copies)
        free = jnp.argsort(state.collected, stable=True)[:size].astype(jnp.int32)
        slots = jnp.where(took, free, stored)
        state = state._replace(parents=parents, slots=slots, took=took)
        return state, Request(parents, slots, took)

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: StepBeamState, reply: Reply
    ) -> tuple[StepBeamState, ExplorerInfo]:
        size, was_dead = state.members.shape[0], state.dead
        numbers = state.told.at[state.slots].set(read_potentials(reply), mode="drop")
        ended = state.ended.at[state.slots].set(reply.finished, mode="drop")
        fresh = jnp.zeros_like(ended).at[state.slots].set(True, mode="drop")
        chosen = _best(fresh, numbers, state.max_beams) if released else fresh
        collected = state.collected | (chosen & ended)
        collected = _best(collected, numbers, size)
        alive = numbers > -jnp.inf
        # A prefix that cannot be is extended only where nothing else is left.
        hope = jnp.any(alive & (collected | (chosen & ~ended)))
        going_on = chosen & ~ended & (alive | ~hope)
        ended_now = jnp.sum(chosen & ended, dtype=jnp.int32)
        max_beams = state.max_beams - (ended_now if released else 0)
        ranked = best_first(numbers, going_on.astype(jnp.int32))
        num_beams = jnp.minimum(jnp.sum(going_on, dtype=jnp.int32), max_beams)
        result = best_solutions(numbers, ended, collected | (fresh & ~ended), size)
        state = state._replace(
            **result._asdict(),
            done=num_beams == 0,
            beams=ranked[: state.beams.shape[0]],
            num_beams=num_beams,
            max_beams=max_beams,
            collected=collected,
            told=numbers,
            ended=ended,
            dead=~hope,
        )
        info = ExplorerInfo(
            parents=state.parents,
            slots=state.slots,
            ess=no_size(),
            num_recoveries=(~hope & ~was_dead).astype(jnp.int32),
            num_invalid=not_numbers(reply, state.took),
        )
        return state, info

    return Explorer(plan, init, ask, tell, None, select)


def _best(
    among: Bool[Array, "M"], log_potentials: Float[Array, "M"], most: Array | int
) -> Bool[Array, "M"]:
    """The best `most` of those marked, by log potential."""
    order = best_first(log_potentials, among.astype(jnp.int32))
    places = jnp.arange(among.shape[0])
    return among & jnp.zeros_like(among).at[order].set(places < most)
