"""Lookahead search: beam search whose candidates are judged by what may come of them.

One round: keep the best N / width prefixes, extend each `width` ways, extend every new
prefix k steps further on scrap paper, and let the reward at the end of that, or where
it finished, be the rank of the prefix. With k = 0 it is `beam_search(width)`, particle
for particle; with k >= T every prefix is judged by a whole rollout, as in Monte Carlo
tree search with random rollouts and no memory. Like beam search it is a search without
a target: a particle system with a deterministic allocation, by a noisy rank.

References:
    [1] Snell et al. 2024, arXiv 2408.03314, Section 5.2. Differs: the paper rolls out
        at temperature zero, here the policy does at its own temperature; and finished
        beams keep their place, as in `beam_search`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request, no_size
from tsi.picklable import picklable
from tsi.samplers.parts.allocation import effective_width, top_k_replicate
from tsi.samplers.parts.solutions import (
    equal_weights,
    not_numbers,
    rank_classes,
    read_potentials,
)
from tsi.step_keys import with_typed_key
from tsi.weights import weight_dtype


class LookaheadState(NamedTuple):
    """Candidates and how far their continuations are.

    Attributes:
        done: whether every candidate has finished.
        members: the candidates' slots, 0 to N - 1.
        log_weights, log_potentials, finished: of the candidates, [N].
        log_evidence: 0; nothing is targeted.
        ahead: steps taken beyond the candidates; 0 where a round is to begin.
        ranks: log potential at the end of each continuation so far, [N].
        ended: continuations that have finished, [N].
        dead: whether every rank of the last round was -inf.
        parents, slots: of the turn under way, [N].
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

    It costs up to k + 1 times N rollouts: for an equal budget give it N / (k + 1).

    Args:
        width: continuations of each beam; if N is smaller, N. Must divide N.
        k: steps of the look-ahead.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: if k is negative.
    """
    if k < 0:
        raise ConfigurationError(
            f"lookahead_search cannot look {k} steps ahead. Give k zero or more."
        )
    allocate = top_k_replicate(width)

    def plan(num_particles: int, max_steps: int) -> Plan:
        effective_width(width, num_particles, "lookahead_search")
        stored = num_particles if k == 0 else 2 * num_particles
        return Plan(num_particles, stored, (k + 1) * max_steps)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> LookaheadState:
        zeros = jnp.zeros(num_particles, weight_dtype())
        places = jnp.arange(num_particles, dtype=jnp.int32)
        none = jnp.zeros(num_particles, bool)
        return LookaheadState(
            done=jnp.zeros((), bool),
            members=places,
            log_weights=zeros,
            log_potentials=zeros,
            finished=none,
            log_evidence=jnp.zeros((), weight_dtype()),
            ahead=jnp.zeros((), jnp.int32),
            # Without ranks candidates keep their places: all are empty to begin with.
            ranks=jnp.full(num_particles, -jnp.inf),
            ended=none,
            dead=jnp.zeros((), bool),
            parents=places,
            slots=places,
        )

    @with_typed_key
    def ask(
        key: Key[Array, ""], state: LookaheadState
    ) -> tuple[LookaheadState, Request]:
        size = state.members.shape[0]
        begins = state.ahead == 0
        kept = allocate(key, state.ranks, size)
        scrap = state.members + size
        parents = jnp.where(state.ahead == 1, state.members, scrap)
        parents = jnp.where(begins, kept, parents)
        slots = jnp.where(begins, state.members, scrap)
        kept = jnp.where(begins, kept, state.members)
        finished = state.finished[kept]
        ended = jnp.where(begins, finished, state.ended)
        state = state._replace(
            log_potentials=state.log_potentials[kept],
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
        begins, took, was_dead = state.ahead == 0, ~state.ended, state.dead
        own = begins & took
        log_potentials = jnp.where(own, read_potentials(reply), state.log_potentials)
        finished = state.finished | (own & reply.finished)
        ranks = jnp.where(begins, log_potentials, state.ranks)
        ranks = jnp.where(took, read_potentials(reply), ranks)
        ended = state.ended | (took & reply.finished)
        complete = (state.ahead == k) | jnp.all(ended)
        classes = rank_classes(log_potentials, finished)
        dead = jnp.where(complete, jnp.all(ranks == -jnp.inf), state.dead)
        state = state._replace(
            done=jnp.all(finished),
            log_weights=equal_weights(classes == jnp.max(classes)),
            log_potentials=log_potentials,
            finished=finished,
            ahead=jnp.where(complete, 0, state.ahead + 1),
            ranks=ranks,
            ended=ended,
            dead=dead,
        )
        info = ExplorerInfo(
            parents=state.parents,
            slots=state.slots,
            ess=no_size(),
            num_recoveries=(dead & ~was_dead).astype(jnp.int32),
            num_invalid=not_numbers(reply, took),
        )
        return state, info

    return Explorer(plan, init, ask, tell, None, select)
