"""A walk of N particles through a target, with all numbers that the target reports.

`tsi.bench.target_check` compares the particles before the first step and after each
step, and the numbers that the target reports for them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.errors import TsiError
from tsi.explore import as_store
from tsi.step_keys import step_limit


class Outputs(NamedTuple):
    """The numbers of N particles after a step, [N] each.

    Attributes:
        log_corrections: log p - log q of the step.
        log_potentials: of the prefixes.
        finished: whether they take no further step.
        log_probs: log p of the prefixes; NaN if the target has no `log_prob`.
        log_proposals: log q of the prefixes; NaN if it has no `log_proposal`.
    """

    log_corrections: Any
    log_potentials: Any
    finished: Any
    log_probs: Any
    log_proposals: Any


class Walk(NamedTuple):
    """Particles [N] after 0, 1, 2, ... steps, and their numbers after 1, 2, ..."""

    particles: list[Any]
    outputs: list[Outputs]


class Walker:
    """A target's methods, compiled once for each shape.

    Args:
        target: the target; its store is used if it has one.
        params: its parameters.
        max_steps: steps of a walk; by default the target's, but at most 6.
    """

    def __init__(self, target: Any, params: Any, max_steps: int | None) -> None:
        self.target, self.params = as_store(target), params
        self.limit = step_limit(self.target, max_steps)
        self.num_steps = min(self.limit, 6)

    def has(self, capability: str) -> bool:
        """Whether the target has an optional method."""
        return getattr(self.target, capability, None) is not None

    @functools.cached_property
    def gather(self) -> Callable[..., Any]:
        """`(particles, ancestors) -> particles`, compiled."""
        return jax.jit(self.target.gather)

    @functools.cached_property
    def replay_refusal(self) -> str:
        """The reason why steps cannot be repeated; empty if they can."""
        if not self.has("replay"):
            return "the target has no replay"
        before = self.start(jax.random.key(0), 2)
        try:
            jax.eval_shape(
                lambda rows: self.target.replay(0, rows, rows, self.params), before
            )
        except TsiError as error:
            # A target may support replay for some parameters only.
            return str(error)
        return ""

    @functools.cached_property
    def step(self) -> Callable[..., tuple[Any, Outputs]]:
        """`(key, t, particles) -> (particles, Outputs)`, compiled."""
        return jax.jit(self.eager_step)

    def eager_step(self, key: Any, t: Any, particles: Any) -> tuple[Any, Outputs]:
        """One step, not compiled."""
        after, corrections = self.target.propose(key, t, particles, self.params)
        return after, self.evaluate(t, after, corrections)

    def evaluate(self, t: Any, particles: Any, corrections: Any) -> Outputs:
        """The target's numbers of particles after step t."""
        unknown = jnp.full(corrections.shape, jnp.nan)

        def evaluate_log_density(name: str) -> Any:
            if not self.has(name):
                return unknown
            return getattr(self.target, name)(particles, self.params)

        return Outputs(
            corrections,
            self.target.log_potential(t, particles, self.params),
            self.target.finished(particles),
            evaluate_log_density("log_prob"),
            evaluate_log_density("log_proposal"),
        )

    def start(self, key: Key[Array, ""], num_particles: int) -> Any:
        """N particles before their first step."""
        return self.target.init(key, num_particles, self.params)

    def key_of(self, key: Key[Array, ""], t: int) -> Key[Array, ""]:
        """The key of step t of a walk under `key`."""
        return jax.random.fold_in(key, t + 1)

    def walk(self, key: Key[Array, ""], num_particles: int) -> Walk:
        """N particles until all have finished."""
        walk = Walk([self.start(jax.random.fold_in(key, 0), num_particles)], [])
        for t in range(self.num_steps):
            particles, outputs = self.step(self.key_of(key, t), t, walk.particles[-1])
            walk.particles.append(particles)
            walk.outputs.append(jax.device_get(outputs))
            if np.asarray(outputs.finished).all():
                break
        return walk


def rows_of(particles: Any, num_particles: int, rows: Any) -> list[np.ndarray]:
    """The leaves with one row per particle, at these rows.

    Leaves that all particles share (a prompt) have other shapes and are left out.
    """
    leaves = []
    for leaf in jax.tree.leaves(particles):
        if getattr(leaf, "shape", ())[:1] == (num_particles,):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            numbers = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
            leaves.append(numbers[rows])
    return leaves


def agree(first: Any, second: Any, tolerance: float = 1e-4) -> bool:
    """Whether numbers are the same: integers exactly, floats within a tolerance."""
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape:
        return False
    if first.dtype.kind in "biu" or second.dtype.kind in "biu":
        return bool(np.array_equal(first, second))
    return bool(
        np.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)
    )


def first_row(first: Any, second: Any) -> int:
    """The first particle in which two arrays [N] differ."""
    pairs = zip(np.asarray(first), np.asarray(second), strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if not agree(a, b)), 0)
