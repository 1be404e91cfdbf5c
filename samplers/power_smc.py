r"""Power-SMC: solutions from p(x)^alpha by SMC, without any reward model.

The exponent rises from 1 to alpha over the first R steps,

    alpha_t = 1 + (alpha - 1) min(1, t / R),

and is alpha once all particles have finished. After step t the target of the particles
is p(x_{1:t})^{alpha_t}. A particle that proposes x_t ~ q has the weight

    w_t = w_{t-1} p(x_{1:t-1})^{alpha_t - alpha_{t-1}} p(x_t | x_{<t})^{alpha_t} / q.

A solution that has finished takes no step, and its weight changes by the first factor
until the exponent is alpha. The last target is therefore p(x)^alpha for every ramp, and

    E[ exp(log_evidence) * (1/N) sum_i w^i phi(x^i) ] = sum_x p(x)^alpha phi(x)

for every phi; the evidence is the sum of p^alpha over all solutions. With a potential,
p^alpha is multiplied by its path weight, at every step.

The proposal q is the target's. At temperature 1 / alpha, q is proportional to p(x_t |
x_{<t})^alpha token by token. Among all proposals that depend only on the prefix, it
gives weights of the smallest variance [1]. The weight is then the normaliser of this
distribution, so it is small where many continuations are likely. With the ramp,
prefixes are first weighted by milder powers, while they are short and differ little.

References:
    [1] Azizi et al. 2026, arXiv 2602.10273, and its code, ArminAzizi98/Power-SMC,
        `smc_samp_utils.py`: alpha = 4, q at temperature 1 / alpha, a ramp over the
        first 400 tokens, blocks of 128 tokens after which particles are resampled
        systematically if ESS < N / 2, one solution drawn by the last weights. Differs:
        the exponent and the resampling change between steps of reasoning, not between
        tokens, and the answer is the most probable one under the last weights. The code
        truncates its proposal to top_p = 0.9, for which no weight corrects; a
        truncation here belongs to p.
    [2] Del Moral, Doucet and Jasra 2006, Sequential Monte Carlo samplers (a sequence of
        targets).
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, Plan, Reply, Request
from tsi.picklable import picklable
from tsi.samplers.parts.allocation import Deterministic
from tsi.samplers.parts.population import (
    SMCState,
    fork_population,
    new_population,
    weigh_population,
)
from tsi.samplers.parts.potentials import Potential, require_running, uniform
from tsi.samplers.parts.resampling import Resampling, systematic
from tsi.samplers.parts.schedules import Schedule, ess_below
from tsi.step_keys import with_typed_key
from tsi.weights import all_dead, log_mean_exp, weight_dtype


class PowerState(NamedTuple):
    """A population, and log p of its paths.

    Attributes:
        population: as in SMC.
        log_probs: log p of each path so far, [N].
        exponent: alpha_t of the weights.
        done: whether all particles have finished.
        members: stored prefixes that are the particles, [N].
    """

    population: SMCState
    log_probs: Float[Array, "N"]
    exponent: Float[Array, ""]
    done: Bool[Array, ""]
    members: Int[Array, "N"]

    @property
    def log_weights(self) -> Any:
        """Log weights of the particles, [N]; also of a state on the host."""
        return self.population.log_weights

    @property
    def log_evidence(self) -> Any:
        """Log evidence of the population."""
        return self.population.log_evidence

    @property
    def log_potentials(self) -> Any:
        """Last log potentials of the particles, [N]."""
        return self.population.log_potentials

    @property
    def finished(self) -> Any:
        """Which particles have finished, [N]."""
        return self.population.finished


class PowerInfo(NamedTuple):
    """The fields of `ExplorerInfo`, and alpha_t after the turn."""

    parents: Int[Array, "N"]
    slots: Int[Array, "N"]
    ess: Float[Array, ""]
    num_recoveries: Int[Array, ""]
    num_invalid: Int[Array, ""]
    exponent: Float[Array, ""]


@picklable
def power_smc(
    alpha: float = 4.0,
    *,
    ramp_steps: int = 4,
    potential: Potential | None = None,
    resampling: Resampling = systematic,
    schedule: Schedule | None = None,
    select: str = "posterior",
) -> Explorer:
    """SMC for p^alpha, with a ramp of the exponent.

    Args:
        alpha: the power, positive.
        ramp_steps: R, the step after which the exponent is alpha; 0 or 1 for no ramp.
        potential: product, telescoping or uniform, whose path weight multiplies
            p^alpha; by default uniform, which reads no reward.
        resampling: the scheme; with a deterministic one the method has no target.
        schedule: `(log_weights, t) -> bool`, by default ess_below(0.5).
        select: how one answer is chosen.

    Returns:
        An `Explorer` with N rows and N stored prefixes, for targets with `log_prob`.
        Its info also has the `exponent` of each turn.

    Raises:
        ConfigurationError: if alpha is not positive and finite, the ramp has a negative
            length, or the potential has no weights before the end.
    """
    if not 0.0 < alpha < math.inf or ramp_steps < 0:
        raise ConfigurationError(
            "power_smc needs a positive power and a ramp of 0 or more steps; got "
            f"alpha={alpha}, ramp_steps={ramp_steps}."
        )
    schedule = ess_below(0.5) if schedule is None else schedule
    potential = require_running(
        uniform() if potential is None else potential, "power_smc"
    )

    def ramp(t: Int[Array, ""]) -> Float[Array, ""]:
        share = jnp.minimum(t / max(ramp_steps, 1), 1.0)
        return (1.0 + (alpha - 1.0) * share).astype(weight_dtype())

    def plan(num_particles: int, max_steps: int) -> Plan:
        return Plan(num_particles, num_particles, max_steps)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> PowerState:
        return PowerState(
            population=new_population(num_particles),
            log_probs=jnp.zeros(num_particles, weight_dtype()),
            exponent=jnp.ones((), weight_dtype()),
            done=jnp.zeros((), bool),
            members=jnp.arange(num_particles, dtype=jnp.int32),
        )

    @with_typed_key
    def ask(key: Key[Array, ""], state: PowerState) -> tuple[PowerState, Request]:
        population, places = state.population, state.members
        log_w = population.log_weights
        is_resampling = (
            schedule(log_w, population.t) & ~all_dead(log_w) & (population.t > 0)
        )
        is_resampling &= ~population.recovering[0]
        indices = resampling(key, log_w, places.shape[0])
        ancestors = jnp.where(is_resampling, indices, places)
        equal = jnp.broadcast_to(log_mean_exp(log_w), log_w.shape)
        log_weights = jnp.where(is_resampling, equal, log_w)
        population = fork_population(
            population, ancestors, log_weights, is_resampling[None]
        )
        request = Request(ancestors, places, ~population.finished)
        state = state._replace(
            population=population, log_probs=state.log_probs[ancestors]
        )
        return state, request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: PowerState, reply: Reply
    ) -> tuple[PowerState, PowerInfo]:
        old_population = state.population
        is_live = ~old_population.finished
        exponent = ramp(old_population.t + 1)
        all_finished = jnp.all(old_population.finished | reply.finished)
        exponent = jnp.where(all_finished, jnp.asarray(alpha, exponent.dtype), exponent)
        # p / q is in the corrections, so one power of the step's p is already there.
        step = jnp.where(is_live, reply.log_probs.astype(weight_dtype()), 0.0)
        corrections = reply.log_corrections + _log_power(step, exponent - 1.0)
        past = _log_power(state.log_probs, exponent - state.exponent)
        population, info = weigh_population(
            old_population._replace(log_base=old_population.log_base + past),
            potential,
            reply.log_potentials,
            corrections,
            reply.finished,
        )
        new_state = state._replace(
            population=population,
            log_probs=state.log_probs + step,
            exponent=exponent,
            done=all_finished,
        )
        turn_info = PowerInfo(
            parents=old_population.ancestors,
            slots=state.members,
            ess=info.ess,
            num_recoveries=info.num_recoveries,
            num_invalid=info.num_invalid,
            exponent=exponent,
        )
        return new_state, turn_info

    exact = not isinstance(resampling, Deterministic)
    path_log_weight = potential.path_log_weight if exact else None
    return Explorer(
        plan,
        init,
        ask,
        tell,
        path_log_weight,
        select,
        needs=("log_prob",),
        power=alpha,
    )


def _log_power(
    log_probs: Float[Array, "N"], exponent: Float[Array, ""]
) -> Float[Array, "N"]:
    """log of p^exponent; -inf where p is zero, for every exponent."""
    possible = log_probs > -jnp.inf
    powers = exponent * jnp.where(possible, log_probs, 0.0)
    return jnp.where(possible, powers, -jnp.inf)
