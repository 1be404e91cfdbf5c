r"""SMC in which every finished branch counts, whatever becomes of the others.

A particle that finishes at step t with weight w leaves the population and is kept with
the mass Z_t w / N, Z_t the evidence estimate so far. The N rows go on with the
unfinished ones alone, resampled among themselves. Each mass is unbiased for the
solutions of its length,

    E[ sum over branches finished at t of mass * phi ] = sum over x of length t of
        p(x) exp(path_log_weight(x)) phi(x),

so the sum over all of them is for all solutions: no finished branch is thrown away by a
later resampling, and none competes with prefixes that are still being written. It costs
up to N rows for all T steps, since finished branches free their places for others.

References:
    [1] Dau and Chopin 2022, arXiv 2011.02328 (`waste_free_smc`, which keeps every state
        of an MCMC move; here every finished branch of the particle system is kept, to
        the same end).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request
from tsi.picklable import picklable
from tsi.samplers.parts.allocation import Deterministic
from tsi.samplers.parts.population import (
    SMCState,
    fork_population,
    new_population,
    weigh_population,
)
from tsi.samplers.parts.potentials import Potential, telescoping
from tsi.samplers.parts.resampling import Resampling, systematic
from tsi.samplers.parts.schedules import Schedule, ess_below
from tsi.step_keys import with_typed_key
from tsi.weights import CompensatedSum, all_dead, log_mean_exp, log_sum_exp


class FinishedBranchState(NamedTuple):
    """A population of unfinished prefixes, and the finished branches.

    Attributes:
        population: N rows; one that has finished has weight zero from then on.
        log_shares: log of what each stored branch counts, less `reference`, [M]; -inf
            if it is none.
        reference: a log evidence of the population.
        log_potentials: of the stored branches, [M].
        finished: which stored prefixes are finished branches, [M].
        members: all stored prefixes, [M].
        done: whether no unfinished prefix has weight left.
    """

    population: SMCState
    log_shares: Float[Array, "M"]
    reference: CompensatedSum
    log_potentials: Float[Array, "M"]
    finished: Bool[Array, "M"]
    members: Int[Array, "M"]
    done: Bool[Array, ""]

    @property
    def log_mass(self) -> Float[Array, "*batch M"]:
        """Log of what each stored branch counts; -inf if it is none."""
        return self.log_shares + self.reference.value[..., None]

    @property
    def log_evidence(self) -> Float[Array, "*batch"]:
        """The whole mass."""
        return log_sum_exp(self.log_shares) + self.reference.value

    @property
    def log_weights(self) -> Float[Array, "*batch M"]:
        """Masses with mean one; equal if there is no mass."""
        total = log_mean_exp(self.log_shares)
        dead = (total == -jnp.inf)[..., None]
        return jnp.where(
            dead, 0.0, self.log_shares - jnp.where(dead, 0.0, total[..., None])
        )


@picklable
def finished_branch_smc(
    potential: Potential | None = None,
    *,
    resampling: Resampling = systematic,
    schedule: Schedule | None = None,
    select: str = "posterior",
) -> Explorer:
    """SMC in which every finished branch counts.

    Args:
        potential: product or telescoping; by default telescoping("odds").
        resampling: the scheme; a deterministic one targets nothing.
        schedule: `(log_weights, t) -> bool`, by default ess_below(0.5), where finished
            rows count as dead.
        select: how one answer is chosen.

    Returns:
        An `Explorer` with N rows and N T stored prefixes, all of them members.

    Raises:
        ConfigurationError: if the potential has no running weights.
    """
    potential = telescoping("odds") if potential is None else potential
    schedule = ess_below(0.5) if schedule is None else schedule
    if potential.evidence != "running":
        raise ConfigurationError(
            "finished_branch_smc weighs branches when they finish, and this potential "
            "has no running weight. Use product or telescoping."
        )

    def plan(num_particles: int, max_steps: int) -> Plan:
        return Plan(num_particles, num_particles * max_steps, max_steps)

    @with_typed_key
    def init(
        key: Key[Array, ""], num_particles: int, max_steps: int
    ) -> FinishedBranchState:
        stored = num_particles * max_steps
        return FinishedBranchState(
            population=new_population(num_particles),
            log_shares=jnp.full(stored, -jnp.inf),
            reference=CompensatedSum(jnp.zeros(()), jnp.zeros(())),
            log_potentials=jnp.zeros(stored),
            finished=jnp.zeros(stored, bool),
            members=jnp.arange(stored, dtype=jnp.int32),
            done=jnp.zeros((), bool),
        )

    @with_typed_key
    def ask(
        key: Key[Array, ""], state: FinishedBranchState
    ) -> tuple[FinishedBranchState, Request]:
        population = state.population
        log_w, size = population.log_weights, population.log_weights.shape[0]
        due = schedule(log_w, population.t) & ~all_dead(log_w) & (population.t > 0)
        drawn = resampling(key, log_w, size)
        places = jnp.arange(size, dtype=jnp.int32)
        ancestors = jnp.where(due, drawn, places)
        equal = jnp.broadcast_to(log_mean_exp(log_w), log_w.shape)
        log_weights = jnp.where(due, equal, log_w)
        fork = fork_population(population, ancestors, log_weights, due[None])
        # Generation t stands in rows t N to t N + N - 1 of the store.
        last = jnp.maximum(population.t - 1, 0) * size
        extend = log_weights > -jnp.inf
        nowhere = state.members.shape[0]
        request = Request(
            parents=ancestors + last,
            # A branch that has ended is kept once, where it ended.
            slots=jnp.where(extend, places + population.t * size, nowhere),
            extend=extend,
        )
        return state._replace(population=fork), request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: FinishedBranchState, reply: Reply
    ) -> tuple[FinishedBranchState, ExplorerInfo]:
        before = state.population
        size = before.log_weights.shape[0]
        after, info = weigh_population(
            before,
            potential,
            reply.log_potentials,
            reply.log_corrections,
            reply.finished,
        )
        alive = before.log_weights > -jnp.inf
        ended = alive & reply.finished
        # All masses are relative to the present evidence, so that the scale of the
        # potentials is not in them; a population without any leaves them as they are.
        evidence = after.evidence_sum
        nothing = evidence.value == -jnp.inf
        change = jnp.where(nothing, 0.0, evidence.minus(state.reference))
        reference = jax.tree.map(
            lambda new, old: jnp.where(nothing, old, new), evidence, state.reference
        )
        fresh = ended & ~nothing
        log_shares = jnp.where(
            fresh, after.log_weights - jnp.log(float(size)), -jnp.inf
        )
        rows = before.t * size + jnp.arange(size)
        # Those that ended leave; what is left has mean one again.
        left = jnp.where(ended | ~alive, -jnp.inf, after.log_weights)
        share = log_mean_exp(left)
        shift = jnp.where(share == -jnp.inf, 0.0, share)
        remaining = evidence.add(share)
        # Rows that start again after all have died carry no mass.
        lost = (after.log_evidence == -jnp.inf) & jnp.any(state.log_shares > -jnp.inf)
        over = (share == -jnp.inf) | lost
        population = after._replace(
            log_weights=left - shift,
            log_base=left - shift,
            log_evidence=remaining.value,
            log_evidence_rest=remaining.rest,
            # Whoever has left is told nothing more.
            finished=left == -jnp.inf,
        )
        told = state._replace(
            population=population,
            log_shares=(state.log_shares - change).at[rows].set(log_shares),
            reference=reference,
            log_potentials=state.log_potentials.at[rows].set(after.log_potentials),
            finished=state.finished.at[rows].set(ended),
            done=over,
        )
        last = jnp.maximum(before.t - 1, 0) * size
        report = ExplorerInfo(
            parents=before.ancestors + last,
            slots=rows.astype(jnp.int32),
            ess=info.ess,
            num_recoveries=info.num_recoveries,
            num_invalid=info.num_invalid,
        )
        return told, report

    exact = not isinstance(resampling, Deterministic)
    claim = potential.path_log_weight if exact else None
    return Explorer(plan, init, ask, tell, claim, select)
