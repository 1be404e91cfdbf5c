"""The small programs of a batch: what a sampler decides for many problems at once.

`tell` of one turn and `ask` of the next are compiled as one. A problem that has ended
is left as it was, as `tsi.run` would have left it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from tsi.batch import batch
from tsi.explorer import Explorer, Request
from tsi.models.layers import Segment
from tsi.models.partition import DATA, MODEL
from tsi.problem_ids import problem_keys
from tsi.reasoning import Particles
from tsi.sampler import Sampler, hopeless
from tsi.step_keys import step_keys
from tsi.weights import ess


class Noted(NamedTuple):
    """What a result says of a step, whatever the sampler's own info has.

    Attributes:
        ancestors: within each problem, [P, N].
        ess: effective sample size, [P].
        resampled: whether any particle moved, [P].
        num_recoveries, num_invalid: as in `SMCInfo`; zero if the info has none, [P].
        log_potentials: each particle's last, [P, N].
    """

    ancestors: Int[Array, "P N"]
    ess: Float[Array, "P"]
    resampled: Bool[Array, "P"]
    num_recoveries: Int[Array, "P"]
    num_invalid: Int[Array, "P"]
    log_potentials: Float[Array, "P N"]


def noted(info: Any, parents: Int[Array, "P N"], state: Any) -> Noted:
    """A step's numbers: those of the info, or else what the driver itself has seen."""
    problems, size = parents.shape
    ancestors = parents - jnp.arange(problems, dtype=parents.dtype)[:, None] * size
    zeros = jnp.zeros(problems, jnp.int32)
    seen = Noted(
        ancestors,
        ess(state.log_weights),
        jnp.any(ancestors != jnp.arange(size), axis=1),
        zeros,
        zeros,
        state.log_potentials,
    )
    own = info if isinstance(info, dict) else getattr(info, "_asdict", dict)()
    return seen._replace(**{k: v for k, v in own.items() if k in Noted._fields})


@functools.lru_cache(maxsize=256)
def sampler_programs(sampler: Sampler, problems: int, num_particles: int):
    """The sampler's two programs for a batch of problems."""
    lifted = batch(sampler, problems)

    @jax.jit
    def begin(key, ids):
        key_steps, start = _run_keys(key, ids)
        state = lifted.init(start, num_particles)
        asks = jax.vmap(lambda k: step_keys(k, 0).ask)(key_steps)
        state, ancestors = lifted.ask(asks, state)
        return key_steps, state, (ancestors, jnp.ones(ancestors.shape, bool))

    @jax.jit
    def turn(key_steps, t, state, live, parents, potentials, corrections, finished):
        tells = jax.vmap(lambda k: step_keys(k, t).tell)(key_steps)
        told, info = lifted.tell(tells, state, potentials, corrections, finished)
        info = noted(info, parents.reshape(problems, -1), told)
        state = _of_live(told, state, live)
        rests = jnp.zeros((problems, num_particles), bool)
        if sampler.prunes:
            rests = hopeless(state)
        over = finished.reshape(problems, -1) | rests
        ongoing = live & ~jnp.all(over, axis=1)
        asks = jax.vmap(lambda k: step_keys(k, t + 1).ask)(key_steps)
        asked, ancestors = lifted.ask(asks, state)
        state = _of_live(asked, state, ongoing)
        stay = jnp.arange(problems * num_particles, dtype=ancestors.dtype)
        ancestors = jnp.where(jnp.repeat(ongoing, num_particles), ancestors, stay)
        if sampler.prunes:
            rests = hopeless(state)
        rests |= ~ongoing[:, None]
        return state, (ancestors, ~rests.reshape(-1)), info, ongoing

    return begin, turn


