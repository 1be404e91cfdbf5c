"""The bench finds mistakes about corrections, and keys that are used again late."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from tsi import samplers
from tsi.bench.conformance import checks_of

PROMISES = ("shift", "zero weights", "counts", "keys")


def is_kept(sampler, promise: str) -> bool:
    """Whether a sampler keeps a promise; the others are not tested."""
    checks = checks_of(sampler, num_particles=8, num_runs=400, first=[promise])
    own = itertools.takewhile(
        lambda check: check.promise.partition(",")[0] == promise, checks
    )
    return all(check.passed is not False for check in own)


def with_corrections(change, sampler):
    """The sampler, told `change(log corrections)`."""
    if hasattr(sampler, "plan"):

        def tell_explorer(key, state, reply):
            changed = reply._replace(log_corrections=change(reply.log_corrections))
            return sampler.tell(key, state, changed)

        return sampler._replace(tell=tell_explorer)

    def tell(key, state, potentials, corrections, finished):
        return sampler.tell(key, state, potentials, change(corrections), finished)

    return sampler._replace(tell=tell)


def clip(corrections):
    return jnp.where(
        jnp.isfinite(corrections), jnp.clip(corrections, -5, 5), corrections
    )


def floor(corrections):
    return jnp.where(corrections == -jnp.inf, -60.0, corrections)


def read_invalid_as_zero(corrections):
    valid = jnp.isfinite(corrections) | (corrections == -jnp.inf)
    return jnp.where(valid, corrections, 0.0)


def ignore(corrections):
    return jnp.zeros_like(corrections)


SAMPLERS = {
    "smc": lambda: samplers.smc(potential=samplers.product()),
    "best_of_n": samplers.best_of_n,
    "particle_gibbs": samplers.particle_gibbs,
    "suffix_metropolis": lambda: samplers.suffix_metropolis(samplers.telescoping()),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLERS)
def test_correct_samplers_keep_these_promises(name):
    assert all(is_kept(SAMPLERS[name](), promise) for promise in PROMISES)


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "promise"),
    [
        (clip, "shift"),
        (ignore, "shift"),
        (floor, "zero weights"),
        (read_invalid_as_zero, "zero weights"),
        (read_invalid_as_zero, "counts"),
    ],
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mistake_about_corrections_breaks_a_promise(name, change, promise):
    assert not is_kept(with_corrections(change, SAMPLERS[name]()), promise)


class StateWithKey(NamedTuple):
    """The state of a sampler, and a key that `ask` has used."""

    inner: Any
    key_data: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def keeps_a_key_from_step(late):
    sampler = samplers.smc(potential=samplers.product())

    def init(key, num_particles):
        state = sampler.init(key, num_particles)
        return StateWithKey(state, jax.random.key_data(key))

    def ask(key, state):
        own = jnp.where(state.t < late, jax.random.key_data(key), state.key_data)
        inner, ancestors = sampler.ask(jax.random.wrap_key_data(own), state.inner)
        return StateWithKey(inner, own), ancestors

    def tell(key, state, *numbers):
        inner, info = sampler.tell(key, state.inner, *numbers)
        return StateWithKey(inner, state.key_data), info

    return sampler._replace(init=init, ask=ask, tell=tell)


@pytest.mark.parametrize("late", [1, 4, 8])
def test_a_key_that_is_used_again_at_a_late_step_is_found(late):
    assert not is_kept(keeps_a_key_from_step(late), "keys")
