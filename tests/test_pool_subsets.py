"""Curves over all subsets of pools, against rows of many seeds and enumeration."""

import itertools

import numpy as np
import pytest
from fake_world import fake_world

from tsi.experiments.plans.methods import get_method, sampler_of
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.plans.pool_subsets import subset_correctness
from tsi.experiments.reports.curves import curves_of
from tsi.experiments.rows.particle_files import read_particles
from tsi.experiments.scaling.scale import run_plan
from tsi.results.estimand import estimand_of
from tsi.results.parts import FinalParticles
from tsi.results.selection import select

METHODS = ("self_consistency", "best_of_n", "weighted_best_of_n")


def estimand(name):
    reads_reward = get_method(name).reads_reward
    return estimand_of(sampler_of(name, 5), reads_reward=reads_reward)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("pools") / "rows.jsonl"
    plan = make_plan((*METHODS, "smc"), (1, 2, 4, 8), 8)
    return run_plan(plan, fake_world(8), path, progress=False), path


@pytest.mark.long
def test_rows_of_pools_have_the_mean_over_all_subsets(run):
    rows, path = run
    pools = {
        (pool.key.seed, pool.key.problem): pool
        for pool in read_particles(path)
        if pool.key.num_particles == 8 and pool.key.method in METHODS
    }
    assert len(pools) == 64
    num_compared = 0
    for cell, row in rows.items():
        if cell.method not in METHODS:
            assert row["expected_correct"] == row["correct"]
            continue
        pool = pools[cell.seed, cell.problem].particles
        # Each order of the samples is as likely: its first n are a subset, and ties go
        # to the first answer.
        orders = list(itertools.permutations(range(8), min(cell.budget, 3)))
        if cell.budget > 3:
            continue
        right = []
        for order in orders:
            indices = list(order)
            answers = [pool.answers[i] for i in indices]
            log_weights = pool.log_weights[indices]
            if not get_method(cell.method).reads_reward:
                log_weights = np.zeros(len(indices))
            chosen = select(
                estimand(cell.method).select,
                answers,
                log_weights,
                pool.rewards[indices],
            )
            right.append(chosen == row["answer"])
        assert row["expected_correct"] == pytest.approx(np.mean(right), abs=1e-5)
        num_compared += 1
    assert num_compared == 3 * 2 * 64


@pytest.mark.long
def test_curves_and_their_errors_are_of_expected_correctness(run):
    rows, _ = run
    curves = curves_of(rows)
    for method in METHODS:
        for n, point in curves[method].items():
            mean = np.mean(
                [
                    row["expected_correct"]
                    for cell, row in rows.items()
                    if (cell.method, cell.budget) == (method, n)
                ]
            )
            assert point.accuracy == pytest.approx(mean)
            by_problem = point.expected.mean(axis=1)
            error = by_problem.std(ddof=1) / len(by_problem) ** 0.5
            assert point.error == pytest.approx(error)
            # Both average over the same pools; the first n are a part of each.
            within = point.correct.std(axis=1).mean() / point.correct.size**0.5
            assert abs(point.correct.mean() - mean) < 4 * within
        # One sample of a pool varies more than the mean over all of them.
        assert curves[method][1].expected.std() < curves[method][1].correct.std()
    one = [curves[method][1].accuracy for method in METHODS]
    assert one == pytest.approx([one[0]] * 3)


def test_rows_of_earlier_versions_count_their_selected_answers(run):
    rows, _ = run
    old = {
        cell: {k: v for k, v in row.items() if k != "expected_correct"}
        for cell, row in rows.items()
    }
    for method, curve in curves_of(old).items():
        for point in curve.values():
            assert point.accuracy == pytest.approx(point.correct.mean()), method


def test_random_subsets_agree_with_all_of_them():
    rng = np.random.default_rng(0)
    answers = [str(n) for n in rng.integers(4, size=12)]
    rewards = rng.random(12)
    pool = FinalParticles(answers, answers, rewards, np.log(rewards / rewards.mean()))
    arguments = (pool, 0.0, estimand("weighted_best_of_n"))
    is_right = {str(n): n == 1 for n in range(4)}
    exact = subset_correctness(*arguments, is_right, [5])
    few = subset_correctness(*arguments, is_right, [5], num_subsets=200)
    assert exact.error[0] == 0
    assert 0 < few.error[0] < 0.5 / 200**0.5 + 1e-9
    assert abs(few.accuracy[0] - exact.accuracy[0]) < 4 * few.error[0]


def test_a_sample_without_an_answer_is_never_selected():
    rewards = np.array([0.9, 0.5, 0.1])
    answers = [None, "1", "2"]
    pool = FinalParticles(["", "1", "2"], answers, rewards, np.log(rewards))
    for method in METHODS:
        correct = subset_correctness(
            pool, 0.0, estimand(method), {"1": True, "2": False}, [1, 3]
        ).accuracy
        assert correct[0] == pytest.approx(1 / 3)
        # Of equally many votes each is as likely.
        assert correct[1] == (0.5 if method == "self_consistency" else 1.0), method
