r"""SMC over a sequence of tempered targets, whose particles suffix Metropolis moves.

    pi_k(x) \propto p(x) exp(lambda_k s(x)),    0 = lambda_0 < ... < lambda_K = 1

Level 0 draws N complete solutions of p. Level k = 1, ..., K weighs them, resamples, and
moves by a kernel K_k that leaves pi_k invariant:

    w_k^i  = exp((lambda_k - lambda_{k-1}) s(x_{k-1}^i))        (times p / q at level 1)
    Z_k    = Z_{k-1} (1/N) sum_i w_k^i
    x_k^i  ~ K_k(x_{k-1}^{a^i}, .),    a^i ~ w_k

so that E[Z_K (1/N) sum_i phi(x_K^i)] = sum_x p(x) exp(s(x)) phi(x) for every phi, given
a ladder that does not depend on the particles. `tempered_smc` keeps the last state of
each chain of moves, `waste_free_smc` keeps all states.

A ladder chosen on the way by the effective sample size of the very particles that it
weighs makes the evidence estimate biased. A ladder by ESS therefore comes from a pilot,
a run of the same size before the run that counts, and is fixed from there on.

Rows: M chains make their moves abreast, one wave of M proposals after the other.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request
from tsi.samplers.parts.annealing import (
    check_exponents,
    even_exponents,
    next_exponent,
)
from tsi.samplers.parts.path_record import (
    PathRecord,
    extend_record,
    invalid,
    log_p_over_q,
    no_paths,
    summary,
)
from tsi.samplers.parts.potentials import Potential
from tsi.samplers.parts.resampling import Resampling
from tsi.samplers.parts.suffix_move import draw_cut, log_acceptance, truncate
from tsi.step_keys import with_typed_key
from tsi.weights import (
    CompensatedSum,
    centre,
    ess,
    log_mean_exp,
    sanitise,
    weight_dtype,
)

WHOLE = jnp.iinfo(jnp.int32).max
"""A depth that cuts nothing."""


class Ladder(NamedTuple):
    """Exponents of the targets, lambda_1, ..., lambda_K.

    Attributes:
        exponents: fixed, or as many as the pilot chooses; the last is 1.
        ess_fraction: of the particles alive, which the pilot keeps in effect at each
            level; None for no pilot.
    """

    exponents: tuple[float, ...]
    ess_fraction: float | None

    @property
    def runs(self) -> int:
        """Runs of the whole sequence: the one that counts, and the pilot."""
        return 1 if self.ess_fraction is None else 2


class TemperedState(NamedTuple):
    """Particles of the present level, and the proposals of the present wave.

    Attributes:
        done: whether the last level is complete.
        members: stored prefixes that are the particles, [N]; chain m's state j stands
            at j M + m. States that are still to come are copies of the latest.
        log_weights: zero: particles are resampled at every level, [N].
        log_potentials, finished: of the members, [N].
        log_evidence: log Z so far.
        log_evidence_rest: what rounding has cut off from it.
        log_pilot_evidence: that of the pilot, which is biased; 0 without one.
        level: k.
        wave: of this level; wave 0 of a level k > 0 is the resampling.
        pilot: whether this run chooses the ladder.
        exponents: the ladder, [K].
        ess: of the weights at the latest level; N before the first.
        records: the particles' numbers.
        cut: steps that each proposal keeps, [M].
        proposal: its numbers so far.
        waiting: proposals that are complete, [M].
        accepted, proposed: moves of the run that counts, of all chains.
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


def make_ladder(
    method: str,
    num_levels: int,
    exponents: Sequence[float] | str | None,
    ess_fraction: float,
) -> Ladder:
    """The ladder that a constructor's arguments ask for.

    Args:
        method: its name.
        num_levels: K, where exponents are not given one by one.
        exponents: None for k / K, a sequence that rises to 1, or "ess" for a pilot.
        ess_fraction: that the pilot keeps.

    Raises:
        ConfigurationError: for a ladder that does not rise to 1, no levels, or a
            fraction outside (0, 1).
    """
    if exponents is None:
        return Ladder(even_exponents(num_levels), None)
    if not isinstance(exponents, str):
        return Ladder(check_exponents(exponents), None)
    if exponents != "ess":
        raise ConfigurationError(
            f'{method} takes exponents=None for k / K, "ess" for a pilot run that '
            f"chooses them, or a sequence that rises to 1; got {exponents!r}."
        )
    if not 0.0 < ess_fraction < 1.0:
        raise ConfigurationError(
            f"The pilot of {method} keeps a fraction of the particles in (0, 1) in "
            f"effect, and ess_fraction is {ess_fraction}."
        )
    return Ladder(even_exponents(num_levels), ess_fraction)


