r"""Conditional SMC: a particle system that contains a path it was given.

Particle 0 is the reference path x^0. At each step the reference keeps its place and its
past, and the other n - 1 particles draw their ancestors among all n, the reference
included, and extend them:

    a_t^0 = 0,   a_t^i ~ W_{t-1},   x_t^i ~ q(. | x_{<t}^{a_t^i}),   i = 1, ..., n - 1.

Drawing k in proportion to the last weights and returning x^k leaves the target
invariant [1]. What the weights are is `samplers.smc`'s business: the same `ask` and
`tell`, with the reference's remembered numbers told for particle 0.

Adaptive resampling is allowed where the schedule sees the weights as a set. Zhat W_T^k
times the law of the whole system is then

    gamma(x^k) * prod_(times of resampling) 1/n * (law of all but the path of k),

and those factors 1/n, however many there are, are the chances of the place that the
path takes after each resampling. So the extended target is a law with marginal pi in
x^k, and as all places are alike, the path may as well stand in place 0.

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
from tsi.samplers.parts.path_record import PathRecord, extend_record, no_paths
from tsi.samplers.parts.potentials import Potential, log_scores
from tsi.samplers.parts.resampling import (
    below,
    cumulate,
    grid,
    holder,
    in_units,
    multinomial,
    stay_if_dead,
)
from tsi.samplers.parts.schedules import Schedule, every_step
from tsi.samplers.smc import SMCInfo, SMCState, smc
from tsi.weights import all_dead, log_mean_exp

Scheme = Callable[[Array, Array, Array], Array]
"""`(key, log_weights [n], conditional []) -> ancestors [n]`, 0 of 0 if conditional."""


class Sweep(NamedTuple):
    """n particles on their way.

    Attributes:
        smc: their weights.
        records: the numbers of their paths.
    """

    smc: SMCState
    records: PathRecord


def conditional_multinomial(
    key: Key[Array, ""], log_weights: Float[Array, "n"], conditional: Bool[Array, ""]
) -> Int[Array, "n"]:
    """Independent draws for all but particle 0."""
    drawn = multinomial(key, log_weights, log_weights.shape[0])
    return jnp.where(_first(drawn) & conditional, 0, drawn)


def conditional_systematic(
    key: Key[Array, ""], log_weights: Float[Array, "n"], conditional: Bool[Array, ""]
) -> Int[Array, "n"]:
    """Systematic draws given that particle 0 descends from particle 0 [2].

    Systematic ancestors in a random rotation have a_0 ~ W, and their positions are a
    grid on a circle whose first point is uniform. Given a_0 = 0 that point is uniform
    in the interval of particle 0, and the others follow it around the circle.
    """
    size = log_weights.shape[0]
    key_unit, key_offset = jax.random.split(key)
    units = in_units(log_weights)
    cdf = cumulate(units)
    total = cdf[-1]
    # A reference whose weight is below the resolution is taken to have one unit.
    interval = jnp.where(conditional, jnp.maximum(units[0], 1), total)
    start = below(jax.random.bits(key_unit, (), jnp.uint32), interval)
    part = below(jax.random.bits(key_offset, (), jnp.uint32), jnp.uint32(size))
    around = start + grid(total, jnp.broadcast_to(part, size), size)
    drawn = holder(cdf, jnp.where(around >= total, around - total, around))
    drawn = stay_if_dead(log_weights, drawn)
    return jnp.where(_first(drawn) & conditional, 0, drawn)


def _first(rows: Array) -> Bool[Array, "n"]:
    return jnp.arange(rows.shape[0]) == 0


def begin(num_particles: int, max_steps: int) -> Sweep:
    """n empty paths."""
    sampler = smc(schedule=every_step)
    # Of SMC's first state only the shapes matter, and its key is never used.
    state = sampler.init(jax.random.key(0), num_particles)
    return Sweep(state, no_paths((num_particles,), max_steps))


def _sampler(
    potential: Potential,
    schedule: Schedule,
    scheme: Scheme,
    conditional: Bool[Array, ""],
    lineage: Int[Array, ""] | int,
) -> Sampler:
    def resampling(key: Array, log_weights: Array, num_samples: int) -> Array:
        drawn = scheme(key, log_weights, conditional)
        return jnp.where(_first(drawn) & conditional, lineage, drawn)

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
    """Particles that have drawn their ancestors, found in `.smc.ancestors`.

    Args:
        key: of the draws.
        sweep: n particles.
        potential: their weights.
        conditional: whether particle 0 is a reference.
        lineage: whom the reference descends from, other than 0 where ancestor sampling
            chose it.
        scheme: how the others draw.
        schedule: whether they draw.
    """
    sampler = _sampler(potential, schedule, scheme, conditional, lineage)
    state, ancestors = sampler.ask(key, sweep.smc)
    # A reference of density zero is its own ancestor all the same, and stays dead.
    dead = sweep.smc.log_weights[ancestors] == -jnp.inf
    state = state._replace(
        log_weights=jnp.where(dead, -jnp.inf, state.log_weights),
        log_base=jnp.where(dead, -jnp.inf, state.log_base),
    )
    return Sweep(state, jax.tree.map(lambda leaf: leaf[ancestors], sweep.records))


def weigh(
    sweep: Sweep,
    reply: Reply,
    potential: Potential,
    conditional: Bool[Array, ""],
    reference: PathRecord,
    *,
    ahead: bool = False,
) -> tuple[Sweep, SMCInfo]:
    """Particles one step longer; also SMC's diagnostics.

    Args:
        sweep: after `fork`.
        reply: of the turn; what it says of particle 0 is replaced.
        potential: their weights.
        conditional: whether particle 0 is a reference.
        reference: the numbers of its whole path.
        ahead: weigh the reference by its reward after the next step, as the released
            code of arXiv 2502.01618 does; what is recorded of it stays true.
    """
    step = jnp.minimum(sweep.smc.t, reference.log_potentials.shape[-1] - 1)
    remembered = Reply(
        reference.log_potentials[step],
        reference.log_corrections[step],
        reference.log_probs[step],
        sweep.smc.t + 1 >= reference.length,
    )
    kept = _first(reply.finished) & conditional
    told = jax.tree.map(lambda old, new: jnp.where(kept, old, new), remembered, reply)
    records = extend_record(sweep.records, told, ~sweep.smc.finished)
    sampler = smc(schedule=every_step, potential=potential)
    log_potentials = told.log_potentials
    if ahead:
        following = jnp.minimum(step + 1, jnp.maximum(reference.length - 1, 0))
        log_potentials = jnp.where(
            kept, reference.log_potentials[following], log_potentials
        )
    state, info = sampler.tell(
        jax.random.key(0),
        sweep.smc,
        log_potentials,
        told.log_corrections,
        told.finished,
    )
    return Sweep(state, records), info


def is_over(
    sweep: Sweep, conditional: Bool[Array, ""], *, published: bool = False
) -> Bool[Array, ""]:
    """Whether all particles are whole.

    Args:
        sweep: after `weigh`.
        conditional: whether particle 0 is a reference.
        published: the sweep ends with its fresh particles, however long the reference.
    """
    finished = sweep.smc.finished
    return jnp.all(finished | (_first(finished) & conditional & published))


def with_whole_reference(
    sweep: Sweep,
    potential: Potential,
    conditional: Bool[Array, ""],
    reference: PathRecord,
) -> Sweep:
    """The end of a published sweep: all weigh by their last reward.

    Args:
        sweep: of which at least the fresh particles are whole.
        potential: a rank, whose weights are functions of the last log potential.
        conditional: whether particle 0 is a reference.
        reference: the numbers of its whole path.
    """
    kept = _first(sweep.smc.finished) & conditional

    def whole(new: Array, old: Array) -> Array:
        return jnp.where(kept.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    last = jnp.take(reference.log_potentials, jnp.maximum(reference.length - 1, 0))
    log_potentials = whole(last, sweep.smc.log_potentials)
    scores = potential.power * log_scores(potential.transform, log_potentials)
    mean = jnp.where(all_dead(scores), 0.0, log_mean_exp(scores))
    state = sweep.smc._replace(
        log_weights=jnp.where(all_dead(scores), 0.0, scores - mean),
        log_potentials=log_potentials,
        finished=sweep.smc.finished | kept,
    )
    return Sweep(state, jax.tree.map(whole, reference, sweep.records))


def draw(key: Key[Array, ""], log_weights: Float[Array, "n"]) -> Int[Array, ""]:
    """One particle in proportion to its weight; the first if all weights are zero."""
    return multinomial(key, log_weights, 1)[0]
