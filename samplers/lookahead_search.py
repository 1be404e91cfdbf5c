"""Lookahead search: beam search that ranks candidates by rollouts of k more steps.

One round keeps the best N / width prefixes, extends each in `width` ways, and extends
every new prefix by a temporary continuation of k steps. The rank of a prefix is the
reward at the end of its continuation. With k = 0 this is `beam_search(width)`, particle
for particle. With k >= T every prefix is ranked by a complete rollout, as in Monte
Carlo tree search with random rollouts and no memory. Like beam search it has no target:
it is a particle system with a deterministic allocation by a noisy rank.

References:
    [1] Snell et al. 2024, arXiv 2408.03314, Section 5.2. Differs: the paper rolls out
        at temperature zero, here the policy keeps its temperature. Finished beams keep
        competing, as in `beam_search`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request, undefined_ess
from tsi.picklable import picklable
from tsi.samplers.parts.allocation import effective_width, top_k_replicate
from tsi.samplers.parts.solutions import (
    count_invalid,
    equal_weights,
    rank_classes,
    read_potentials,
)
from tsi.step_keys import with_typed_key
from tsi.weights import weight_dtype


class LookaheadState(NamedTuple):
    """Candidates and their continuations.

    Attributes:
        done: whether every candidate has finished.
        members: the candidates' slots, 0 to N - 1.
        log_weights, log_potentials, finished: of the candidates, [N].
        log_evidence: 0; the method has no target.
        ahead: steps taken beyond the candidates; 0 if the next turn begins a round.
        ranks: log potential at the end of each continuation so far, [N].
        ended: which continuations have finished, [N].
        dead: whether every rank of the last round was -inf.
        parents, slots: of the current turn, [N].
    """

    done: Bool[Array, ""]
    members: Int[Array, "N"]
    log_weights: Float[Array, "N"]
    log_potentials: Float[Array, "N"]
    finished: Bool[Array, "N"]
    log_evidence: Float[Array, ""]
    ahead: Int[Array, ""]
    ranks: Float[Array, "N"]
    ended: Bool[Array, "N"]
    dead: Bool[Array, ""]
    parents: Int[Array, "N"]
    slots: Int[Array, "N"]


@picklable
def lookahead_search(
    width: int = 4, k: int = 1, *, select: str = "weighted_vote"
) -> Explorer:
    """Beam search with N / width beams that looks k steps ahead.

    It costs up to (k + 1) N rollouts; for an equal budget use N / (k + 1) particles.

    Args:
        width: continuations per beam; must divide N. Values above N mean N.
        k: number of steps of the lookahead.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: if k is negative.
    """
    if k < 0:
        raise ConfigurationError(
            f"lookahead_search needs k >= 0 steps of lookahead; got {k}."
        )
    allocate = top_k_replicate(width)

    def plan(num_particles: int, max_steps: int) -> Plan:
        effective_width(width, num_particles, "lookahead_search")
        num_stored = num_particles if k == 0 else 2 * num_particles
        return Plan(num_particles, num_stored, (k + 1) * max_steps)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> LookaheadState:
        zeros = jnp.zeros(num_particles, weight_dtype())
        places = jnp.arange(num_particles, dtype=jnp.int32)
        all_false = jnp.zeros(num_particles, bool)
        return LookaheadState(
            done=jnp.zeros((), bool),
            members=places,
            log_weights=zeros,
            log_potentials=zeros,
            finished=all_false,
            log_evidence=jnp.zeros((), weight_dtype()),
            ahead=jnp.zeros((), jnp.int32),
            # Before the first ranks, candidates keep their places.
            ranks=jnp.full(num_particles, -jnp.inf),
            ended=all_false,
            dead=jnp.zeros((), bool),
            parents=places,
            slots=places,
        )

    @with_typed_key
    def ask(
        key: Key[Array, ""], state: LookaheadState
    ) -> tuple[LookaheadState, Request]:
        size = state.members.shape[0]
        round_begins = state.ahead == 0
        survivors = allocate(key, state.ranks, size)
        continuation_slots = state.members + size
        parents = jnp.where(state.ahead == 1, state.members, continuation_slots)
        parents = jnp.where(round_begins, survivors, parents)
        slots = jnp.where(round_begins, state.members, continuation_slots)
        survivors = jnp.where(round_begins, survivors, state.members)
        finished = state.finished[survivors]
        ended = jnp.where(round_begins, finished, state.ended)
        state = state._replace(
            log_potentials=state.log_potentials[survivors],
            finished=finished,
            ended=ended,
            parents=parents,
            slots=slots,
        )
        return state, Request(parents, slots, ~ended)

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: LookaheadState, reply: Reply
    ) -> tuple[LookaheadState, ExplorerInfo]:
        round_begins, step_mask, was_dead = state.ahead == 0, ~state.ended, state.dead
        extends_candidate = round_begins & step_mask
        log_potentials = jnp.where(
            extends_candidate, read_potentials(reply), state.log_potentials
        )
        finished = state.finished | (extends_candidate & reply.finished)
        ranks = jnp.where(round_begins, log_potentials, state.ranks)
        ranks = jnp.where(step_mask, read_potentials(reply), ranks)
        ended = state.ended | (step_mask & reply.finished)
        complete = (state.ahead == k) | jnp.all(ended)
        classes = rank_classes(log_potentials, finished)
        all_weights_zero = jnp.where(complete, jnp.all(ranks == -jnp.inf), state.dead)
        state = state._replace(
            done=jnp.all(finished),
            log_weights=equal_weights(classes == jnp.max(classes)),
            log_potentials=log_potentials,
            finished=finished,
            ahead=jnp.where(complete, 0, state.ahead + 1),
            ranks=ranks,
            ended=ended,
            dead=all_weights_zero,
        )
        info = ExplorerInfo(
            parents=state.parents,
            slots=state.slots,
            ess=undefined_ess(),
            num_recoveries=(all_weights_zero & ~was_dead).astype(jnp.int32),
            num_invalid=count_invalid(reply, step_mask),
        )
        return state, info

    return Explorer(plan, init, ask, tell, None, select)