def tempered_explorer(
    method: str,
    potential: Potential,
    ladder: Ladder,
    num_states: int,
    num_moves: int,
    resampling: Resampling,
    select: str,
) -> Explorer:
    """The explorer that climbs a ladder of tempered targets.

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
            f"{method} needs a potential with a path weight; `latest` is a rank. Use "
            "product, telescoping, terminal or uniform."
        )
    num_levels = len(ladder.exponents)
    waves = ladder.runs * (num_states + num_levels * num_moves)
    pilot = ", for the pilot and again for the run" if ladder.runs > 1 else ""

    def chains_of(num_particles: int) -> int:
        chains, rest = divmod(num_particles, waves)
        if rest or not chains:
            raise ConfigurationError(
                f"{method} cannot share {num_particles} rollouts equally: each chain "
                f"needs {waves}, {num_states} at level 0 and {num_moves} at each of "
                f"{num_levels} levels{pilot}. Choose a multiple of {waves}, or fewer "
                "levels or moves."
            )
        return chains

    def plan(num_particles: int, max_steps: int) -> Plan:
        chains = chains_of(num_particles)
        # States and the proposals of a wave stand in different places.
        return Plan(chains, chains * max(num_states, 2), waves * max_steps)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> TemperedState:
        chains = chains_of(num_particles)
        kept, dtype = chains * num_states, weight_dtype()
        zero = jnp.zeros((), jnp.int32)
        return TemperedState(
            done=jnp.zeros((), bool),
            members=jnp.zeros(kept, jnp.int32),
            log_weights=jnp.zeros(kept, dtype),
            log_potentials=jnp.zeros(kept, dtype),
            finished=jnp.zeros(kept, bool),
            log_evidence=jnp.zeros((), dtype),
            log_evidence_rest=jnp.zeros((), dtype),
            log_pilot_evidence=jnp.zeros((), dtype),
            level=zero,
            wave=zero,
            pilot=jnp.asarray(ladder.ess_fraction is not None),
            exponents=jnp.asarray(ladder.exponents, dtype),
            ess=jnp.full((), kept, dtype),
            records=no_paths((kept,), max_steps),
            cut=jnp.zeros(chains, jnp.int32),
            proposal=no_paths((chains,), max_steps),
            waiting=jnp.zeros(chains, bool),
            accepted=zero,
            proposed=zero,
            parents=jnp.zeros(chains, jnp.int32),
        )

    def current(state: TemperedState) -> Int[Array, "M"]:
        """Which particles are the chains' present states."""
        chains = state.cut.shape[0]
        place = jnp.clip(state.wave - 1, 0, num_states - 1) * chains
        return place + jnp.arange(chains, dtype=jnp.int32)

    def free(state: TemperedState) -> Int[Array, "M"]:
        """Where the proposals of this wave are stored."""
        chains = state.cut.shape[0]
        taken = jnp.zeros(chains * max(num_states, 2), bool).at[state.members].set(True)
        return jnp.argsort(taken, stable=True)[:chains].astype(jnp.int32)

    @with_typed_key
    def ask(key: Key[Array, ""], state: TemperedState) -> tuple[TemperedState, Request]:
        own, now = free(state), current(state)
        begins = jnp.all(state.proposal.length == 0)
        records = jax.tree.map(lambda leaf: leaf[now], state.records)
        # A rollout of level 0 is a proposal that keeps nothing.
        drawn = jnp.where(state.level == 0, 0, draw_cut(key, records.length))
        cut = jnp.where(begins, drawn, state.cut)
        proposal = _where(begins, truncate(records, cut), state.proposal)
        continues_state = begins & (state.level > 0)
        parents = jnp.where(continues_state, state.members[now], own)
        request = Request(
            parents=parents,
            slots=own,
            extend=~state.waiting,
            depths=jnp.where(begins, cut, WHOLE),
        )
        return state._replace(cut=cut, proposal=proposal, parents=parents), request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: TemperedState, reply: Reply
    ) -> tuple[TemperedState, ExplorerInfo]:
        key_accept, key_resample = jax.random.split(key)
        steps, own = ~state.waiting, free(state)
        longer = state._replace(
            proposal=extend_record(state.proposal, reply, steps),
            waiting=state.waiting | reply.finished,
        )
        complete = jnp.all(longer.waiting)
        moved = _where(complete, accept(key_accept, longer, own), longer)
        last = jnp.where(state.level == 0, num_states - 1, num_moves)
        through = moved.wave > last
        after = _where(through, climb(key_resample, moved), moved)
        lost = jnp.isfinite(state.log_evidence) & (after.log_evidence == -jnp.inf)
        return after, ExplorerInfo(
            parents=state.parents,
            slots=own,
            ess=after.ess,
            num_recoveries=(lost & ~state.pilot).astype(jnp.int32),
            num_invalid=invalid(reply, steps),
        )

    def accept(
        key: Key[Array, ""], state: TemperedState, own: Int[Array, "M"]
    ) -> TemperedState:
        """Each chain takes its complete proposal or repeats its state."""
        now, chains = current(state), own.shape[0]
        fresh = state.level == 0
        before = jax.tree.map(lambda leaf: leaf[now], state.records)
        exponent = state.exponents[jnp.maximum(state.level - 1, 0)]
        log_ratio = log_acceptance(state.proposal, before, score, state.cut, exponent)
        uniform = jax.random.uniform(key, (chains,))
        accepts = fresh | (jnp.log(uniform) < log_ratio)
        # States that are still to come are copies, so that every member is a solution
        # and no more places are taken than there are states.
        place = jnp.minimum(state.wave, num_states - 1)
        later = jnp.arange(chains * num_states) // chains >= place

        def chosen(new: Array, old: Array) -> Array:
            mask = accepts.reshape(-1, *[1] * (new.ndim - 1))
            tiles = (num_states, *[1] * (new.ndim - 1))
            spread = jnp.tile(jnp.where(mask, new, old[now]), tiles)
            return jnp.where(later.reshape(-1, *[1] * (new.ndim - 1)), spread, old)

        records = jax.tree.map(chosen, state.proposal, state.records)
        moves = jnp.where(fresh, 0, chains)
        return state._replace(
            members=chosen(own, state.members),
            log_potentials=summary(records, score).log_potential,
            finished=jnp.ones_like(state.finished),
            wave=state.wave + 1,
            records=records,
            proposal=jax.tree.map(jnp.zeros_like, state.proposal),
            waiting=jnp.zeros_like(state.waiting),
            accepted=state.accepted
            + jnp.where(fresh, 0, jnp.sum(accepts, dtype=jnp.int32)),
            proposed=state.proposed + moves,
        )

    def climb(key: Key[Array, ""], state: TemperedState) -> TemperedState:
        """The end of a level: the next, the run that counts, or the end."""
        over = state.level == num_levels
        ended = state._replace(done=jnp.ones((), bool))
        if ladder.ess_fraction is not None:
            ended = _where(state.pilot, restart(state), ended)
        return _where(over, ended, resample(key, state))

    def restart(state: TemperedState) -> TemperedState:
        """From the pilot to the run that counts: nothing stays but the ladder."""
        zero = jnp.zeros((), jnp.int32)
        # One place is enough for what nobody continues.
        first = jnp.zeros_like(state.members)
        return state._replace(
            members=state.members[first],
            log_potentials=state.log_potentials[first],
            log_evidence=jnp.zeros_like(state.log_evidence),
            log_evidence_rest=jnp.zeros_like(state.log_evidence_rest),
            log_pilot_evidence=state.log_evidence,
            level=zero,
            wave=zero,
            pilot=jnp.zeros((), bool),
            records=jax.tree.map(lambda leaf: leaf[first], state.records),
            accepted=zero,
            proposed=zero,
        )

    def resample(key: Key[Array, ""], state: TemperedState) -> TemperedState:
        """Weigh for the next target, and draw the ancestors of its chains."""
        chains, level = state.cut.shape[0], jnp.minimum(state.level, num_levels - 1)
        records = state.records
        scores = sanitise(score(records.log_potentials, records.live))
        nothing_kept = jnp.zeros_like(records.length)
        log_rest = jnp.where(level == 0, log_p_over_q(records, 1.0, nothing_kept), 0.0)
        lower = jnp.where(level == 0, 0.0, state.exponents[jnp.maximum(level - 1, 0)])
        upper, exponents = state.exponents[level], state.exponents
        if ladder.ess_fraction is not None:
            chosen = next_exponent(lower, scores, log_rest, ladder.ess_fraction)
            chosen = jnp.where(level == num_levels - 1, 1.0, chosen)
            upper = jnp.where(state.pilot, chosen, upper)
            exponents = exponents.at[level].set(upper)
        rise = upper - lower
        relative, largest = centre(scores)
        # Zero times -inf is NaN, and what has no density has no weight.
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
        score,
        select,
        needs=("truncate",),
        chain=True,
        acceptance=lambda state: state.accepted / state.proposed,
    )


def _where(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    """One of two pytrees of one structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
