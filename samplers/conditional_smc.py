r"""Conditional SMC: a particle system that contains a given path.

Particle 0 is the reference path x^0. At each step the reference keeps its index and its
past. The other n - 1 particles draw their ancestors among all n particles, including
the reference, and extend them:

    a_t^0 = 0,   a_t^i ~ W_{t-1},   x_t^i ~ q(. | x_{<t}^{a_t^i}),   i = 1, ..., n - 1.

Drawing k in proportion to the last weights and returning x^k leaves the target
invariant [1]. The weights are those of `samplers.smc`: the code calls its `ask` and
`tell`, and particle 0 gets the recorded numbers of the reference.

Adaptive resampling is allowed if the schedule is a symmetric function of the weights.
Zhat W_T^k times the distribution of the whole system is then

    gamma(x^k) * prod_(times of resampling) 1/n * (distribution of all but path k),

where each factor 1/n is the probability of the index that the path gets after a
resampling. So the extended target is a distribution with marginal pi in x^k. All
indices are exchangeable, so the path may have index 0.

References:
    [1] Andrieu, Doucet and Holenstein 2010, Particle Markov chain Monte Carlo methods.
    [2] Chopin and Singh 2015, arXiv 1304.1887, section 5 (conditional systematic
        resampling).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.explorer import Reply
from tsi.sampler import Sampler
from tsi.samplers.parts.path_record import PathRecord, empty_paths, extend_record
from tsi.samplers.parts.potentials import Potential, log_scores
from tsi.samplers.parts.resampling import (
    count_units,
    cumulate,
    find_interval,
    grid,
    multinomial,
    stay_if_dead,
)
from tsi.samplers.parts.schedules import Schedule, every_step
from tsi.samplers.smc import SMCInfo, SMCState, smc
from tsi.scaled_bits import scale_bits
from tsi.weights import all_dead, log_mean_exp

Scheme = Callable[[Array, Array, Array], Array]
"""`(key, log_weights [n], conditional []) -> ancestors [n]`.