@functools.lru_cache(maxsize=256)
def explorer_programs(
    explorer: Explorer, problems: int, num_particles: int, max_steps: int
):
    """The explorer's two programs for a batch of problems; see `sampler_programs`."""
    stored = explorer.plan(num_particles, max_steps).stored

    def flat(request: Request, live: Bool[Array, "P"]) -> Request:
        """A request [P, W] as one over all stored rows [P * W]."""
        offsets = jnp.arange(problems, dtype=jnp.int32)[:, None] * stored
        lost = (request.slots >= stored) | ~live[:, None]
        shifted = request._replace(
            parents=request.parents + offsets,
            slots=jnp.where(lost, problems * stored, request.slots + offsets),
            extend=request.extend & live[:, None],
        )
        if request.sources is not None:
            sources = jnp.where(request.sources < 0, -1, request.sources + offsets)
            shifted = shifted._replace(sources=sources)
        return jax.tree.map(lambda leaf: leaf.reshape(-1), shifted)

    @jax.jit
    def begin(key, ids):
        key_steps, start = _run_keys(key, ids)
        state = jax.vmap(lambda k: explorer.init(k, num_particles, max_steps))(start)
        asks = jax.vmap(lambda k: step_keys(k, 0).ask)(key_steps)
        state, request = jax.vmap(explorer.ask)(asks, state)
        return key_steps, state, flat(request, ~state.done)

    @jax.jit
    def turn(key_steps, count, state, live, reply):
        tells = jax.vmap(lambda k: step_keys(k, count).tell)(key_steps)
        by_problem = jax.tree.map(lambda leaf: leaf.reshape(problems, -1), reply)
        told, info = jax.vmap(explorer.tell)(tells, state, by_problem)
        state = _of_live(told, state, live)
        ongoing = live & ~state.done
        asks = jax.vmap(lambda k: step_keys(k, count + 1).ask)(key_steps)
        asked, request = jax.vmap(explorer.ask)(asks, state)
        state = _of_live(asked, state, ongoing)
        return state, flat(request, ongoing), info, ongoing

    return begin, turn


def _run_keys(key, ids):
    """Keys of steps and of the sampler's start, for every problem, as `tsi.run` has."""
    keys = jax.vmap(jax.random.split)(problem_keys(key, ids))
    key_init, key_steps = keys[:, 0], keys[:, 1]
    return key_steps, jax.vmap(jax.random.fold_in, (0, None))(key_init, 0)


def _of_live(new: Any, old: Any, live: Bool[Array, "P"]) -> Any:
    def keep(a: Array, b: Array) -> Array:
        return jnp.where(live.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(keep, new, old)


def on_one_device(tree: Any) -> Any:
    """Bring the few numbers a sampler sees together, whatever devices made them."""
    return jax.tree.map(jnp.asarray, jax.device_get(tree))


def spread(mesh: Mesh | None, particles: Particles) -> Particles:
    """Lay rows out along the mesh's ``data`` axis, cached heads along ``model``.

    Keys and values then lie where the weights do that make them. Heads, like weights,
    stay whole on every device where they do not divide evenly.
    """
    if mesh is None:
        return particles
    rows, devices = particles.lengths.shape[0], mesh.shape[DATA]
    parts = mesh.shape.get(MODEL, 1)

    def lay(x: jax.Array, *axes: str | None) -> jax.Array:
        named = [
            axis if axis != DATA or (size == rows and rows % devices == 0) else None
            for axis, size in zip(axes, x.shape, strict=False)
        ]
        sharding = NamedSharding(mesh, PartitionSpec(*named))
        return jax.lax.with_sharding_constraint(x, sharding)

    def place(x: Any) -> Any:
        if not isinstance(x, Segment):
            return lay(x, DATA)
        heads = MODEL if parts > 1 and x.keys.shape[2] % parts == 0 else None
        return Segment(
            lay(x.keys, None, DATA, heads),
            lay(x.values, None, DATA, heads),
            lay(x.positions, DATA),
            lay(x.mask, DATA),
        )

    return jax.tree.map(place, particles, is_leaf=lambda x: isinstance(x, Segment))
