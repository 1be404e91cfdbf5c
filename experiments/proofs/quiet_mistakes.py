"""Mistakes that small tables with mild scores do not show, as wrappers of any sampler.

Each is right nearly always: it needs long paths, large scores, light particles, equal
keys, a count that nobody reads, or many runs to be noticed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tsi.experiments.proofs.mistakes import weights_not_reset
from tsi.explorer import Explorer, Reply
from tsi.sampler import Sampler

MOST, LIGHTEST = 20.0, -16.0
"""What a log potential is clipped to, and the log weight that is called zero."""


def weights_not_reset_from_step_5(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Offspring keep the weights that they were drawn by, in the second half."""
    return weights_not_reset(sampler, from_step=5)


def _change_potentials(sampler: Sampler | Explorer, change: Any) -> Sampler | Explorer:
    """The sampler, told `change(potentials, finished now, finished before)`."""
    if isinstance(sampler, Explorer):

        def hear(key: Any, state: Any, reply: Reply) -> Any:
            before = jnp.zeros_like(reply.finished)
            told = change(reply.log_potentials, reply.finished, before)
            return sampler.tell(key, state, reply._replace(log_potentials=told))

        return sampler._replace(tell=hear)

    def tell(key: Any, state: Any, potentials: Any, corrections: Any, f: Any) -> Any:
        told = change(potentials, f, state.finished)
        return sampler.tell(key, state, told, corrections, f)

    return sampler._replace(tell=tell)


def potentials_in_bfloat16(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Log potentials are rounded to the 8 bits of a bfloat16."""
    return _change_potentials(
        sampler, lambda p, now, before: p.astype(jnp.bfloat16).astype(p.dtype)
    )


def clipped_potentials(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Log potentials are clipped to 20 either way, as if for safety."""

    def change(potentials: Any, now: Any, before: Any) -> Any:
        clipped = jnp.clip(potentials, -MOST, MOST)
        return jnp.where(jnp.isfinite(potentials), clipped, potentials)

    return _change_potentials(sampler, change)


def last_score_twice(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Who finishes is weighed by half more than its score."""
    return _change_potentials(
        sampler,
        lambda p, now, before: jnp.where(now & ~before, 1.5 * p, p),
    )


def counts_of_zero(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """`num_invalid` and `num_recoveries` are 0 whatever happens."""

    def tell(key: Any, *told: Any) -> tuple[Any, Any]:
        state, info = sampler.tell(key, *told)
        zero = jnp.zeros((), jnp.int32)
        return state, info._replace(num_invalid=zero, num_recoveries=zero)

    return sampler._replace(tell=tell)


def equal_keys(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """One more number is drawn, from a key equal to the one that `ask` is given."""

    def ask(key: Any, state: Any) -> tuple[Any, Any]:
        jitter = jax.random.normal(jax.random.split(key)[1], ())
        state, asked = sampler.ask(jax.random.fold_in(key, 1), state)

        def jitter_leaf(leaf: Any) -> Any:
            return jnp.where(jitter > 100.0, jnp.zeros_like(leaf), leaf)

        return state, jax.tree.map(jitter_leaf, asked)

    return sampler._replace(ask=ask)


class Overestimated(NamedTuple):
    """A sampler's state that says its evidence is larger than it is."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def log_evidence(self) -> Any:
        """Of the sampler, and one per cent."""
        return self.inner.log_evidence + jnp.log(jnp.float32(1.01))


def evidence_one_percent_off(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """The evidence is one per cent too large."""

    def init(key: Any, *numbers: int) -> Overestimated:
        return Overestimated(sampler.init(key, *numbers))

    def ask(key: Any, state: Overestimated) -> tuple[Overestimated, Any]:
        inner, asked = sampler.ask(key, state.inner)
        return Overestimated(inner), asked

    def tell(key: Any, state: Overestimated, *told: Any) -> tuple[Any, Any]:
        inner, info = sampler.tell(key, state.inner, *told)
        return Overestimated(inner), info

    return sampler._replace(init=init, ask=ask, tell=tell)


def mean_of_the_living(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """The evidence is the mean over particles with weight, not over all."""

    def tell(key: Any, state: Any, *told: Any) -> tuple[Any, Any]:
        after, info = sampler.tell(key, state, *told)
        alive = jnp.isfinite(after.log_weights)
        died = jnp.isfinite(state.log_weights) & ~alive
        share = jnp.mean(alive, dtype=jnp.float32)
        more = jnp.where(died.any() & alive.any(), -jnp.log(share), 0.0)
        return after._replace(log_evidence=after.log_evidence + more), info

    return sampler._replace(tell=tell)


def light_particles_dropped(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Weights below exp(-16) of the largest are called zero before a draw."""

    def ask(key: Any, state: Any) -> tuple[Any, Any]:
        weights = state.log_weights
        light = weights < weights.max() + LIGHTEST
        dropped = jnp.where(light, -jnp.inf, weights)
        return sampler.ask(key, state._replace(log_weights=dropped))

    return sampler._replace(ask=ask)


def naive_sum(key: Any, log_weights: Any, num_samples: int) -> Any:
    """A resampling scheme by a cumulative sum in float32, as one writes it first."""
    weights = jax.nn.softmax(log_weights)
    uniforms = jax.random.uniform(key, (num_samples,))
    drawn = jnp.searchsorted(jnp.cumsum(weights), uniforms)
    return jnp.minimum(drawn, weights.size - 1).astype(jnp.int32)
