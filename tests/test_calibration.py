"""Calibration errors, scores and selective accuracy against known truth."""

import itertools

import numpy as np
import pytest

from tsi.experiments.statistics.calibration import (
    brier_score,
    calibration,
    log_score,
    selective_accuracy,
)

GRID = np.array([0.125, 0.35, 0.65, 0.85])


def simulate(generator, num_problems, num_seeds, offset=0.0):
    """Runs with probabilities of four values, right with probability p + offset."""
    p = generator.choice(GRID, size=(num_problems, 1)).repeat(num_seeds, axis=1)
    return p, generator.random(p.shape) < p + offset


def test_a_calibrated_method_has_no_debiased_error_and_the_ece_that_noise_gives():
    generator = np.random.default_rng(0)
    runs = [
        calibration(*simulate(generator, 100, 2), 16, num_replicates=50)
        for _ in range(300)
    ]
    squares = np.array([run.rms_error * abs(run.rms_error) for run in runs])
    assert abs(squares.mean()) < 4 * squares.std() / 300**0.5
    eces = np.array([run.ece for run in runs])
    expected = np.mean([run.ece_if_calibrated for run in runs])
    assert expected > 0.02
    assert abs(eces.mean() - expected) < 4 * eces.std() / 300**0.5


def test_a_shift_of_a_tenth_is_measured_and_covered():
    generator = np.random.default_rng(1)
    runs = [
        calibration(*simulate(generator, 400, 1, -0.1), 16, num_replicates=200)
        for _ in range(100)
    ]
    squares = np.array([run.rms_error * abs(run.rms_error) for run in runs])
    assert abs(squares.mean() - 0.01) < 4 * squares.std() / 10
    covered = [run.ece_interval.low <= 0.1 <= run.ece_interval.high for run in runs]
    assert np.mean(covered) > 0.85


def test_the_interval_counts_problems_and_not_seeds():
    # The problem decides; its ten seeds are copies.
    generator = np.random.default_rng(2)
    p, y = simulate(generator, 100, 1, -0.1)
    one = calibration(p, y, 16).ece_interval
    ten = calibration(np.repeat(p, 10, 1), np.repeat(y, 10, 1), 16).ece_interval
    assert ten == pytest.approx(one, abs=1e-12)


def test_bins_and_scores_are_what_a_hand_computes():
    p = np.array([[0.05], [0.05], [0.95], [1.0]])
    y = np.array([[False], [True], [True], [False]])
    got = calibration(p, y, 4)
    assert [(b.size, b.probability, b.accuracy) for b in got.bins] == [
        (2, pytest.approx(0.05), 0.5),
        (2, pytest.approx(0.975), 0.5),
    ]
    assert got.ece == pytest.approx((0.45 * 2 + 0.475 * 2) / 4)
    assert got.brier == pytest.approx((0.05**2 + 0.95**2 + 0.05**2 + 1) / 4)
    # Four particles: probabilities are kept between 1/8 and 7/8.
    expected = np.log([7 / 8, 1 / 8, 7 / 8, 1 / 8]).mean()
    assert got.log_score == pytest.approx(expected)
    assert got.selective[1] == 0.5
    assert np.isnan(got.right_log_score)
    # Of several right answers the probabilities add; none is kept below 1/8.
    right = np.array([[0.5], [0.0], [1.0], [0.25]])
    got = calibration(p, y, 4, right_probabilities=right)
    assert got.right_log_score == pytest.approx(np.log([1 / 2, 1 / 8, 1, 1 / 4]).mean())


def test_both_scores_are_best_for_the_true_probability():
    y = (np.arange(1000) < 300) * 1.0
    grid = np.linspace(0.05, 0.95, 19)
    briers = [brier_score(np.full(1000, p), y) for p in grid]
    logs = [log_score(np.full(1000, p), y, 1000) for p in grid]
    assert grid[np.argmin(briers)] == pytest.approx(0.3)
    assert grid[np.argmax(logs)] == pytest.approx(0.3)


def test_selective_accuracy_averages_over_the_order_of_ties():
    p = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    y = np.array([1.0, 1.0, 0.0, 0.0, 1.0])
    for k in range(1, 6):
        over_orders = []
        for order in itertools.permutations(range(5)):
            if list(p[list(order)]) == sorted(p, reverse=True):
                over_orders.append(y[list(order)[:k]].mean())
        (got,) = selective_accuracy(p, y, [k / 5])
        assert got == pytest.approx(np.mean(over_orders))


def test_confidence_that_tells_right_from_wrong_has_the_larger_area():
    y = np.arange(100)[:, None] < 60
    good = calibration(np.where(y, 0.8, 0.4), y, 16)
    bad = calibration(np.where(y, 0.4, 0.8), y, 16)
    none = calibration(np.full((100, 1), 0.6), y, 16)
    assert good.selective[1] == 1.0
    assert bad.selective[0] == 0.0
    assert none.selective == pytest.approx((0.6, 0.6, 0.6))
    assert good.selective_area > none.selective_area > bad.selective_area
