"""The scale of log potentials decides nothing in methods that use them as they are.

Log potentials are multiples of 1/64, which float32 adds exactly to constants of up to
300: runs under the same keys are then the same to the last bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tsi
from tsi.bench.shift_law import total_gain
from tsi.experiments.proofs.claims import CLAIMS
from tsi.targets.examples import impossible_prefixes, peaked, unequal_lengths
from tsi.targets.tabular import TabularTarget

KEYS = jax.random.split(jax.random.key(1), 200)
FAST = {
    "annealed_resampling": ("impossible prefixes", "peaked"),
    "auxiliary_particle_filter, product": ("impossible prefixes", "peaked"),
    "finished_branch_smc": ("up to nine steps",),
}
"""Samplers that are quick enough to be tested always, with some of the tables."""
WITH_TARGET = [
    name for name, claim in CLAIMS.items() if claim.make().path_log_weight is not None
]


def nine_steps(end=None):
    """Two symbols over up to nine steps whose scores reach from -40 to 40."""
    numbers = np.random.default_rng(0)
    return TabularTarget(
        initial=[0.5, 0.5],
        transition=[[0.6, 0.4], [0.3, 0.7]],
        log_potentials=numbers.integers(-2560, 2560, (9, 2)) / 64.0,
        end=end,
    )


def in_sixty_fourths(make):
    target = make()
    target.log_potentials = np.round(target.log_potentials * 64.0) / 64.0
    return target


TARGETS = {
    "nine steps": nine_steps(),
    "impossible prefixes": in_sixty_fourths(impossible_prefixes),
    "peaked": in_sixty_fourths(peaked),
    "unequal lengths": in_sixty_fourths(unequal_lengths),
    "up to nine steps": nine_steps(end=1),
}
CASES = [
    *(pytest.param(name, tables, id=name) for name, tables in FAST.items()),
    *(
        pytest.param(name, tuple(TARGETS), id=f"{name}, all", marks=pytest.mark.slow)
        for name in WITH_TARGET
    ),
]


@pytest.mark.parametrize(("name", "tables"), CASES)
def test_runs_are_bitwise_the_same_at_every_scale(name, tables):
    claim = CLAIMS[name]
    sampler = claim.make()
    programs = {}
    for target in (TARGETS[table] for table in tables):
        gain, params = total_gain(sampler, target), target.params
        if gain is None:
            continue

        def run(key, params, target=target):
            return tsi.run(sampler, target, key, claim.num_particles, params)

        shape = params.log_potentials.shape
        runs = programs.setdefault(shape, jax.jit(jax.vmap(run, (0, None))))
        plain = runs(KEYS, params)
        for shift in (-300.0, 17.0, 300.0):
            log_potentials = params.log_potentials + jnp.float32(shift)
            moved = runs(KEYS, params._replace(log_potentials=log_potentials))
            jax.tree.map(
                np.testing.assert_array_equal, plain.particles, moved.particles
            )
            weights = plain.state.log_weights, moved.state.log_weights
            np.testing.assert_array_equal(*weights)
            before, found = (
                np.asarray(run.state.log_evidence, np.float64) for run in (plain, moved)
            )
            alive = np.isfinite(before)
            np.testing.assert_array_equal(alive, np.isfinite(found))
            expected = before[alive] + gain * shift
            size = np.maximum(np.abs(expected), abs(gain * shift)).astype(np.float32)
            assert (np.abs(found[alive] - expected) <= 4 * np.spacing(size)).all()
