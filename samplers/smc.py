"""Sequential Monte Carlo, of which every method in this folder is a setting.

A target proposes steps x_t ~ q and reports log p - log q and a log potential. One
iteration of the particle system is

    a_t   ~ scheme(w_{t-1}),  if the schedule says so        (ask)
    x_t^i ~ q(. | x_{1:t-1}^{a_t^i})                         (the target)
    w_t^i = w~_{t-1}^i * p/q * potential                     (tell)

where w~ are the offspring's weights, by default equal; see `samplers/reproduction.py`
for other rules. Weights are kept with mean one and log_evidence collects what is taken
out:

    E[ exp(log_evidence) * (1/N) sum_i w_t^i phi(x_{1:t}^i) ]
        = sum_x p(x) exp(path_log_weight(x)) phi(x)    for every phi.

Resampling takes place within islands: groups of neighbouring particles that never mix,
each at its mean weight, which is the island's own evidence estimate.

Zero weights. A group (island) whose weights are all zero is not resampled: its
particles keep their places and go on. If no island has weight left, all particles start
again with equal weights and log_evidence is -inf, the true value of the estimate, from
there on. `num_recoveries` counts groups that newly lost all weight. A score or
correction that is NaN or +inf gives weight zero and is counted in `num_invalid`.

References:
    [1] Del Moral, Doucet and Jasra 2006, Sequential Monte Carlo samplers.
    [2] Chopin and Papaspiliopoulos 2020, An introduction to sequential Monte Carlo,
        Algorithm 10.3 (adaptive resampling).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.sampler import Sampler
from tsi.samplers.potentials import Potential, telescoping
from tsi.samplers.reproduction import Group, Reproduction, by_priority
from tsi.samplers.resampling import Resampling, systematic
from tsi.samplers.schedules import Schedule, ess_below, never
from tsi.weights import all_dead, ess, log_mean_exp


class SMCState(NamedTuple):
    """What the next decision needs.

    Attributes:
        log_weights: log weights with mean weight one, [N].
        log_evidence: log of the evidence estimate; 0 where weights are only ranks.
        log_potentials: each particle's last log potential, [N]; NaN is kept as -inf.
        log_scores: the same after the potential's transform, [N].
        log_base: the part of the log weight that the next score does not replace, [N].
        finished: particles that take no further step, [N].
        ancestors: who was asked for last, [N].
        resampled: which islands drew those ancestors, [I].
        recovering: which islands have just lost all weight, [I].
        t: steps told so far.
    """

    log_weights: Float[Array, "N"]
    log_evidence: Float[Array, ""]
    log_potentials: Float[Array, "N"]
    log_scores: Float[Array, "N"]
    log_base: Float[Array, "N"]
    finished: Bool[Array, "N"]
    ancestors: Int[Array, "N"]
    resampled: Bool[Array, "I"]
    recovering: Bool[Array, "I"]
    t: Int[Array, ""]


class SMCInfo(NamedTuple):
    """Diagnostics of one step.

    Attributes:
        ancestors: the parents of this step's particles, [N].
        ess: effective sample size of all N after the step; 0 if all weights are zero.
        resampled: whether any island resampled before the step.
        num_recoveries: islands that newly lost all weight in this step.
        num_invalid: unfinished particles told a NaN or infinite weight.
        log_potentials: each particle's last log potential, as the state has it, [N].
    """

    ancestors: Int[Array, "N"]
    ess: Float[Array, ""]
    resampled: Bool[Array, ""]
    num_recoveries: Int[Array, ""]
    num_invalid: Int[Array, ""]
    log_potentials: Float[Array, "N"]


def _unusable(values: Float[Array, "N"]) -> Bool[Array, "N"]:
    return jnp.isnan(values) | (values == jnp.inf)


def _count_islands(num_islands: int | Callable[[int], int], num_particles: int) -> int:
    islands = num_islands(num_particles) if callable(num_islands) else num_islands
    if islands < 1 or num_particles % islands:
        raise ConfigurationError(
            f"{num_particles} particles cannot form {islands} islands of equal size. "
            "Choose a number of particles that is a multiple of the islands."
        )
    return islands


def smc(
    *,
    resampling: Resampling = systematic,
    schedule: Schedule | None = None,
    potential: Potential | None = None,
    select: str = "posterior",
    num_islands: int | Callable[[int], int] = 1,
    reproduction: Reproduction | None = None,
) -> Sampler:
    """Sequential Monte Carlo; by default adaptive, systematic and telescoping.

    Args:
        resampling: a scheme `(key, log_weights, num_samples) -> ancestors`.
        schedule: `(log_weights, t) -> bool`: every_step, never, or ess_below(fraction),
            by default of 0.5.
        potential: product, telescoping, terminal, latest or uniform; by default
            telescoping("odds"), whose target is p(x) times the last potential.
        select: how one answer is chosen.
        num_islands: I, groups that resample among themselves, or a function of N.
        reproduction: how ancestors are drawn and what offspring weigh, in place of
            `resampling`. A sampler whose rule is not exact has no target.

    Returns:
        A `Sampler`. Island i draws with `split(key, I)[i]`, and with `key` if I = 1.
        `init` raises `ConfigurationError` if I does not divide N.

    Raises:
        ConfigurationError: for a terminal potential with a schedule other than never.
    """
    schedule = ess_below(0.5) if schedule is None else schedule
    potential = telescoping("odds") if potential is None else potential
    if potential.evidence == "terminal" and schedule is not never:
        raise ConfigurationError(
            "A terminal potential weighs only the last score, so resampling on earlier "
            "ones would aim at nothing. Use schedule=never, or a telescoping potential."
        )
    rule = by_priority(resampling) if reproduction is None else reproduction
    has_target = schedule is never or rule.exact

    def init(key: Key[Array, ""], num_particles: int) -> SMCState:
        islands = _count_islands(num_islands, num_particles)
        # Widths that do not fit are reported here, not in the middle of a run.
        equal = jnp.zeros(num_particles // islands)
        group = Group(equal, equal, equal > 0.0, jnp.ones((), jnp.int32))
        jax.eval_shape(rule.draw, key, group)
        zeros = jnp.zeros(num_particles, jnp.float32)
        return SMCState(
            log_weights=zeros,
            log_evidence=jnp.zeros((), jnp.float32),
            log_potentials=zeros,
            log_scores=zeros,
            log_base=zeros,
            finished=jnp.zeros(num_particles, bool),
            ancestors=jnp.arange(num_particles, dtype=jnp.int32),
            resampled=jnp.zeros(islands, bool),
            recovering=jnp.zeros(islands, bool),
            t=jnp.zeros((), jnp.int32),
        )

    def ask(key: Key[Array, ""], state: SMCState) -> tuple[SMCState, Int[Array, "N"]]:
        if schedule is never:
            return state, state.ancestors
        islands = state.recovering.shape[0]
        log_w = state.log_weights.reshape(islands, -1)
        size = log_w.shape[1]

        due = jax.vmap(schedule, in_axes=(0, None))(log_w, state.t)
        due = due & ~all_dead(log_w) & ~state.recovering & (state.t > 0)
        keys = key[None] if islands == 1 else jax.random.split(key, islands)
        groups = Group(
            log_w,
            state.log_scores.reshape(islands, -1),
            state.finished.reshape(islands, -1),
            jnp.broadcast_to(state.t, islands),
        )
        offspring = jax.vmap(rule.draw)(keys, groups)
        places = jnp.arange(size, dtype=jnp.int32)
        local = jnp.where(due[:, None], offspring.ancestors, places)
        log_weights = jnp.where(due[:, None], offspring.log_weights, log_w).reshape(-1)

        starts = jnp.arange(islands, dtype=jnp.int32) * size
        ancestors = (local + starts[:, None]).reshape(-1)
        log_scores = state.log_scores[ancestors]
        log_base = jnp.where(
            jnp.repeat(due, size),
            potential.restart(log_weights, log_scores),
            state.log_base,
        )
        forked = state._replace(
            log_weights=log_weights,
            log_potentials=state.log_potentials[ancestors],
            log_scores=log_scores,
            log_base=log_base,
            finished=state.finished[ancestors],
            ancestors=ancestors,
            resampled=due,
        )
        return forked, ancestors

    def tell(
        key: Key[Array, ""],
        state: SMCState,
        log_potentials: Float[Array, "N"],
        log_corrections: Float[Array, "N"],
        finished: Bool[Array, "N"],
    ) -> tuple[SMCState, SMCInfo]:
        # Models report in bfloat16 and x64 targets in float64; weights are float32.
        log_potentials = log_potentials.astype(jnp.float32)
        log_corrections = log_corrections.astype(jnp.float32)
        live = ~state.finished
        scores = potential.transform(log_potentials)
        corrections = jnp.where(live, log_corrections, 0.0)
        invalid = live & (
            jnp.isnan(log_potentials) | _unusable(scores) | _unusable(corrections)
        )
        scores = jnp.where(_unusable(scores), -jnp.inf, scores)
        scores = jnp.where(live, scores, state.log_scores)
        corrections = jnp.where(_unusable(corrections), -jnp.inf, corrections)
        base, log_w = potential.weigh(state.log_base, scores, corrections, live)

        islands = state.recovering.shape[0]
        dead = all_dead(log_w.reshape(islands, -1))
        newly_dead = dead & ~all_dead(state.log_weights.reshape(islands, -1))
        nothing_left = jnp.all(dead)
        # An island without weight among others that have some keeps weight zero: to
        # give it any would bias the evidence.
        recovering = dead & nothing_left
        increment = log_mean_exp(log_w)
        shift = jnp.where(nothing_left, 0.0, increment)
        log_weights = jnp.where(nothing_left, 0.0, log_w - shift)
        if potential.evidence == "running":
            base = jnp.where(nothing_left, 0.0, base - shift)
            log_evidence = state.log_evidence + increment
        elif potential.evidence == "terminal":
            log_evidence = increment
        else:
            log_evidence = state.log_evidence

        seen = jnp.where(jnp.isnan(log_potentials), -jnp.inf, log_potentials)
        told = state._replace(
            log_weights=log_weights,
            log_evidence=log_evidence,
            log_potentials=jnp.where(live, seen, state.log_potentials),
            log_scores=scores,
            log_base=base,
            finished=state.finished | finished,
            recovering=recovering,
            t=state.t + 1,
        )
        info = SMCInfo(
            ancestors=state.ancestors,
            ess=ess(log_w),
            resampled=jnp.any(state.resampled),
            num_recoveries=jnp.sum(newly_dead, dtype=jnp.int32),
            num_invalid=jnp.sum(invalid, dtype=jnp.int32),
            log_potentials=told.log_potentials,
        )
        return told, info

    return Sampler(
        init, ask, tell, potential.path_log_weight if has_target else None, select
    )
