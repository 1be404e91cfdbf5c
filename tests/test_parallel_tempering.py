"""Parallel tempering is exact for all temperatures together; wrong swaps are not."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import chain, judged, other_promises

import tsi
from tsi import samplers
from tsi.bench.robustness import Programs
from tsi.errors import ConfigurationError
from tsi.targets.examples import peaked, unequal_lengths

tempering = importlib.import_module("tsi.samplers.parallel_tempering")

TEMPERED = {
    "tempering": lambda: samplers.parallel_tempering(
        num_temperatures=2, max_temperature=3.0, num_sweeps=2
    ),
    "three, telescoping": lambda: samplers.parallel_tempering(
        potential=samplers.telescoping(), temperatures=(1.0, 2.0, 3.5), num_sweeps=2
    ),
}


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["tempering", pytest.param("three, telescoping", marks=pytest.mark.slow)]
)
def test_the_cold_chain_is_exact_by_the_product_of_all_evidences(name):
    judged(TEMPERED[name](), num_particles=12).raise_if_failed()


@pytest.mark.long
def test_tempering_keeps_the_other_promises():
    other_promises(TEMPERED["tempering"](), 12).raise_if_failed()


def always_swapped(patch):
    right = tempering.swap

    def mutant(key, scores, log_temperatures, turn):
        return right(key, jnp.zeros_like(scores), log_temperatures, turn)

    patch.setattr(tempering, "swap", mutant)


def swapped_the_wrong_way(patch):
    right = tempering.swap

    def mutant(key, scores, log_temperatures, turn):
        return right(key, -scores, log_temperatures, turn)

    patch.setattr(tempering, "swap", mutant)


@pytest.mark.slow
@pytest.mark.parametrize("mutate", [always_swapped, swapped_the_wrong_way])
def test_wrong_swaps_are_caught(mutate, monkeypatch):
    mutate(monkeypatch)
    explorer = samplers.parallel_tempering(
        num_temperatures=2, max_temperature=6.0, particles_per_sweep=2
    )
    report = judged(explorer, {"peaked": peaked}, num_particles=24)
    assert "posterior, peaked" in {check.promise for check in report.failures}


@pytest.mark.slow
def test_the_ladder_is_adapted_until_neighbours_swap_equally_often():
    def rates(**settings):
        explorer = samplers.parallel_tempering(
            num_temperatures=4, max_temperature=8.0, particles_per_sweep=3, **settings
        )
        state = Programs(explorer, 480, 100)(peaked(), jax.random.key(0)).state
        return state, np.asarray(state.swap_rates).mean(0)

    state, adapted = rates(adapt_sweeps=20)
    _, geometric = rates()
    assert np.ptp(geometric) > 0.2
    assert np.ptp(adapted) < 0.5 * np.ptp(geometric)
    ladder = np.exp(np.asarray(state.log_temperatures))
    np.testing.assert_allclose(ladder[:, [0, -1]], [[1.0, 8.0]] * 100, rtol=1e-5)
    # 40 sweeps, of which 20 are burn-in.
    assert state.log_weights.shape == (100, 60)


def test_endless_tempering_runs_on():
    explorer = chain(samplers.parallel_tempering(endless=True), 7)
    state = tsi.run(explorer, unequal_lengths(), jax.random.key(0), 6).state
    assert int(state.iteration) == 7
    assert state.members.shape == (2,)


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"temperatures": (2.0, 4.0)}, 12, "rise from 1"),
        ({"temperatures": (1.0, 1.0)}, 12, "rise from 1"),
        ({"max_temperature": 1.0}, 12, "the hottest above 1"),
        ({}, 8, "multiple of"),
        ({"num_sweeps": 2, "adapt_sweeps": 2}, 12, "adapt_sweeps must be"),
        ({"num_sweeps": 2, "adapt_sweeps": -1}, 12, "adapt_sweeps must be"),
        ({"num_sweeps": 4}, 12, "at least 2"),
    ],
)
def test_ladders_and_budgets_that_cannot_be_used_are_refused(settings, size, message):
    with pytest.raises(ConfigurationError, match=message):
        samplers.parallel_tempering(**settings).plan(size, 4)
