r"""Metropolis-Hastings that proposes a new end of a solution.

The target is pi(x) \propto p(x)^power exp(s(x)). A move cuts the current path x, of
L(x) steps, at a uniform step c in {0, ..., L(x) - 1}, draws a new end from the proposal
q, and accepts the result x' with probability min(1, A),

    A = pi(x') q(x_{>c} | x_{<=c}) L(x) / (pi(x) q(x'_{>c} | x_{<=c}) L(x')).

The last factor is the ratio of the probabilities of the cut in the two directions;
without it (`lengths=False`) short paths are favoured. The numbers of the kept steps are
recorded, so a move costs only its new steps.

Power sampling was published with blocks: prefixes of B, 2B, ... steps are sampled in
turn. In the printed algorithm, texts are sequences of the same length, that of the
block, and nothing follows the end of a solution: c is uniform over the whole length, a
cut beyond the end changes nothing, and A has no ratio of lengths. In the released code
c is uniform over the current length, a proposal may not be longer than that, and it is
compared with the current path up to its own length. The chain stops after the first
block at whose end its path is a complete solution.

Start: C rollouts are weighted by pi / q and resampled, and become the initial states of
C chains. A kernel that leaves pi invariant preserves proper weighting, so for every
number of moves

    E[ mean initial weight * phi(state) ] = sum_x p(x)^power exp(s(x)) phi(x),

so a chain of any length is unbiased in the same sense as a particle filter.

References:
    [1] Faria et al. 2024, QUEST, arXiv 2406.00049 (Gibbs targets).
    [2] Karan and Du 2025, arXiv 2510.14901, Algorithm 1 (power targets, block-wise).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request, undefined_ess
from tsi.log_uniform import log_uniform
from tsi.picklable import picklable
from tsi.samplers.parts.metropolis_state import Blocks, MetropolisState
from tsi.samplers.parts.path_record import (
    ChainSample,
    PathRecord,
    count_invalid,
    empty_paths,
    extend_record,
    log_importance,
    log_ratio,
    summarise,
)
from tsi.samplers.parts.potentials import Potential
from tsi.samplers.parts.resampling import systematic
from tsi.samplers.parts.suffix_move import draw_cut, truncate
from tsi.step_keys import with_typed_key
from tsi.weights import log_mean_exp


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
    """Metropolis-Hastings over reasoning steps that proposes new suffixes.

    With N rollouts each of C chains makes N / C - 1 moves. The result has all N states;
    a rejected move repeats a state.

    Args:
        potential: its path weight is exp(s(x)).
        power: exponent of the policy in the target.
        num_chains: C; must divide N.
        lengths: False drops L(x) / L(x') from the acceptance ratio; with blocks it is
            always dropped.
        blocks: sample prefixes of B, 2B, ... steps in turn, and keep only the last
            state. None for complete paths.
        endless: never done, and only the current states are kept, for numpyro's MCMC.
        select: how one answer is chosen.

    Returns:
        An `Explorer`; it states a target unless lengths are dropped or blocks are used.

    Raises:
        ConfigurationError: for numbers that are not positive; by `plan` if there are
            fewer moves than blocks.
    """
    positive = 0.0 < power < math.inf
    if num_chains < 1 or not positive or (blocks is not None and blocks.steps < 1):
        raise ConfigurationError(
            "suffix_metropolis needs a positive number of chains, power and block "
            f"length; got num_chains={num_chains}, power={power}, blocks={blocks}."
        )
    score = potential.path_log_weight
    if score is None:
        raise ConfigurationError(
            "suffix_metropolis needs a potential with a path weight, and `latest` has "
            "none. Use product, telescoping, terminal or uniform."
        )
    keeps_current_only = endless or blocks is not None
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
                f"{num_particles} rollouts cannot be divided among {num_chains} "
                f"chains. Use a multiple of {num_chains}."
            )
        stages, rollouts_per_chain = num_stages(max_steps), num_particles // num_chains
        if stages > rollouts_per_chain - 1 > 0:
            assert blocks is not None  # for the type checker: else there is one stage
            raise ConfigurationError(
                f"{num_particles} rollouts give each of {num_chains} chains "
                f"{rollouts_per_chain - 1} moves, fewer than the {stages} blocks of "
                f"{blocks.steps} steps in {max_steps} steps. Use at least "
                f"{num_chains * (stages + 1)} rollouts, or blocks of at least "
                f"{-(-max_steps // (rollouts_per_chain - 1))} steps."
            )
        moves = moves_of_stage(num_particles, max_steps) * stages
        num_stored = 2 * num_chains if keeps_current_only else num_particles
        return Plan(num_chains, num_stored, (moves + 1) * max_steps)

    @with_typed_key
    def init(
        key: Key[Array, ""], num_particles: int, max_steps: int
    ) -> MetropolisState:
        num_kept = num_chains if keeps_current_only else num_particles
        chains = jnp.arange(num_chains, dtype=jnp.int32)
        empty = empty_paths((num_chains,), max_steps)
        all_false = jnp.zeros(num_chains, bool)
        return MetropolisState(
            done=jnp.zeros((), bool),
            members=jnp.arange(num_kept, dtype=jnp.int32) % num_chains,
            log_weights=jnp.zeros(num_kept),
            log_potentials=jnp.zeros(num_kept),
            finished=jnp.zeros(num_kept, bool),
            log_evidence=jnp.zeros(()),
            iteration=jnp.zeros((), jnp.int32),
            moves=jnp.asarray(moves_of_stage(num_particles, max_steps), jnp.int32),
            stage=jnp.zeros((), jnp.int32),
            growing=jnp.ones((), bool),
            limits=jnp.full(num_chains, first_limit(max_steps), jnp.int32),
            stopped=all_false,
            slots=chains,
            current=empty,
            ended=all_false,
            cut=jnp.zeros(num_chains, jnp.int32),
            proposal=empty,
            ending=all_false,
            waiting=all_false,
            accepted=jnp.zeros((), jnp.int32),
            sample=_summarise_chains(empty),
        )

    def goal_lengths(state: MetropolisState) -> Int[Array, "C"]:
        """Number of steps to which paths are extended."""
        if released:
            return jnp.where(state.growing, state.limits, state.current.length)
        return state.limits

    def proposal_slots(state: MetropolisState) -> Int[Array, "C"]:
        """Slots of the proposals of this move."""
        chains = jnp.arange(num_chains, dtype=jnp.int32)
        if keeps_current_only:
            # Chains that start from the same rollout share its slot.
            is_occupied = jnp.zeros(2 * num_chains, bool).at[state.slots].set(True)
            return jnp.argsort(is_occupied, stable=True)[:num_chains].astype(jnp.int32)
        return chains + num_chains * (state.iteration + 1)

    @with_typed_key
    def ask(
        key: Key[Array, ""], state: MetropolisState
    ) -> tuple[MetropolisState, Request]:
        begins = ~state.growing & jnp.all(state.proposal.length == 0)
        drawn_cut = draw_cut(key, state.limits if printed else state.current.length)
        cuts_past_end = begins & (drawn_cut >= state.current.length)
        cut = jnp.where(begins, jnp.minimum(drawn_cut, state.current.length), state.cut)
        prefix = truncate(state.current, cut)
        proposal = jax.tree.map(
            lambda new, old: jnp.where(begins, new, old), prefix, state.proposal
        )
        slots = proposal_slots(state)
        parents = jnp.where(state.growing | begins, state.slots, slots)
        # Only the current path is cut, once, where the proposal starts.
        depths = jnp.where(begins, cut, jnp.iinfo(jnp.int32).max)
        at_goal = state.current.length >= goal_lengths(state)
        takes_no_step = jnp.where(state.growing, state.ended | at_goal, state.waiting)
        takes_no_step = jnp.where(begins, cuts_past_end | state.stopped, takes_no_step)
        request = Request(
            parents=parents,
            slots=jnp.where(state.growing, state.slots, slots),
            extend=~takes_no_step,
            depths=depths,
        )
        ending = jnp.where(cuts_past_end, state.ended, state.ending)
        state = state._replace(cut=cut, proposal=proposal, ending=ending)
        return state._replace(waiting=takes_no_step), request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: MetropolisState, reply: Reply
    ) -> tuple[MetropolisState, ExplorerInfo]:
        key_start, key_accept = jax.random.split(key)
        step_mask = ~state.waiting
        rows = jax.tree.map(
            lambda a, b: jnp.where(state.growing, a, b), state.current, state.proposal
        )
        rows = extend_record(rows, reply, step_mask)
        had_ended = jnp.where(state.growing, state.ended, state.ending)
        new_ended = jnp.where(step_mask, reply.finished, had_ended)
        complete = state.waiting | new_ended | (rows.length >= goal_lengths(state))
        all_complete = jnp.all(complete)

        after_rollouts = _extend_rollouts(
            state, rows, new_ended, all_complete, key_start
        )
        after_proposals = _extend_proposals(
            state, rows, new_ended, complete, all_complete, key_accept
        )
        new_state = jax.tree.map(
            lambda a, b: jnp.where(state.growing, a, b), after_rollouts, after_proposals
        )
        new_state = _record_state(new_state, state, all_complete)
        parents = jnp.where(state.growing, state.slots, proposal_slots(state))
        is_lost = ~jnp.isfinite(new_state.log_evidence) & jnp.isfinite(
            state.log_evidence
        )
        info = ExplorerInfo(
            parents=parents,
            slots=parents,
            ess=undefined_ess(),
            num_recoveries=is_lost.astype(jnp.int32),
            num_invalid=count_invalid(reply, step_mask),
        )
        return new_state, info

    def _extend_rollouts(
        state: MetropolisState,
        rows: PathRecord,
        ended: Bool[Array, "C"],
        all_complete: Bool[Array, ""],
        key: Key[Array, ""],
    ) -> MetropolisState:
        """Extend the rollouts by a step; when all are complete, resample them."""
        # With blocks there is no weighted start, as published, and rows that are still
        # extended must be distinct.
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

    def _extend_proposals(
        state: MetropolisState,
        rows: PathRecord,
        ended: Bool[Array, "C"],
        complete: Bool[Array, "C"],
        all_complete: Bool[Array, ""],
        key: Key[Array, ""],
    ) -> MetropolisState:
        """Extend the proposals by a step; when all are complete, accept or reject."""
        compared = state.current
        if released:
            common_length = jnp.minimum(compared.length, rows.length)
            compared = compared._replace(length=common_length)
        log_accept = log_ratio(rows, compared, score, power, state.cut)
        if lengths and blocks is None:
            log_accept += jnp.log(state.current.length) - jnp.log(rows.length)
        accept = log_uniform(key, (num_chains,)) < log_accept
        accept = accept & all_complete & ~state.stopped

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(accept.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        next_proposal = jax.tree.map(
            lambda leaf: jnp.where(all_complete, jnp.zeros_like(leaf), leaf), rows
        )
        return state._replace(
            current=jax.tree.map(choose, rows, state.current),
            ended=choose(ended, state.ended),
            slots=choose(proposal_slots(state), state.slots),
            proposal=next_proposal,
            ending=ended & ~all_complete,
            waiting=complete & ~all_complete,
            accepted=state.accepted + jnp.sum(accept, dtype=jnp.int32),
            iteration=state.iteration + all_complete,
        )

    def _record_state(
        new_state: MetropolisState,
        state: MetropolisState,
        all_complete: Bool[Array, ""],
    ) -> MetropolisState:
        """Record a completed state as a sample, and end the stage if it is complete."""
        num_kept = new_state.members.shape[0]
        log_potentials = summarise(new_state.current, score, power).log_potential
        # Fill all later samples as well; later iterations overwrite them.
        group = jnp.arange(num_kept) // num_chains
        is_filled = all_complete & ((group >= new_state.iteration) | keeps_current_only)

        def fill(new: Array, old: Array) -> Array:
            repeats = jnp.tile(new, num_kept // num_chains)
            return jnp.where(is_filled, repeats, old)

        new_state = new_state._replace(
            members=fill(new_state.slots, new_state.members),
            log_potentials=fill(log_potentials, new_state.log_potentials),
            finished=fill(new_state.ended, new_state.finished),
            sample=_summarise_chains(new_state.current),
        )
        if endless:
            return new_state
        stages = num_stages(new_state.current.log_potentials.shape[-1])
        stage_over = new_state.iteration >= (new_state.stage + 1) * new_state.moves
        stage_over = all_complete & stage_over
        stopped = new_state.stopped
        limits = new_state.limits
        if blocks is not None:
            length = new_state.current.length if released else limits
            longest = new_state.current.log_potentials.shape[-1]
            next_limits = jnp.minimum(length + blocks.steps, longest)
            limits = jnp.where(stage_over, next_limits, limits)
        if released:
            stopped = stopped | (stage_over & new_state.ended)
        last_stage = (new_state.stage + 1 >= stages) | jnp.all(stopped)
        return new_state._replace(
            limits=limits,
            stopped=stopped,
            done=stage_over & last_stage,
            growing=new_state.growing | (stage_over & ~last_stage),
            stage=new_state.stage + (stage_over & ~last_stage),
        )

    def _summarise_chains(paths: PathRecord) -> ChainSample:
        sample = summarise(paths, score, power)
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
