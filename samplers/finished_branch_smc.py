r"""SMC in which every finished branch is kept with its weight.

A particle that finishes at step t with weight w leaves the population and is kept with
the mass Z_t w / N, where Z_t is the evidence estimate so far. The N rows continue with
the unfinished particles, which are resampled among themselves. Each mass is unbiased
for the solutions of its length,

    E[ sum over branches finished at t of mass * phi ] = sum over x of length t of
        p(x) exp(path_log_weight(x)) phi(x),

so the sum over all branches is unbiased for all solutions. Later resampling never drops
a finished branch, and finished branches do not compete with unfinished prefixes. A run
costs up to N rows for all T steps, since the rows of finished branches are used again.

References:
    [1] Dau and Chopin 2022, arXiv 2011.02328 (`waste_free_smc`). Differs: the paper
        keeps every state of the MCMC chains; here every finished branch of the particle
        system is kept, for the same purpose.
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
        population: N rows; a finished row has weight zero from then on. Its evidence
            is relative to `reference`.
        log_shares: log mass of each stored branch minus `reference`, [M]; -inf if no
            branch is stored there.
        reference: the log evidence of all rows after the latest step, before the
            finished ones left.
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
        """Log mass of each stored branch; -inf if no branch is stored there."""
        return self.log_shares + self.reference.value[..., None]

    @property
    def log_evidence(self) -> Float[Array, "*batch"]:
        """Log of the total mass."""
        return log_sum_exp(self.log_shares) + self.reference.value

    @property
    def log_weights(self) -> Float[Array, "*batch M"]:
        """Log masses with mean mass one; equal if there is no mass."""
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
    """SMC in which every finished branch is kept with its weight.

    Args:
        potential: product or telescoping; by default telescoping("odds").
        resampling: the scheme; with a deterministic one the method has no target.
        schedule: `(log_weights, t) -> bool`, by default ess_below(0.5), where finished
            rows have weight zero.
        select: how one answer is chosen.

    Returns:
        An `Explorer` with N rows and N T stored prefixes, all of them members.

    Raises:
        ConfigurationError: if the potential has no weights before the end.
    """
    potential = telescoping("odds") if potential is None else potential
    schedule = ess_below(0.5) if schedule is None else schedule
    if potential.evidence != "running":
        raise ConfigurationError(
            "finished_branch_smc weighs branches when they finish, but this potential "
            "has no weights before the end. Use product or telescoping."
        )

    def plan(num_particles: int, max_steps: int) -> Plan:
        return Plan(num_particles, num_particles * max_steps, max_steps)

    @with_typed_key
    def init(
        key: Key[Array, ""], num_particles: int, max_steps: int
    ) -> FinishedBranchState:
        num_stored = num_particles * max_steps
        return FinishedBranchState(
            population=new_population(num_particles),
            log_shares=jnp.full(num_stored, -jnp.inf),
            reference=CompensatedSum(jnp.zeros(()), jnp.zeros(())),
            log_potentials=jnp.zeros(num_stored),
            finished=jnp.zeros(num_stored, bool),
            members=jnp.arange(num_stored, dtype=jnp.int32),
            done=jnp.zeros((), bool),
        )

    @with_typed_key
    def ask(
        key: Key[Array, ""], state: FinishedBranchState
    ) -> tuple[FinishedBranchState, Request]:
        population = state.population
        log_w, size = population.log_weights, population.log_weights.shape[0]
        is_resampling = (
            schedule(log_w, population.t) & ~all_dead(log_w) & (population.t > 0)
        )
        indices = resampling(key, log_w, size)
        places = jnp.arange(size, dtype=jnp.int32)
        ancestors = jnp.where(is_resampling, indices, places)
        equal = jnp.broadcast_to(log_mean_exp(log_w), log_w.shape)
        log_weights = jnp.where(is_resampling, equal, log_w)
        fork = fork_population(population, ancestors, log_weights, is_resampling[None])
        # Generation t is stored in rows t N to t N + N - 1.
        offset = jnp.maximum(population.t - 1, 0) * size
        extend = log_weights > -jnp.inf
        not_stored = state.members.shape[0]
        request = Request(
            parents=ancestors + offset,
            # A finished branch is stored once, in the generation in which it finished.
            slots=jnp.where(extend, places + population.t * size, not_stored),
            extend=extend,
        )
        return state._replace(population=fork), request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: FinishedBranchState, reply: Reply
    ) -> tuple[FinishedBranchState, ExplorerInfo]:
        old_population = state.population
        size = old_population.log_weights.shape[0]
        new_population, info = weigh_population(
            old_population,
            potential,
            reply.log_potentials,
            reply.log_corrections,
            reply.finished,
        )
        has_weight = old_population.log_weights > -jnp.inf
        has_ended = has_weight & reply.finished
        # Masses are relative to the current evidence, so they do not contain the scale
        # of the potentials. Nor does the change of the evidence once there are masses:
        # it is summed by itself, since a difference of two evidences would have the
        # rounding of that scale. If the population has no evidence, nothing changes.
        change = new_population.evidence_sum
        no_evidence = change.value == -jnp.inf
        change = jax.tree.map(lambda part: jnp.where(no_evidence, 0.0, part), change)
        reference = state.reference.add(change.value).add(change.rest)
        newly_finished = has_ended & ~no_evidence
        log_shares = jnp.where(
            newly_finished, new_population.log_weights - jnp.log(float(size)), -jnp.inf
        )
        rows = old_population.t * size + jnp.arange(size)
        # Finished rows leave the population; the remaining weights get mean one again.
        log_remaining = jnp.where(
            has_ended | ~has_weight, -jnp.inf, new_population.log_weights
        )
        share = log_mean_exp(log_remaining)
        shift = jnp.where(share == -jnp.inf, 0.0, share)
        # Rows that restart after all weight was lost have no mass.
        is_lost = (new_population.log_evidence == -jnp.inf) & jnp.any(
            state.log_shares > -jnp.inf
        )
        done = (share == -jnp.inf) | is_lost
        population = new_population._replace(
            log_weights=log_remaining - shift,
            log_base=log_remaining - shift,
            log_evidence=jnp.where(no_evidence, -jnp.inf, share),
            log_evidence_rest=jnp.zeros_like(share),
            # Rows that have left the population take no further steps.
            finished=log_remaining == -jnp.inf,
        )
        new_state = state._replace(
            population=population,
            log_shares=(state.log_shares - change.value).at[rows].set(log_shares),
            reference=reference,
            log_potentials=state.log_potentials.at[rows].set(
                new_population.log_potentials
            ),
            finished=state.finished.at[rows].set(has_ended),
            done=done,
        )
        offset = jnp.maximum(old_population.t - 1, 0) * size
        turn_info = ExplorerInfo(
            parents=old_population.ancestors + offset,
            slots=rows.astype(jnp.int32),
            ess=info.ess,
            num_recoveries=info.num_recoveries,
            num_invalid=info.num_invalid,
        )
        return new_state, turn_info

    exact = not isinstance(resampling, Deterministic)
    path_log_weight = potential.path_log_weight if exact else None
    return Explorer(plan, init, ask, tell, path_log_weight, select)
