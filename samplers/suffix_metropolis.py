r"""Metropolis-Hastings that draws the end of a solution afresh.

The target is pi(x) \propto p(x)^power exp(s(x)). A move cuts the present path x, of
L(x) steps, at a uniform place c in {0, ..., L(x) - 1}, lets the proposal q write a new
end and accepts the result x' with probability min(1, A),

    A = pi(x') q(x_{>c} | x_{<=c}) L(x) / (pi(x) q(x'_{>c} | x_{<=c}) L(x')).

The last factor is the ratio of the chances to cut there: dropping it (`lengths=False`)
favours short paths. Numbers of the kept steps are remembered, so a move costs its new
steps only.

Power sampling was published in blocks: prefixes of B, 2B, ... steps, sampled in turn.
As printed, texts are sequences of one length, the block's, in which nothing follows the
end: c is uniform over all of it, a cut beyond the end moves nothing, and A has no ratio
of lengths because there is none. As run by the released code, c is uniform over the
present length, a proposal may not be longer than that and is compared with as much of
the present path as it is long itself, and the chain stops after the first block at
whose end it has ended.

Start: C rollouts are weighed by pi / q, resampled, and begin C chains. A kernel that
leaves pi invariant keeps what is properly weighted properly weighted, so for every
number of moves

    E[ mean initial weight * phi(state) ] = sum_x p(x)^power exp(s(x)) phi(x),

which makes an unfinished chain exact in the sense in which a particle filter is.

References:
    [1] Faria et al. 2024, QUEST, arXiv 2406.00049 (Gibbs targets).
    [2] Karan and Du 2025, arXiv 2510.14901, Algorithm 1 (power targets, block-wise).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request, no_size
from tsi.picklable import picklable
from tsi.samplers.parts.path_record import (
    ChainSample,
    PathRecord,
    extend_record,
    invalid,
    log_importance,
    log_ratio,
    no_paths,
    summary,
)
from tsi.samplers.parts.potentials import Potential
from tsi.samplers.parts.resampling import systematic
from tsi.samplers.parts.suffix_move import draw_cut, truncate
from tsi.step_keys import with_typed_key
from tsi.weights import log_mean_exp


class Blocks(NamedTuple):
    """Power sampling as published: prefixes in turn, an equal share of moves each.

    Attributes:
        steps: B, of one block.
        released: as the code runs it, not as printed.
    """

    steps: int
    released: bool = False


class MetropolisState(NamedTuple):
    """Chains and their proposals in the making.

    Attributes:
        done: whether the budget is spent.
        members: stored prefixes that are samples, [K].
        log_weights, log_potentials, finished: of the members, [K].
        log_evidence: log of the mean initial weight.
        iteration: moves completed.
        moves: that a stage has.
        stage: which block of the path is being sampled.
        growing: the present paths are being extended to the stage's length.
        limits: steps to which they are, [C].
        over: chains that have stopped before the others, [C].
        slots: where each chain's present path is stored, [C].
        current: its numbers.
        ended: whether it is a whole solution, [C].
        cut: steps that the proposal keeps, [C].
        proposal: its numbers so far.
        ending: whether the proposal is a whole solution, [C].
        waiting: proposals that are complete, [C].
        accepted: moves accepted so far, of all chains; those that change nothing, by a
            cut beyond the end, are among them.
        sample: numbers of the present states, without the axis C if there is one chain.
    """

    done: Bool[Array, ""]
    members: Int[Array, "K"]
    log_weights: Float[Array, "K"]
    log_potentials: Float[Array, "K"]
    finished: Bool[Array, "K"]
    log_evidence: Float[Array, ""]
    iteration: Int[Array, ""]
    moves: Int[Array, ""]
    stage: Int[Array, ""]
    growing: Bool[Array, ""]
    limits: Int[Array, "C"]
    over: Bool[Array, "C"]
    slots: Int[Array, "C"]
    current: PathRecord
    ended: Bool[Array, "C"]
    cut: Int[Array, "C"]
    proposal: PathRecord
    ending: Bool[Array, "C"]
    waiting: Bool[Array, "C"]
    accepted: Int[Array, ""]
    sample: ChainSample


@picklable
def suffix_metropolis(
    potential: Potential,
    *,
    power: float = 1.0,
    num_chains: int = 1,
    lengths: bool = True,
    blocks: Blocks | None = None,
    endless: bool = False,
    select: str = "posterior",
) -> Explorer:
    """Suffix-resampling Metropolis-Hastings over reasoning steps.

    With N rollouts each of C chains makes N / C - 1 moves, and all N states are the
    result; a rejected move repeats a state.

    Args:
        potential: its path weight is exp(s(x)).
        power: of the policy in the target.
        num_chains: C; must divide N.
        lengths: False drops L(x) / L(x') from the acceptance; blocks never have it.
        blocks: sample prefixes of B, 2B, ... steps in turn, and keep the last state
            only. None for whole paths.
        endless: never done, and only the present states are kept: for numpyro's MCMC.
        select: how one answer is chosen.

    Returns:
        An `Explorer`; it claims a target unless lengths are dropped or blocks used.

    Raises:
        ConfigurationError: for numbers that are not positive, and by `plan` where the
            moves are fewer than the blocks.
    """
    positive = 0.0 < power < math.inf
    if num_chains < 1 or not positive or (blocks is not None and blocks.steps < 1):
        raise ConfigurationError(
            f"suffix_metropolis needs a positive number of chains, power and block; "
            f"got num_chains={num_chains}, power={power}, blocks={blocks}."
        )
    score = potential.path_log_weight
    if score is None:
        raise ConfigurationError(
            "suffix_metropolis needs a potential with a path weight; `latest` is a "
            "rank. Use product, telescoping, terminal or uniform."
        )
    pair = endless or blocks is not None
    released = blocks is not None and blocks.released
    printed = blocks is not None and not blocks.released

    def num_stages(max_steps: int) -> int:
        return 1 if blocks is None else -(-max_steps // blocks.steps)

    def first_limit(max_steps: int) -> int:
        return max_steps if blocks is None else min(blocks.steps, max_steps)

    def moves_of_stage(num_particles: int, max_steps: int) -> int:
        moves = num_particles // num_chains - 1
        stages = num_stages(max_steps)
        return moves // stages

    def plan(num_particles: int, max_steps: int) -> Plan:
        if num_particles % num_chains:
            raise ConfigurationError(
                f"{num_particles} rollouts cannot be shared by {num_chains} chains. "
                "Choose a number that is a multiple of the chains."
            )
        stages, each = num_stages(max_steps), num_particles // num_chains
        if stages > each - 1 > 0:
            assert blocks is not None  # for the type checker: else there is one stage
            raise ConfigurationError(
                f"{num_particles} rollouts give each of {num_chains} chains {each - 1} "
                f"moves, and {max_steps} steps are {stages} blocks of {blocks.steps}: "
                "not one move for each block. Use at least "
                f"{num_chains * (stages + 1)} rollouts, or blocks of at least "
                f"{-(-max_steps // (each - 1))} steps."
            )
        moves = moves_of_stage(num_particles, max_steps) * stages
        stored = 2 * num_chains if pair else num_particles
        return Plan(num_chains, stored, (moves + 1) * max_steps)

    @with_typed_key
    def init(
        key: Key[Array, ""], num_particles: int, max_steps: int
    ) -> MetropolisState:
        kept = num_chains if pair else num_particles
        chains = jnp.arange(num_chains, dtype=jnp.int32)
        empty = no_paths((num_chains,), max_steps)
        none = jnp.zeros(num_chains, bool)
        return MetropolisState(
            done=jnp.zeros((), bool),
            members=jnp.arange(kept, dtype=jnp.int32) % num_chains,
            log_weights=jnp.zeros(kept),
            log_potentials=jnp.zeros(kept),
            finished=jnp.zeros(kept, bool),
            log_evidence=jnp.zeros(()),
            iteration=jnp.zeros((), jnp.int32),
            moves=jnp.asarray(moves_of_stage(num_particles, max_steps), jnp.int32),
            stage=jnp.zeros((), jnp.int32),
            growing=jnp.ones((), bool),
            limits=jnp.full(num_chains, first_limit(max_steps), jnp.int32),
            over=none,
            slots=chains,
            current=empty,
            ended=none,
            cut=jnp.zeros(num_chains, jnp.int32),
            proposal=empty,
            ending=none,
            waiting=none,
            accepted=jnp.zeros((), jnp.int32),
            sample=_summary(empty),
        )

    def goal(state: MetropolisState) -> Int[Array, "C"]:
        """Steps to which paths are written."""
        if released:
            return jnp.where(state.growing, state.limits, state.current.length)
        return state.limits

    def free(state: MetropolisState) -> Int[Array, "C"]:
        """Where the proposals of this move are stored."""
        chains = jnp.arange(num_chains, dtype=jnp.int32)
        if pair:
            # Chains that start from one rollout share its place.
            taken = jnp.zeros(2 * num_chains, bool).at[state.slots].set(True)
            return jnp.argsort(taken, stable=True)[:num_chains].astype(jnp.int32)
        return chains + num_chains * (state.iteration + 1)

    @with_typed_key
    def ask(
        key: Key[Array, ""], state: MetropolisState
    ) -> tuple[MetropolisState, Request]:
        begins = ~state.growing & jnp.all(state.proposal.length == 0)
        drawn = draw_cut(key, state.limits if printed else state.current.length)
        beyond = begins & (drawn >= state.current.length)
        cut = jnp.where(begins, jnp.minimum(drawn, state.current.length), state.cut)
        kept = truncate(state.current, cut)
        proposal = jax.tree.map(
            lambda new, old: jnp.where(begins, new, old), kept, state.proposal
        )
        own = free(state)
        parents = jnp.where(state.growing | begins, state.slots, own)
        # Nothing is cut but the present path, once, where the proposal leaves it.
        depths = jnp.where(begins, cut, jnp.iinfo(jnp.int32).max)
        reached = state.current.length >= goal(state)
        resting = jnp.where(state.growing, state.ended | reached, state.waiting)
        resting = jnp.where(begins, beyond | state.over, resting)
        request = Request(
            parents=parents,
            slots=jnp.where(state.growing, state.slots, own),
            extend=~resting,
            depths=depths,
        )
        ending = jnp.where(beyond, state.ended, state.ending)
        state = state._replace(cut=cut, proposal=proposal, ending=ending)
        return state._replace(waiting=resting), request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: MetropolisState, reply: Reply
    ) -> tuple[MetropolisState, ExplorerInfo]:
        key_start, key_accept = jax.random.split(key)
        took = ~state.waiting
        rows = jax.tree.map(
            lambda a, b: jnp.where(state.growing, a, b), state.current, state.proposal
        )
        rows = extend_record(rows, reply, took)
        before = jnp.where(state.growing, state.ended, state.ending)
        ended_now = jnp.where(took, reply.finished, before)
        complete = state.waiting | ended_now | (rows.length >= goal(state))
        all_complete = jnp.all(complete)

        grown = _grown(state, rows, ended_now, all_complete, key_start)
        moved = _moved(state, rows, ended_now, complete, all_complete, key_accept)
        told = jax.tree.map(lambda a, b: jnp.where(state.growing, a, b), grown, moved)
        told = _scheduled(told, state, all_complete)
        parents = jnp.where(state.growing, state.slots, free(state))
        lost = ~jnp.isfinite(told.log_evidence) & jnp.isfinite(state.log_evidence)
        info = ExplorerInfo(
            parents=parents,
            slots=parents,
            ess=no_size(),
            num_recoveries=lost.astype(jnp.int32),
            num_invalid=invalid(reply, took),
        )
        return told, info

    def _grown(
        state: MetropolisState,
        rows: PathRecord,
        ended: Bool[Array, "C"],
        all_complete: Bool[Array, ""],
        key: Key[Array, ""],
    ) -> MetropolisState:
        """Rollouts one step longer; complete for the first time, they are resampled."""
        # Blocks are published without a weighted start, and rows must stay apart to
        # grow on.
        first = all_complete & (state.stage == 0) & (blocks is None)
        log_w, largest = log_importance(rows, score, power)
        starts = systematic(key, log_w, num_chains)
        starts = jnp.where(first, starts, jnp.arange(num_chains, dtype=jnp.int32))
        rows = jax.tree.map(lambda leaf: leaf[starts], rows)
        evidence = log_mean_exp(log_w) + largest
        evidence = jnp.where(first & lengths, evidence, state.log_evidence)
        return state._replace(
            current=rows,
            ended=ended[starts],
            slots=state.slots[starts],
            log_evidence=evidence,
            growing=~all_complete,
            waiting=jnp.zeros(num_chains, bool),
        )

    def _moved(
        state: MetropolisState,
        rows: PathRecord,
        ended: Bool[Array, "C"],
        complete: Bool[Array, "C"],
        all_complete: Bool[Array, ""],
        key: Key[Array, ""],
    ) -> MetropolisState:
        """Proposals one step longer; once all are complete, they are judged."""
        compared = state.current
        if released:
            shorter = jnp.minimum(compared.length, rows.length)
            compared = compared._replace(length=shorter)
        log_accept = log_ratio(rows, compared, score, power, state.cut)
        if lengths and blocks is None:
            log_accept += jnp.log(state.current.length) - jnp.log(rows.length)
        uniform = jax.random.uniform(key, (num_chains,))
        accept = all_complete & ~state.over & (jnp.log(uniform) < log_accept)

        def chosen(new: Array, old: Array) -> Array:
            return jnp.where(accept.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        emptied = jax.tree.map(
            lambda leaf: jnp.where(all_complete, jnp.zeros_like(leaf), leaf), rows
        )
        return state._replace(
            current=jax.tree.map(chosen, rows, state.current),
            ended=chosen(ended, state.ended),
            slots=chosen(free(state), state.slots),
            proposal=emptied,
            ending=ended & ~all_complete,
            waiting=complete & ~all_complete,
            accepted=state.accepted + jnp.sum(accept, dtype=jnp.int32),
            iteration=state.iteration + all_complete,
        )

    def _scheduled(
        told: MetropolisState, state: MetropolisState, all_complete: Bool[Array, ""]
    ) -> MetropolisState:
        """Keep a completed state as a sample, and see whether it was the last."""
        kept = told.members.shape[0]
        now = summary(told.current, score, power).log_potential
        # From this iteration on: later ones are overwritten when their turn comes.
        group = jnp.arange(kept) // num_chains
        since = all_complete & ((group >= told.iteration) | pair)

        def spread(new: Array, old: Array) -> Array:
            tiled = jnp.tile(new, kept // num_chains)
            return jnp.where(since, tiled, old)

        told = told._replace(
            members=spread(told.slots, told.members),
            log_potentials=spread(now, told.log_potentials),
            finished=spread(told.ended, told.finished),
            sample=_summary(told.current),
        )
        if endless:
            return told
        stages = num_stages(told.current.log_potentials.shape[-1])
        stage_over = told.iteration >= (told.stage + 1) * told.moves
        stage_over = all_complete & stage_over
        over = told.over
        limits = told.limits
        if blocks is not None:
            length = told.current.length if released else limits
            longest = told.current.log_potentials.shape[-1]
            wider = jnp.minimum(length + blocks.steps, longest)
            limits = jnp.where(stage_over, wider, limits)
        if released:
            over = over | (stage_over & told.ended)
        last_stage = (told.stage + 1 >= stages) | jnp.all(over)
        return told._replace(
            limits=limits,
            over=over,
            done=stage_over & last_stage,
            growing=told.growing | (stage_over & ~last_stage),
            stage=told.stage + (stage_over & ~last_stage),
        )

    def _summary(paths: PathRecord) -> ChainSample:
        sample = summary(paths, score, power)
        return jax.tree.map(lambda leaf: leaf[0] if num_chains == 1 else leaf, sample)

    return Explorer(
        plan,
        init,
        ask,
        tell,
        score if lengths and blocks is None else None,
        select,
        needs=("truncate",) if power == 1.0 else ("truncate", "log_prob"),
        power=power,
        endless=endless,
        chain=True,
        acceptance=lambda state: state.accepted / (state.iteration * num_chains),
        default_particles=num_chains,
    )