If conditional, the ancestor of particle 0 is particle 0.
"""


class Sweep(NamedTuple):
    """n particles of the current sweep.

    Attributes:
        smc: their SMC state.
        records: the numbers of their paths.
    """

    smc: SMCState
    records: PathRecord


def conditional_multinomial(
    key: Key[Array, ""], log_weights: Float[Array, "n"], conditional: Bool[Array, ""]
) -> Int[Array, "n"]:
    """Independent ancestors for all particles but particle 0."""
    indices = multinomial(key, log_weights, log_weights.shape[0])
    return jnp.where(_is_first(indices) & conditional, 0, indices)


def conditional_systematic(
    key: Key[Array, ""], log_weights: Float[Array, "n"], conditional: Bool[Array, ""]
) -> Int[Array, "n"]:
    """Systematic ancestors given that particle 0 descends from particle 0 [2].

    Systematic ancestors in a random rotation have a_0 ~ W, and their positions are a
    grid on a circle whose first point is uniform. Given a_0 = 0 that point is uniform
    in the interval of particle 0, and the others follow it around the circle.
    """
    size = log_weights.shape[0]
    key_unit, key_offset = jax.random.split(key)
    units = count_units(log_weights)
    cdf = cumulate(units)
    total = cdf[-1]
    # A reference whose weight is below the resolution counts as one unit.
    interval = jnp.where(conditional, jnp.maximum(units[0], 1), total)
    start = scale_bits(jax.random.bits(key_unit, (), jnp.uint32), interval)
    offset = scale_bits(jax.random.bits(key_offset, (), jnp.uint32), jnp.uint32(size))
    shifted_grid = start + grid(total, jnp.broadcast_to(offset, size), size)
    indices = find_interval(
        cdf, jnp.where(shifted_grid >= total, shifted_grid - total, shifted_grid)
    )
    indices = stay_if_dead(log_weights, indices)
    return jnp.where(_is_first(indices) & conditional, 0, indices)


def _is_first(rows: Array) -> Bool[Array, "n"]:
    return jnp.arange(rows.shape[0]) == 0


def start_sweep(num_particles: int, max_steps: int) -> Sweep:
    """n empty paths."""
    sampler = smc(schedule=every_step)
    # `init` of SMC never uses its key.
    state = sampler.init(jax.random.key(0), num_particles)
    return Sweep(state, empty_paths((num_particles,), max_steps))


def _sampler(
    potential: Potential,
    schedule: Schedule,
    scheme: Scheme,
    conditional: Bool[Array, ""],
    lineage: Int[Array, ""] | int,
) -> Sampler:
    def resampling(key: Array, log_weights: Array, num_samples: int) -> Array:
        indices = scheme(key, log_weights, conditional)
        return jnp.where(_is_first(indices) & conditional, lineage, indices)

    return smc(resampling=resampling, schedule=schedule, potential=potential)


def fork(
    key: Key[Array, ""],
    sweep: Sweep,
    potential: Potential,
    conditional: Bool[Array, ""],
    *,
    lineage: Int[Array, ""] | int = 0,
    scheme: Scheme = conditional_multinomial,
    schedule: Schedule = every_step,
) -> Sweep:
    """Draw ancestors; they are in `.smc.ancestors` of the result.

    Args:
        key: a typed key.
        sweep: n particles.
        potential: the potential that defines their weights.
        conditional: whether particle 0 is a reference.
        lineage: ancestor of the reference; 0 unless ancestor sampling has drawn it.
        scheme: how the other particles draw ancestors.
        schedule: when they draw ancestors.
    """
    sampler = _sampler(potential, schedule, scheme, conditional, lineage)
    state, ancestors = sampler.ask(key, sweep.smc)
    # A reference of density zero remains its own ancestor, with weight zero.
    is_dead = sweep.smc.log_weights[ancestors] == -jnp.inf
    state = state._replace(
        log_weights=jnp.where(is_dead, -jnp.inf, state.log_weights),
        log_base=jnp.where(is_dead, -jnp.inf, state.log_base),
    )
    return Sweep(state, jax.tree.map(lambda leaf: leaf[ancestors], sweep.records))


def weigh(
    sweep: Sweep,
    reply: Reply,
    potential: Potential,
    conditional: Bool[Array, ""],
    reference: PathRecord,
    *,
    one_reward_ahead: bool = False,
) -> tuple[Sweep, SMCInfo]:
    """Weight the particles after a step; also returns the diagnostics of SMC.

    Args:
        sweep: the result of `fork`.
        reply: of the turn; its numbers for particle 0 are replaced if conditional.
        potential: the potential that defines the weights.
        conditional: whether particle 0 is a reference.
        reference: the numbers of the reference's complete path.
        one_reward_ahead: weigh the reference by its reward after the next step, as the
            released code of arXiv 2502.01618 does; its record keeps the true rewards.
    """
    step = jnp.minimum(sweep.smc.t, reference.log_potentials.shape[-1] - 1)
    recorded = Reply(
        reference.log_potentials[step],
        reference.log_corrections[step],
        reference.log_probs[step],
        sweep.smc.t + 1 >= reference.length,
    )
    is_reference = _is_first(reply.finished) & conditional
    full_reply = jax.tree.map(
        lambda old, new: jnp.where(is_reference, old, new), recorded, reply
    )
    records = extend_record(sweep.records, full_reply, ~sweep.smc.finished)
    sampler = smc(schedule=every_step, potential=potential)
    log_potentials = full_reply.log_potentials
    if one_reward_ahead:
        next_step = jnp.minimum(step + 1, jnp.maximum(reference.length - 1, 0))
        log_potentials = jnp.where(
            is_reference, reference.log_potentials[next_step], log_potentials
        )
    state, info = sampler.tell(
        jax.random.key(0),
        sweep.smc,
        log_potentials,
        full_reply.log_corrections,
        full_reply.finished,
    )
    return Sweep(state, records), info


def is_complete(
    sweep: Sweep, conditional: Bool[Array, ""], *, published: bool = False
) -> Bool[Array, ""]:
    """Whether the sweep is complete: all particles have finished.

    Args:
        sweep: the result of `weigh`.
        conditional: whether particle 0 is a reference.
        published: the sweep ends when the other particles have finished, even if the
            reference is longer.
    """
    finished = sweep.smc.finished
    return jnp.all(finished | (_is_first(finished) & conditional & published))


def complete_reference(
    sweep: Sweep,
    potential: Potential,
    conditional: Bool[Array, ""],
    reference: PathRecord,
) -> Sweep:
    """Complete the reference at the end of a published sweep, and weight all particles.

    Args:
        sweep: all particles but the reference have finished.
        potential: a rank, whose weights are functions of the last log potential.
        conditional: whether particle 0 is a reference.
        reference: the numbers of the reference's complete path.
    """
    is_reference = _is_first(sweep.smc.finished) & conditional

    def complete(new: Array, old: Array) -> Array:
        return jnp.where(is_reference.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    last = jnp.take(reference.log_potentials, jnp.maximum(reference.length - 1, 0))
    log_potentials = complete(last, sweep.smc.log_potentials)
    scores = potential.power * log_scores(potential.transform, log_potentials)
    mean = jnp.where(all_dead(scores), 0.0, log_mean_exp(scores))
    state = sweep.smc._replace(
        log_weights=jnp.where(all_dead(scores), 0.0, scores - mean),
        log_potentials=log_potentials,
        finished=sweep.smc.finished | is_reference,
    )
    return Sweep(state, jax.tree.map(complete, reference, sweep.records))


def draw(key: Key[Array, ""], log_weights: Float[Array, "n"]) -> Int[Array, ""]:
    """Draw one particle in proportion to its weight; the first if all are zero."""
    return multinomial(key, log_weights, 1)[0]
