"""A population of weighted particles: forking and weighting.

The parts of sequential Monte Carlo that do not depend on how ancestors are drawn; `smc`
and every other method with a population are built from them. Weights are normalised to
mean one, and log_evidence accumulates the normalisers.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.ess import ess
from tsi.samplers.parts.potentials import Potential
from tsi.weights import (
    CompensatedSum,
    all_dead,
    centre,
    is_invalid,
    log_mean_exp,
    sanitise,
    weight_dtype,
)


class SMCState(NamedTuple):
    """The state of a population.

    Attributes:
        log_weights: log weights with mean weight one, [N].
        log_evidence: log of the evidence estimate; 0 where weights are only ranks.
        log_evidence_rest: the rounding error of log_evidence, a compensated sum.
        log_potentials: each particle's last log potential, [N]; NaN is kept as -inf.
        log_scores: the same after the potential's transform, [N].
        log_base: the part of the log weight to which the next log factor is added, [N].
        finished: particles that take no further step, [N].
        ancestors: the latest ancestors, [N].
        resampled: which islands drew those ancestors, [I].
        recovering: which islands have just lost all weight, [I].
        t: number of steps so far.
    """

    log_weights: Float[Array, "N"]
    log_evidence: Float[Array, ""]
    log_evidence_rest: Float[Array, ""]
    log_potentials: Float[Array, "N"]
    log_scores: Float[Array, "N"]
    log_base: Float[Array, "N"]
    finished: Bool[Array, "N"]
    ancestors: Int[Array, "N"]
    resampled: Bool[Array, "I"]
    recovering: Bool[Array, "I"]
    t: Int[Array, ""]

    @property
    def evidence_sum(self) -> CompensatedSum:
        """The log evidence as a compensated sum."""
        return CompensatedSum(self.log_evidence, self.log_evidence_rest)


class SMCInfo(NamedTuple):
    """Diagnostics of one step.

    Attributes:
        ancestors: the parents of this step's particles, [N].
        ess: effective sample size of all N after the step; 0 if all weights are zero.
        resampled: whether any island resampled before the step.
        num_recoveries: islands that lost all weight in this step.
        num_invalid: unfinished particles whose log potential, correction or score is
            NaN or +inf.
        log_potentials: each particle's last log potential, as the state has it, [N].
    """

    ancestors: Int[Array, "N"]
    ess: Float[Array, ""]
    resampled: Bool[Array, ""]
    num_recoveries: Int[Array, ""]
    num_invalid: Int[Array, ""]
    log_potentials: Float[Array, "N"]


def new_population(num_particles: int, num_islands: int = 1) -> SMCState:
    """N equal particles before their first step."""
    zeros = jnp.zeros(num_particles, weight_dtype())
    return SMCState(
        log_weights=zeros,
        log_evidence=jnp.zeros((), weight_dtype()),
        log_evidence_rest=jnp.zeros((), weight_dtype()),
        log_potentials=zeros,
        log_scores=zeros,
        log_base=zeros,
        finished=jnp.zeros(num_particles, bool),
        ancestors=jnp.arange(num_particles, dtype=jnp.int32),
        resampled=jnp.zeros(num_islands, bool),
        recovering=jnp.zeros(num_islands, bool),
        t=jnp.zeros((), jnp.int32),
    )


def fork_population(
    state: SMCState,
    ancestors: Int[Array, "N"],
    log_weights: Float[Array, "N"],
    is_resampling: Bool[Array, "I"],
) -> SMCState:
    """Replace the particles of resampling islands by offspring of their ancestors.

    Args:
        state: the population before.
        ancestors: of all particles; in other islands each particle itself.
        log_weights: of the offspring; in other islands the weights before.
        is_resampling: which islands have drawn ancestors.
    """
    size = ancestors.shape[0] // is_resampling.shape[0]
    log_base = jnp.where(jnp.repeat(is_resampling, size), log_weights, state.log_base)
    return state._replace(
        log_weights=log_weights,
        log_potentials=state.log_potentials[ancestors],
        log_scores=state.log_scores[ancestors],
        log_base=log_base,
        finished=state.finished[ancestors],
        ancestors=ancestors,
        resampled=is_resampling,
    )


def weigh_population(
    state: SMCState,
    potential: Potential,
    log_potentials: Float[Array, "N"],
    log_corrections: Float[Array, "N"],
    finished: Bool[Array, "N"],
) -> tuple[SMCState, SMCInfo]:
    """Update the weights after a step; also returns the diagnostics of the step.

    The arguments are those of a sampler's `tell`.
    """
    # Models report in bfloat16, or in float32 even under x64.
    log_potentials = log_potentials.astype(weight_dtype())
    log_corrections = log_corrections.astype(weight_dtype())
    step_mask = ~state.finished
    corrections = jnp.where(step_mask, log_corrections, 0.0)
    raw_scores = potential.transform(sanitise(log_potentials))
    # A particle without weight may have taken no step; its numbers are ignored.
    invalid = (
        step_mask
        & (state.log_weights > -jnp.inf)
        & (
            is_invalid(log_potentials)
            | is_invalid(raw_scores)
            | is_invalid(corrections)
        )
    )
    scores = jnp.where(step_mask, sanitise(raw_scores), state.log_scores)
    corrections = sanitise(corrections)
    # Ratios restart if all weights have been reset.
    previous_scores = jnp.where(jnp.any(state.recovering), 0.0, state.log_scores)
    log_factors = potential.log_factor(scores, previous_scores, step_mask)
    base = state.log_base + corrections
    if potential.evidence == "none":
        base = jnp.zeros_like(base)
    relative, largest = centre(log_factors, where=base > -jnp.inf)
    log_w = base + potential.power * relative

    islands = state.recovering.shape[0]
    island_is_dead = all_dead(log_w.reshape(islands, -1))
    newly_dead = island_is_dead & ~all_dead(state.log_weights.reshape(islands, -1))
    all_islands_dead = jnp.all(island_is_dead)
    # An island without weight keeps weight zero while another island has weight;
    # anything else would bias the evidence.
    recovering = island_is_dead & all_islands_dead
    increment = log_mean_exp(log_w)
    shift = jnp.where(all_islands_dead, 0.0, increment)
    log_weights = jnp.where(all_islands_dead, 0.0, log_w - shift)
    if potential.evidence == "running":
        base = log_weights
        evidence = state.evidence_sum
    else:
        evidence = CompensatedSum(*map(jnp.zeros_like, state.evidence_sum))
    if potential.evidence != "none":
        evidence = evidence.add(potential.power * largest).add(increment)

    new_state = state._replace(
        log_weights=log_weights,
        log_evidence=evidence.value,
        log_evidence_rest=evidence.rest,
        log_potentials=jnp.where(
            step_mask, sanitise(log_potentials), state.log_potentials
        ),
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
        log_potentials=new_state.log_potentials,
    )
    return new_state, info
