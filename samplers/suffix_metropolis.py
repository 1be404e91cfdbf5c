r"""Metropolis-Hastings that draws the end of a solution afresh.

The target is pi(x) \propto p(x)^power exp(s(x)). A move cuts the present path x, of
L(x) steps, at a uniform place c in {0, ..., L(x) - 1}, lets the proposal q write a new
end and accepts the result x' with probability min(1, A),

    A = pi(x') q(x_{>c} | x_{<=c}) L(x) / (pi(x) q(x'_{>c} | x_{<=c}) L(x')).

The last factor is the ratio of the chances to cut there: dropping it (`lengths=False`)
favours short paths. Numbers of the kept steps are remembered, so a move costs its new
steps only.

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
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request
from tsi.picklable import picklable
from tsi.samplers.path_record import (
    ChainSample,
    PathRecord,
    extended,
    invalid,
    log_importance,
    no_paths,
    summary,
)
from tsi.samplers.potentials import Potential
from tsi.samplers.resampling import systematic
from tsi.weights import log_mean_exp


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
        slots: where each chain's present path is stored, [C].
        current: its numbers.
        ended: whether it is a whole solution, [C].
        cut: steps that the proposal keeps, [C].
        proposal: its numbers so far.
        ending: whether the proposal is a whole solution, [C].
        waiting: proposals that are complete, [C].
        accepted: moves accepted so far, of all chains.
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
    block_steps: int | None = None,
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
        lengths: False drops L(x) / L(x') from the acceptance, as published code does.
        block_steps: B; sample prefixes of B, 2B, ... steps in turn, with an equal share
            of the moves each, and keep the last state only. None for whole paths.
        endless: never done, and only the present states are kept: for numpyro's MCMC.
        select: how one answer is chosen.

    Returns:
        An `Explorer`; it claims a target unless lengths are dropped or blocks used.

    Raises:
        ConfigurationError: for numbers that are not positive.
    """
    positive = 0.0 < power < math.inf
    if num_chains < 1 or not positive or (block_steps is not None and block_steps < 1):
        raise ConfigurationError(
            f"suffix_metropolis needs a positive number of chains, power and block; "
            f"got num_chains={num_chains}, power={power}, block_steps={block_steps}."
        )
    score = potential.path_log_weight
    if score is None:
        raise ConfigurationError(
            "suffix_metropolis needs a potential with a path weight; `latest` is a "
            "rank. Use product, telescoping, terminal or uniform."
        )
    pair = endless or block_steps is not None

    def num_stages(max_steps: int) -> int:
        return 1 if block_steps is None else -(-max_steps // block_steps)

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
        moves = moves_of_stage(num_particles, max_steps) * num_stages(max_steps)
        stored = 2 * num_chains if pair else num_particles
        return Plan(num_chains, stored, (moves + 1) * max_steps)

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

    def goal(state: MetropolisState) -> Int[Array, ""] | int:
        limit = state.current.log_potentials.shape[-1]
        return limit if block_steps is None else block_steps * (state.stage + 1)

    def free(state: MetropolisState) -> Int[Array, "C"]:
        """Where the proposals of this move are stored."""
        chains = jnp.arange(num_chains, dtype=jnp.int32)
        if pair:
            # Chains that start from one rollout share its place.
            taken = jnp.zeros(2 * num_chains, bool).at[state.slots].set(True)
            return jnp.argsort(taken, stable=True)[:num_chains].astype(jnp.int32)
        return chains + num_chains * (state.iteration + 1)

    def ask(
        key: Key[Array, ""], state: MetropolisState
    ) -> tuple[MetropolisState, Request]:
        begins = ~state.growing & jnp.all(state.proposal.length == 0)
        uniform = jax.random.uniform(key, (num_chains,))
        drawn = jnp.floor(uniform * state.current.length).astype(jnp.int32)
        drawn = jnp.minimum(drawn, state.current.length - 1)
        cut = jnp.where(begins, drawn, state.cut)
        shared = jnp.arange(state.current.log_potentials.shape[-1]) < cut[:, None]
        kept = jax.tree.map(
            lambda leaf: jnp.where(shared, leaf, 0.0) if leaf.ndim == 2 else cut,
            state.current,
        )
        proposal = jax.tree.map(
            lambda new, old: jnp.where(begins, new, old), kept, state.proposal
        )
        own = free(state)
        parents = jnp.where(state.growing | begins, state.slots, own)
        # Nothing is cut but the present path, once, where the proposal leaves it.
        depths = jnp.where(begins, cut, jnp.iinfo(jnp.int32).max)
        reached = state.current.length >= goal(state)
        resting = jnp.where(state.growing, state.ended | reached, state.waiting)
        resting = jnp.where(begins, False, resting)
        request = Request(
            parents=parents,
            slots=jnp.where(state.growing, state.slots, own),
            extend=~resting,
            depths=depths,
        )
        return state._replace(cut=cut, proposal=proposal, waiting=resting), request

    def tell(
        key: Key[Array, ""], state: MetropolisState, reply: Reply
    ) -> tuple[MetropolisState, ExplorerInfo]:
        key_start, key_accept = jax.random.split(key)
        took = ~state.waiting
        rows = jax.tree.map(
            lambda a, b: jnp.where(state.growing, a, b), state.current, state.proposal
        )
        rows = extended(rows, reply, took)
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
            ess=jnp.asarray(num_chains, jnp.float32),
            num_recoveries=lost.astype(jnp.int32),
            num_invalid=invalid(reply, took),
        )
        return told, info

    def _grown(state, rows, ended, all_complete, key) -> MetropolisState:
        """Rollouts one step longer; complete for the first time, they are resampled."""
        # Blocks are published without a weighted start, and rows must stay apart to
        # grow on.
        first = all_complete & (state.stage == 0) & (block_steps is None)
        log_w = log_importance(rows, score, power)
        starts = systematic(key, log_w, num_chains)
        starts = jnp.where(first, starts, jnp.arange(num_chains, dtype=jnp.int32))
        rows = jax.tree.map(lambda leaf: leaf[starts], rows)
        evidence = jnp.where(first & lengths, log_mean_exp(log_w), state.log_evidence)
        return state._replace(
            current=rows,
            ended=ended[starts],
            slots=state.slots[starts],
            log_evidence=evidence,
            growing=~all_complete,
            waiting=jnp.zeros(num_chains, bool),
        )

    def _moved(state, rows, ended, complete, all_complete, key) -> MetropolisState:
        """Proposals one step longer; once all are complete, they are judged."""
        here = log_importance(state.current, score, power, state.cut)
        there = log_importance(rows, score, power, state.cut)
        # From a state of density zero every move is accepted, and -inf - -inf is NaN.
        log_ratio = jnp.where(here == -jnp.inf, jnp.inf, there - here)
        if lengths:
            log_ratio += jnp.log(state.current.length) - jnp.log(rows.length)
        uniform = jax.random.uniform(key, (num_chains,))
        accept = all_complete & (jnp.log(uniform) < log_ratio)

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

    def _scheduled(told, state, all_complete) -> MetropolisState:
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
        last_stage = told.stage + 1 >= stages
        return told._replace(
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
        score if lengths and block_steps is None else None,
        select,
        needs=("truncate",) if power == 1.0 else ("truncate", "log_prob"),
        power=power,
        endless=endless,
        default_particles=num_chains,
    )
