"""What a sampler claims and refuses depends on its arguments."""

import math

import jax
import numpy as np
import pytest

import tsi
from tsi import samplers
from tsi.accuracy.pareto import pareto_k
from tsi.engine.stopping import answer_error_below, evidence_error_below
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.results.selection import select
from tsi.targets.examples import smooth

TOP = samplers.top_k_replicate(2)


@pytest.mark.parametrize(
    ("make", "claims"),
    [
        (lambda: samplers.auxiliary_particle_filter(resampling=TOP), False),
        (lambda: samplers.finished_branch_smc(resampling=TOP), False),
        (lambda: samplers.island_exchange(2, resampling=TOP), False),
        # Islands are drawn by the scheme even where their particles never are.
        (
            lambda: samplers.island_exchange(
                2, resampling=TOP, schedule=samplers.never, exchange_below=1.0
            ),
            False,
        ),
        (
            lambda: samplers.island_exchange(
                2, resampling=TOP, schedule=samplers.never, exchange_below=0.0
            ),
            True,
        ),
        (samplers.auxiliary_particle_filter, True),
        (samplers.finished_branch_smc, True),
        (samplers.island_exchange, True),
    ],
)
def test_only_random_schemes_claim_a_target(make, claims):
    assert (make().path_log_weight is not None) == claims


@pytest.mark.parametrize(
    "make",
    [
        lambda: samplers.entropic_particle_filter(ess_fraction=2.0),
        lambda: samplers.entropic_particle_filter(active_fraction=math.nan),
        lambda: samplers.power_sampling(math.nan),
        lambda: samplers.power_sampling(math.inf),
        lambda: answer_error_below(math.nan),
        lambda: evidence_error_below(math.nan),
    ],
)
def test_numbers_that_are_none_are_refused(make):
    with pytest.raises(ConfigurationError):
        make()


def test_an_unknown_variant_of_particle_gibbs_is_refused():
    with pytest.raises(UnknownNameError, match="publishd"):
        samplers.particle_gibbs(variant="publishd")


def test_weighted_best_of_n_sums_the_weights_it_was_given():
    answers, rewards = ["a", "b", "b"], np.array([0.8, 0.45, 0.45])
    odds = np.log(rewards / (1 - rewards))
    rule = samplers.weighted_best_of_n("odds").select
    assert select(rule, answers, odds, rewards) == "a"
    rule = samplers.weighted_best_of_n("reward").select
    assert select(rule, answers, np.log(rewards), rewards) == "b"


def test_a_tail_whose_grid_passes_through_zero_has_a_shape():
    x = np.concatenate([np.ones(65), 1 + np.array([1.0] * 4 + [2.0] * 11 + [3.0])])
    near = x.copy()
    near[-1] += 1e-9
    assert pareto_k(np.log(x)) == pytest.approx(pareto_k(np.log(near)), abs=1e-6)


def test_killed_particles_that_rest_are_not_counted_as_invalid():
    target = smooth()
    target.idle = math.nan
    sampler = samplers.pruning(1.0)
    params = target.params
    run = jax.jit(lambda key: tsi.run(sampler, target, key, 16, params))
    result = run(jax.random.key(1))
    assert not np.asarray(result.infos.num_invalid).any()
    assert np.isneginf(result.state.log_weights).any()
