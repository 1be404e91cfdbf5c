"""A value head from rollouts: the regression's optimum, and the states of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.optimize import minimize

from tsi.errors import ConfigurationError
from tsi.experiments.plans.methods import sampler_of
from tsi.experiments.tasks import get_task
from tsi.experiments.training.logistic import fit_logistic, log_loss
from tsi.experiments.training.train_value import (
    Prefixes,
    auc_within,
    fit_head,
    prefixes_of,
    train_value,
)
from tsi.experiments.worlds.embedded_world import embedded_world
from tsi.models.loading.catalogue import resolve
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.loading.value_head import BIAS, WEIGHT

RNG = np.random.default_rng(0)


def test_the_regression_is_where_a_general_minimiser_ends():
    features = RNG.standard_normal((200, 5)) * [1, 10, 0.1, 3, 0] + [0, 50, 1, 0, 7]
    truth = features @ [1.0, 0.1, -5.0, 0.2, 0.0]
    labels = (RNG.random(200) < 1 / (1 + np.exp(-(truth - truth.mean())))).astype(float)
    labels[:20] = RNG.random(20)
    ridge, deviation = 3.0, features[:, :4].std(0)

    def objective(w):
        log_odds = features[:, :4] @ w[:4] + w[4]
        return (
            np.sum(np.log1p(np.exp(log_odds)) - labels * log_odds)
            + ridge / 2 * np.sum((w[:4] * deviation) ** 2)
        )  # fmt: skip

    slopes, intercept = fit_logistic(features, labels, ridge)
    assert slopes[4] == 0.0
    found = objective(np.array([*slopes[:4], intercept]))
    best = minimize(objective, np.array([*slopes[:4], intercept]) + 0.01, tol=1e-12)
    assert found <= best.fun + 1e-7
    np.testing.assert_allclose(slopes[:4], best.x[:4], rtol=2e-3, atol=2e-4)


def test_two_groups_have_the_log_odds_of_their_means():
    features = np.repeat([[0.0], [1.0]], [40, 10], axis=0)
    labels = np.concatenate([np.arange(40) < 10, np.arange(10) < 8]).astype(float)
    slopes, intercept = fit_logistic(features, labels, 1e-9)
    assert intercept == pytest.approx(np.log(10 / 30), abs=1e-6)
    assert intercept + slopes[0] == pytest.approx(np.log(8 / 2), abs=1e-6)
    log_odds = features @ slopes + intercept
    p = np.repeat([0.25, 0.8], [40, 10])
    expected = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    assert log_loss(log_odds, labels) == pytest.approx(expected, rel=1e-6)


def test_separable_labels_and_one_class_stay_finite():
    features = np.linspace(-1, 1, 20)[:, None]
    for labels in (features[:, 0] > 0, np.ones(20)):
        slopes, intercept = fit_logistic(features, labels.astype(float), 0.1)
        assert np.isfinite([*slopes, intercept]).all()


def test_only_pairs_of_one_group_are_compared():
    scores = np.array([1.0, 2.0, 9.0, 8.0, 5.0, 5.0, 7.0])
    truth = np.array([0, 1, 0, 0, 1, 0, 1], bool)
    group = np.array([3, 3, 1, 1, 3, 1, 1])
    # In group 3: 2 and 5 above 1. In group 1: 7 above 5, and below 9 and 8.
    assert auc_within(scores, truth, group) == pytest.approx(3 / 5)
    assert np.isnan(auc_within(scores, np.ones(7, bool), group))


def test_labels_that_all_agree_teach_nothing():
    yes = np.ones(3, bool)
    states, labels = np.ones((3, 2), np.float32), np.ones(3)
    data = Prefixes(states, labels, yes, yes, np.arange(3))
    with pytest.raises(ConfigurationError, match="All of the policy's solutions are r"):
        fit_head(data, 1.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A head that was learnt from 128 problems, and its metrics."""
    path = tmp_path_factory.mktemp("heads") / "head.safetensors"
    sizes = {"num_problems": 128, "held_out": 128, "num_rollouts": 1}
    return path, train_value(path, progress=False, **sizes)


def test_a_head_predicts_better_than_a_constant(trained):
    _, metrics = trained
    assert metrics.num_prefixes > 400
    assert metrics.auc > 0.6
    assert metrics.log_loss < metrics.constant_log_loss


@pytest.mark.long
def test_a_head_reads_in_a_run_the_states_that_it_was_trained_on(trained):
    path, _ = trained
    task, count = get_task("chain"), 6
    problems = task.problems("validation", count, 3)
    world, bare = (
        embedded_world("chain", problems, reward=reward, temperature=0.0, max_rows=4)
        for reward in (f"value:{path}", "none")
    )
    engine, tokenizer = world.engine, load_tokenizer(resolve("chain-policy"))
    key = jax.random.key(0)
    sampler = sampler_of("greedy", world.max_steps)
    results = engine.run(sampler, key, problems, 1, extract=world.extract)
    # The one solution of temperature 0, read anew and whole.
    states, labels, rewards, groups = [], [], [], []
    for problem, result in zip(problems, results, strict=True):
        ((steps,), prompt) = (
            result.particles.step_texts,
            tokenizer.encode_prompt(problem.prompt),
        )
        ids = [*prompt, *tokenizer.encode("".join(steps)), tokenizer.eos_ids[0]]
        padded = jnp.zeros((1, 64), jnp.int32).at[0, : len(ids)].set(jnp.asarray(ids))
        hidden, _ = engine.policy.trunk(padded, jnp.arange(64)[None])
        ends = np.cumsum([len(step) for step in steps])
        ends[-1] += 1
        states.append(np.asarray(hidden)[0, len(prompt) + ends - 1])
        labels += [float(world.is_correct(problem, result.answers[0]))] * len(ends)
        groups += [(problem.id, step) for step in range(len(ends))]
        rewards += np.asarray(result.steps.rewards)[: len(ends), 0].tolist()
    data = prefixes_of(bare.engine, task, problems, 1, key)
    np.testing.assert_allclose(data.states, np.concatenate(states), atol=2e-4)
    assert data.labels.tolist() == labels
    assert set(labels) == {0.0, 1.0}
    assert [divmod(int(g), task.max_steps) for g in data.group] == groups
    assert data.ended.sum() == count
    # A solution that ended is on track exactly if it is right, and before it may be.
    assert (data.on_track[data.ended] == (data.labels[data.ended] > 0.5)).all()
    assert (data.on_track >= (data.labels > 0.5)).all()
    tensors = load_file(path)
    log_odds = data.states @ tensors[WEIGHT][0] + tensors[BIAS][0]
    np.testing.assert_allclose(rewards, 1 / (1 + np.exp(-log_odds)), atol=1e-4)


@pytest.mark.parametrize("name", ["num_problems", "held_out", "num_rollouts", "ridge"])
def test_numbers_below_one_are_refused_by_name(name, tmp_path):
    with pytest.raises(ConfigurationError, match=f"{name} must be above 0"):
        train_value(tmp_path / "head", **{name: 0.0 if name == "ridge" else 0})
