"""The bench finds mistakes about corrections, and keys that are used again late."""

import itertools

import jax.numpy as jnp
import pytest

from tsi import samplers
from tsi.bench.conformance import checks_of
from tsi.experiments.proofs.quiet_mistakes import change_corrections, late_key

PROMISES = ("shift", "zero weights", "counts", "keys")


def is_kept(sampler, promise: str) -> bool:
    """Whether a sampler keeps a promise; the others are not tested."""
    checks = checks_of(sampler, num_particles=8, num_runs=400, first=[promise])
    own = itertools.takewhile(
        lambda check: check.promise.partition(",")[0] == promise, checks
    )
    return all(check.passed is not False for check in own)


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
    assert not is_kept(change_corrections(SAMPLERS[name](), change), promise)


@pytest.mark.parametrize("num_new_keys", [1, 4, 8])
def test_a_key_that_is_used_again_at_a_late_step_is_found(num_new_keys):
    mutant = late_key(samplers.smc(potential=samplers.product()), num_new_keys)
    assert not is_kept(mutant, "keys")
