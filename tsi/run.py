"""One driver for every sampler: ask, gather, propose, weight, tell in a compiled loop.

The loop is a single `lax.while_loop`, so the whole of `run` may be jitted and vmapped
over keys and over parameters:

    many = jax.jit(jax.vmap(lambda key: tsi.run(sampler, target, key, 16)))
    runs = many(jax.random.split(key, 20_000))

Keys: `key_init, key_steps = split(key)`; the sampler starts from `fold_in(key_init, 0)`
and the target from `fold_in(key_init, 1)`; steps are keyed as `tsi.step_keys` says.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tsi.errors import ConfigurationError, warn_of_invalid
from tsi.explore import as_store, explore, propose_some
from tsi.explorer import Explorer
from tsi.sampler import Sampler, has_no_weight
from tsi.step_keys import AnyKey, single_key, step_keys, step_limit
from tsi.target import Particles


class Run(NamedTuple):
    """The result of a run.

    Attributes:
        particles: the target's particles, leading axis N.
        state: the sampler's state; `state.log_weights` [N], `state.log_evidence` [].
        infos: the sampler's infos stacked over steps, leading axis `max_steps`;
            entries from `num_steps` on are zero.
        num_steps: number of steps taken.
    """

    particles: Particles
    state: Any
    infos: Any
    num_steps: Int[Array, ""]


def turn(
    sampler: Sampler,
    target: Any,
    key_steps: AnyKey,
    t: Int[Array, ""] | int,
    state: Any,
    particles: Particles,
    params: Any = None,
) -> tuple[Any, Particles, Any]:
    """Step t of a run: ask, gather, propose, weight, tell.

    Args:
        sampler: the sampler.
        target: the target.
        key_steps: the run's second key; see `tsi.step_keys`.
        t: the step.
        state: the sampler's state.
        particles: the target's particles before the step.
        params: the target's parameters.

    Returns:
        The sampler's state, the particles, and the sampler's info, after the step.
    """
    keys = step_keys(key_steps, t)
    state, ancestors = sampler.ask(keys.ask, state)
    particles = target.gather(particles, ancestors)
    if sampler.prunes:
        particles, log_corrections = propose_some(
            target, keys.propose, t, particles, ~has_no_weight(state), params
        )
    else:
        particles, log_corrections = target.propose(keys.propose, t, particles, params)
    log_potentials = target.log_potential(t, particles, params)
    state, info = sampler.tell(
        keys.tell, state, log_potentials, log_corrections, target.finished(particles)
    )
    return state, particles, info


def run(
    sampler: Sampler | Explorer,
    target: Any,
    key: AnyKey,
    num_particles: int,
    params: Any = None,
    *,
    max_steps: int | None = None,
) -> Run:
    """Run a sampler on a target until all particles have finished.

    Args:
        sampler: a sampler or an explorer.
        target: see `tsi.target.Target`.
        key: of either style (see `tsi.step_keys`); the same key gives the same run.
        num_particles: N, static.
        params: the target's parameters (weights of models), passed through.
        max_steps: step limit, static; by default the target's `max_steps`, or 64. At
            the limit exactly `max_steps` steps have been proposed.

    Returns:
        A `Run`.

    Raises:
        ConfigurationError: the sampler cannot use this number of particles, or the key
            is not a single JAX key.
    """
    key = single_key(key)
    limit = step_limit(target, max_steps)
    if num_particles < 1:
        raise ConfigurationError(
            f"A run needs at least one particle, and num_particles is {num_particles}."
        )
    if isinstance(sampler, Explorer):
        exploration, infos = explore(
            sampler, target, key, num_particles, params, max_steps=limit
        )
        stored, _, state, turns = exploration
        members = as_store(target).gather(stored, state.members)
        return _warn_of_invalid(Run(members, state, infos, turns))
    key_init, key_steps = jax.random.split(key)
    state = sampler.init(jax.random.fold_in(key_init, 0), num_particles)
    particles = target.init(jax.random.fold_in(key_init, 1), num_particles, params)

    def step(t: Array, state: Any, particles: Particles) -> tuple[Any, Particles, Any]:
        return turn(sampler, target, key_steps, t, state, particles, params)

    start = jnp.zeros((), jnp.int32)
    _, _, info = jax.eval_shape(step, start, state, particles)
    infos = jax.tree.map(lambda leaf: jnp.zeros((limit, *leaf.shape), leaf.dtype), info)

    def is_unfinished(carry: tuple) -> Array:
        t, state, particles, _ = carry
        is_finished = target.finished(particles)
        if sampler.prunes:
            is_finished |= has_no_weight(state)
        return (t < limit) & ~jnp.all(is_finished)

    def advance(carry: tuple) -> tuple:
        t, state, particles, infos = carry
        state, particles, info = step(t, state, particles)
        infos = jax.tree.map(lambda stack, leaf: stack.at[t].set(leaf), infos, info)
        return t + 1, state, particles, infos

    t, state, particles, infos = jax.lax.while_loop(
        is_unfinished, advance, (start, state, particles, infos)
    )
    return _warn_of_invalid(Run(particles, state, infos, t))


def _warn_of_invalid(result: Run) -> Run:
    """The result, with a warning of invalid weights outside of jit and vmap."""
    num_invalid = getattr(result.infos, "num_invalid", None)
    if num_invalid is not None and not isinstance(num_invalid, jax.core.Tracer):
        warn_of_invalid(int(num_invalid.sum()), "This run")
    return result
