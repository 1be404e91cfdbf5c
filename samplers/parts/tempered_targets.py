r"""SMC over a sequence of tempered targets, with suffix Metropolis moves.

    pi_k(x) \propto p(x) exp(lambda_k s(x)),    0 = lambda_0 < ... < lambda_K = 1

Level 0 draws N complete solutions of p. Level k = 1, ..., K weights them, resamples
them, and moves them by a kernel K_k that leaves pi_k invariant:

    w_k^i  = exp((lambda_k - lambda_{k-1}) s(x_{k-1}^i))        (times p / q at level 1)
    Z_k    = Z_{k-1} (1/N) sum_i w_k^i
    x_k^i  ~ K_k(x_{k-1}^{a^i}, .),    a^i ~ w_k

so that E[Z_K (1/N) sum_i phi(x_K^i)] = sum_x p(x) exp(s(x)) phi(x) for every phi, if
the ladder does not depend on the particles. `tempered_smc` keeps the last state of each
chain of moves, `waste_free_smc` keeps all states.

If the ladder is chosen by the effective sample size of the same particles, the evidence
estimate is biased. A ladder by ESS therefore comes from a pilot, a run of the same size
before the main run, and is then fixed.

Rows: M chains make their moves in parallel, in waves of M proposals.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.ess import ess
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request
from tsi.log_uniform import log_uniform
from tsi.samplers.parts.allocation import Deterministic
from tsi.samplers.parts.annealing import (
    Ladder,
    next_exponent,
)
from tsi.samplers.parts.path_record import (
    PathRecord,
    count_invalid,
    empty_paths,
    extend_record,
    log_p_over_q,
    summarise,
)
from tsi.samplers.parts.potentials import Potential
from tsi.samplers.parts.resampling import Resampling
from tsi.samplers.parts.suffix_move import draw_cut, log_acceptance, truncate
from tsi.step_keys import with_typed_key
from tsi.weights import CompensatedSum, centre, log_mean_exp, sanitise, weight_dtype

NO_CUT = jnp.iinfo(jnp.int32).max
"""As a depth: no cut."""


class TemperedState(NamedTuple):
    """Particles of the current level, and proposals of the current wave.

    Attributes:
        done: whether the last level is complete.
        members: stored prefixes that are the particles, [N]; state j of chain m has
            index j M + m. States that are not yet drawn are copies of the latest.
        log_weights: zero, since particles are resampled at every level, [N].
        log_potentials, finished: of the members, [N].
        log_evidence: log Z so far.
        log_evidence_rest: the rounding error of log_evidence, a compensated sum.
        log_pilot_evidence: log evidence of the pilot, which is biased; 0 without pilot.
        level: k.
        wave: of this level; wave 0 of a level k > 0 is the resampling.
        pilot: whether this run is the pilot.
        exponents: the ladder, [K].
        ess: of the weights at the latest level; N before the first.
        records: paths of the particles.
        cut: number of steps that each proposal keeps, [M].
        proposal: paths of the proposals so far.
        waiting: which proposals are complete, [M].
        accepted, proposed: moves of all chains in the main run.
        parents: as last requested, [M].
    """

    done: Bool[Array, ""]
    members: Int[Array, "N"]
    log_weights: Float[Array, "N"]
    log_potentials: Float[Array, "N"]
    finished: Bool[Array, "N"]
    log_evidence: Float[Array, ""]
    log_evidence_rest: Float[Array, ""]
    log_pilot_evidence: Float[Array, ""]
    level: Int[Array, ""]
    wave: Int[Array, ""]
    pilot: Bool[Array, ""]
    exponents: Float[Array, "K"]
    ess: Float[Array, ""]
    records: PathRecord
    cut: Int[Array, "M"]
    proposal: PathRecord
    waiting: Bool[Array, "M"]
    accepted: Int[Array, ""]
    proposed: Int[Array, ""]
    parents: Int[Array, "M"]


def tempered_explorer(
    method: str,
    potential: Potential,
    ladder: Ladder,
    num_states: int,
    num_moves: int,
    resampling: Resampling,
    select: str,
) -> Explorer:
    """An explorer over a ladder of tempered targets.

    M (P + K m) rollouts, or twice that with a pilot, are M chains of P rollouts at
    level 0 and m moves at each of K levels.

    Args:
        method: its name.
        potential: its path weight is exp(s(x)).
        ladder: of the exponents.
        num_states: P, states kept of each chain; there are M P particles.
        num_moves: m of each chain at each level: P - 1, or any number if P = 1.
        resampling: the scheme.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: for a potential without a path weight, and by `plan` for a
            number of rollouts that chains cannot share.
    """
    score = potential.path_log_weight
    if score is None:
        raise ConfigurationError(
            f"{method} needs a potential with a path weight, and `latest` has none. "
            "Use product, telescoping, terminal or uniform."
        )
    num_levels = len(ladder.exponents)
    waves = ladder.runs * (num_states + num_levels * num_moves)
    pilot = ", for the pilot and again for the run" if ladder.runs > 1 else ""

    def count_chains(num_particles: int) -> int:
        chains, rest = divmod(num_particles, waves)
        if rest or not chains:
            raise ConfigurationError(
                f"{method} cannot divide {num_particles} rollouts equally: each chain "
                f"needs {waves} rollouts, {num_states} at level 0 and {num_moves} at "
                f"each of {num_levels} levels{pilot}. Use a multiple of {waves}, or "
                "fewer levels or moves."
            )
        return chains

    def plan(num_particles: int, max_steps: int) -> Plan:
        chains = count_chains(num_particles)
        # The states and the proposals of a wave need different slots.
        return Plan(chains, chains * max(num_states, 2), waves * max_steps)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> TemperedState:
        chains = count_chains(num_particles)
        num_kept, dtype = chains * num_states, weight_dtype()
        zero = jnp.zeros((), jnp.int32)
        return TemperedState(
            done=jnp.zeros((), bool),
            members=jnp.zeros(num_kept, jnp.int32),
            log_weights=jnp.zeros(num_kept, dtype),
            log_potentials=jnp.zeros(num_kept, dtype),
            finished=jnp.zeros(num_kept, bool),
            log_evidence=jnp.zeros((), dtype),
            log_evidence_rest=jnp.zeros((), dtype),
            log_pilot_evidence=jnp.zeros((), dtype),
            level=zero,
            wave=zero,
            pilot=jnp.asarray(ladder.ess_fraction is not None),
            exponents=jnp.asarray(ladder.exponents, dtype),
            ess=jnp.full((), num_kept, dtype),
            records=empty_paths((num_kept,), max_steps),
            cut=jnp.zeros(chains, jnp.int32),
            proposal=empty_paths((chains,), max_steps),
            waiting=jnp.zeros(chains, bool),
            accepted=zero,
            proposed=zero,
            parents=jnp.zeros(chains, jnp.int32),
        )

    def current_rows(state: TemperedState) -> Int[Array, "M"]:
        """Which particles are the current states of the chains."""
        chains = state.cut.shape[0]
        place = jnp.clip(state.wave - 1, 0, num_states - 1) * chains
        return place + jnp.arange(chains, dtype=jnp.int32)

    def proposal_slots(state: TemperedState) -> Int[Array, "M"]:
        """Slots of the proposals of this wave."""
        chains = state.cut.shape[0]
        is_taken = (
            jnp.zeros(chains * max(num_states, 2), bool).at[state.members].set(True)
        )
        return jnp.argsort(is_taken, stable=True)[:chains].astype(jnp.int32)

    @with_typed_key
    def ask(key: Key[Array, ""], state: TemperedState) -> tuple[TemperedState, Request]:
        slots, rows = proposal_slots(state), current_rows(state)
        begins = jnp.all(state.proposal.length == 0)
        records = jax.tree.map(lambda leaf: leaf[rows], state.records)
        # A rollout of level 0 is a proposal that keeps no step.
        new_cut = jnp.where(state.level == 0, 0, draw_cut(key, records.length))
        cut = jnp.where(begins, new_cut, state.cut)
        proposal = _select(begins, truncate(records, cut), state.proposal)
        continues_state = begins & (state.level > 0)
        parents = jnp.where(continues_state, state.members[rows], slots)
        request = Request(
            parents=parents,
            slots=slots,
            extend=~state.waiting,
            depths=jnp.where(begins, cut, NO_CUT),
        )
        return state._replace(cut=cut, proposal=proposal, parents=parents), request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: TemperedState, reply: Reply
    ) -> tuple[TemperedState, ExplorerInfo]:
        key_accept, key_resample = jax.random.split(key)
        steps, slots = ~state.waiting, proposal_slots(state)
        extended_state = state._replace(
            proposal=extend_record(state.proposal, reply, steps),
            waiting=state.waiting | reply.finished,
        )
        complete = jnp.all(extended_state.waiting)
        moved_state = _select(
            complete, accept(key_accept, extended_state, slots), extended_state
        )
        last_wave = jnp.where(state.level == 0, num_states - 1, num_moves)
        level_is_complete = moved_state.wave > last_wave
        new_state = _select(
            level_is_complete, end_level(key_resample, moved_state), moved_state
        )
        is_lost = jnp.isfinite(state.log_evidence) & (
            new_state.log_evidence == -jnp.inf
        )
        return new_state, ExplorerInfo(
            parents=state.parents,
            slots=slots,
            ess=new_state.ess,
            # A pilot that loses all weight changes no weight of the main run, but a
            # reward that is not a number is a fault in both.
            num_recoveries=(is_lost & ~state.pilot).astype(jnp.int32),
            num_invalid=count_invalid(reply, steps),
        )

    def accept(
        key: Key[Array, ""], state: TemperedState, slots: Int[Array, "M"]
    ) -> TemperedState:
        """Accept the proposal of each chain, or repeat its state."""
        rows, chains = current_rows(state), slots.shape[0]
        at_level_zero = state.level == 0
        before = jax.tree.map(lambda leaf: leaf[rows], state.records)
        exponent = state.exponents[jnp.maximum(state.level - 1, 0)]
        log_ratio = log_acceptance(state.proposal, before, score, state.cut, exponent)
        accepts = at_level_zero | (log_uniform(key, (chains,)) < log_ratio)
        # States that are not yet drawn are copies, so that every member is a solution
        # and at most as many slots are used as there are states.
        place = jnp.minimum(state.wave, num_states - 1)
        is_filled = jnp.arange(chains * num_states) // chains >= place

        def choose(new: Array, old: Array) -> Array:
            mask = accepts.reshape(-1, *[1] * (new.ndim - 1))
            tiles = (num_states, *[1] * (new.ndim - 1))
            spread = jnp.tile(jnp.where(mask, new, old[rows]), tiles)
            return jnp.where(is_filled.reshape(-1, *[1] * (new.ndim - 1)), spread, old)

        records = jax.tree.map(choose, state.proposal, state.records)
        moves = jnp.where(at_level_zero, 0, chains)
        return state._replace(
            members=choose(slots, state.members),
            log_potentials=summarise(records, score).log_potential,
            finished=jnp.ones_like(state.finished),
            wave=state.wave + 1,
            records=records,
            proposal=jax.tree.map(jnp.zeros_like, state.proposal),
            waiting=jnp.zeros_like(state.waiting),
            accepted=state.accepted
            + jnp.where(at_level_zero, 0, jnp.sum(accepts, dtype=jnp.int32)),
            proposed=state.proposed + moves,
        )

    def end_level(key: Key[Array, ""], state: TemperedState) -> TemperedState:
        """At the end of a level start the next level, start the main run, or stop."""
        is_last_level = state.level == num_levels
        end_state = state._replace(done=jnp.ones((), bool))
        if ladder.ess_fraction is not None:
            end_state = _select(state.pilot, restart(state), end_state)
        return _select(is_last_level, end_state, resample(key, state))

    def restart(state: TemperedState) -> TemperedState:
        """Start the main run after the pilot; only the ladder is kept."""
        zero = jnp.zeros((), jnp.int32)
        # The prefixes of the pilot are not continued, so one slot is enough.
        first = jnp.zeros_like(state.members)
        return state._replace(
            members=state.members[first],
            log_potentials=state.log_potentials[first],
            log_evidence=jnp.zeros_like(state.log_evidence),
            log_evidence_rest=jnp.zeros_like(state.log_evidence_rest),
            log_pilot_evidence=state.log_evidence,
            ess=jnp.full_like(state.ess, state.members.size),
            level=zero,
            wave=zero,
            pilot=jnp.zeros((), bool),
            records=jax.tree.map(lambda leaf: leaf[first], state.records),
            accepted=zero,
            proposed=zero,
        )

    def resample(key: Key[Array, ""], state: TemperedState) -> TemperedState:
        """Weight the particles for the next target; draw ancestors of its chains."""
        chains, level = state.cut.shape[0], jnp.minimum(state.level, num_levels - 1)
        records = state.records
        scores = sanitise(score(records.log_potentials, records.step_mask))
        no_steps = jnp.zeros_like(records.length)
        log_rest = jnp.where(level == 0, log_p_over_q(records, 1.0, no_steps), 0.0)
        lower = jnp.where(level == 0, 0.0, state.exponents[jnp.maximum(level - 1, 0)])
        upper, exponents = state.exponents[level], state.exponents
        if ladder.ess_fraction is not None:
            choose = next_exponent(lower, scores, log_rest, ladder.ess_fraction)
            choose = jnp.where(level == num_levels - 1, 1.0, choose)
            upper = jnp.where(state.pilot, choose, upper)
            exponents = exponents.at[level].set(upper)
        rise = upper - lower
        relative, largest = centre(scores)
        # Density zero is weight zero, but zero times -inf would be NaN.
        gain = jnp.where(scores > -jnp.inf, rise * relative, -jnp.inf)
        log_weights = sanitise(gain + log_rest)
        ancestors = resampling(key, log_weights, chains)
        evidence = CompensatedSum(state.log_evidence, state.log_evidence_rest)
        evidence = evidence.add(log_mean_exp(log_weights)).add(rise * largest)
        spread = jnp.tile(ancestors, num_states)
        return state._replace(
            members=state.members[spread],
            log_potentials=state.log_potentials[spread],
            log_evidence=evidence.value,
            log_evidence_rest=evidence.rest,
            level=state.level + 1,
            wave=jnp.ones((), jnp.int32),
            exponents=exponents,
            ess=ess(log_weights),
            records=jax.tree.map(lambda leaf: leaf[spread], records),
        )

    return Explorer(
        plan,
        init,
        ask,
        tell,
        # A deterministic scheme is not unbiased, so the method then has no target.
        None if isinstance(resampling, Deterministic) else score,
        select,
        needs=("truncate",),
        chain=True,
        acceptance=lambda state: state.accepted / state.proposed,
    )


def _select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Select one of two pytrees of equal structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
