"""Results as ArviZ's DataTree."""

import builtins

import numpy as np
import pytest
from fake_world import vary
from test_diagnostics import make_result

from tsi.errors import ConfigurationError
from tsi.experiments.reports.to_arviz import to_datatree


def results(size=16):
    """Problems 4 and 2, two runs each, of different lengths."""
    return [
        make_result(size, num_steps, seed)._replace(problem_id=problem)
        for seed, (problem, num_steps) in enumerate([(4, 12), (2, 7), (4, 12), (2, 9)])
    ]


@pytest.fixture
def tree():
    pytest.importorskip("arviz_base")
    return to_datatree(results(), weighted=True)


def test_weighted_draws_are_the_particles(tree):
    posterior = tree["posterior"].dataset
    assert dict(posterior.sizes) == {"chain": 2, "draw": 16, "problem": 2}
    assert posterior.problem.values.tolist() == [4, 2]
    answers = posterior.attrs["answers"]
    cells = {(0, 4): 0, (0, 2): 1, (1, 4): 2, (1, 2): 3}
    for (chain, problem), index in cells.items():
        result = results()[index]
        draws = posterior.sel(chain=chain, problem=problem)
        np.testing.assert_array_equal(draws.reward, result.rewards)
        np.testing.assert_array_equal(draws.log_weight, result.log_weights)
        np.testing.assert_array_equal(draws.particle, np.arange(16))
        named = [answers[i] if i >= 0 else None for i in draws.answer_index.values]
        assert named == result.answers
        assert draws.num_steps.values.tolist() == [
            len(s) for s in result.particles.step_texts
        ]


def test_statistics_are_those_of_the_run_padded_to_one_length(tree):
    stats = tree["sample_stats"].dataset
    run = stats.sel(chain=0, problem=2)
    result = results()[1]
    np.testing.assert_allclose(run.ess[:7], result.steps.ess)
    assert np.isnan(run.ess[7:]).all()
    np.testing.assert_array_equal(run.ancestors[:7], result.steps.ancestors)
    assert (run.ancestors[7:] == -1).all()
    np.testing.assert_array_equal(
        run.unique_ancestors[:7], result.steps.unique_ancestors
    )
    np.testing.assert_array_equal(run.log_weight, result.log_weights)
    assert float(run.log_evidence_variance) == result.evidence.variance
    assert stats.attrs["log_evidence_of"] == result.estimand.evidence
    assert np.isnan(run.pareto_k)
    for answer, probability in result.answer_posterior.items():
        assert float(run.answer_posterior.sel(answer=answer)) == probability
        error = float(run.answer_error.sel(answer=answer))
        assert error == result.posterior.errors[answer]


def test_resampled_draws_have_the_weighted_mean():
    pytest.importorskip("arviz_base")
    run = make_result(2000, 3)
    rewards = np.random.default_rng(0).random(2000)
    weights = np.exp(run.log_weights) / np.exp(run.log_weights).sum()
    run = vary(run, particles={"rewards": rewards, "texts": ["x"] * 2000})
    posterior = to_datatree([run])["posterior"].dataset
    counts = np.bincount(posterior.particle.values.ravel(), minlength=2000)
    # Systematic resampling: every count is within one of N times the weight.
    assert np.all(np.abs(counts - 2000 * weights) < 1 + 1e-9)
    assert (posterior.log_weight == 0).all()
    mean = float(posterior.reward.mean())
    assert mean == pytest.approx(float(weights @ rewards), abs=0.01)
    assert abs(float(rewards.mean()) - mean) < 0.1


def test_arviz_summarises_it(tree):
    arviz = pytest.importorskip("arviz", minversion="1.0")
    summary = arviz.summary(tree, var_names=["reward"], kind="stats")
    assert len(summary) == 2
    expected = tree["posterior"].reward.mean(("chain", "draw")).values
    found = summary["mean"].astype(float)
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_runs_without_diagnostics_can_be_exported():
    pytest.importorskip("arviz_base")
    bare = vary(make_result(), posterior={"errors": {}}, particles={"step_texts": None})
    tree = to_datatree([bare])
    assert np.isnan(tree["posterior"].dataset.num_steps).all()
    assert np.isnan(tree["sample_stats"].dataset.answer_error).all()


def test_what_is_no_rectangle_is_refused():
    pytest.importorskip("arviz_base")
    for bad in ([], [*results(), make_result(8)], results()[:3]):
        with pytest.raises(ConfigurationError, match="is rectangular"):
            to_datatree(bad)


def test_without_arviz_one_is_told_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *arguments, **named):
        if name == "arviz_base":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigurationError, match="pip install"):
        to_datatree([])
