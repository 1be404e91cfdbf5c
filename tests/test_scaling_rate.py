"""The scaling rate on curves with known factors and on the paper's own curves."""

import numpy as np
import pytest

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.reports.paper_curves import paper_curves, paper_scaling_rate
from tsi.experiments.statistics.accuracy import accuracy
from tsi.experiments.statistics.bootstrap import (
    bootstrap_accuracies,
    bootstrap_scaling_rate,
    cluster_weights,
)
from tsi.experiments.statistics.scaling_rate import log_budget_needed, scaling_rate

BUDGETS = 2.0 ** np.arange(8)


@pytest.mark.parametrize(
    ("model", "against", "mean", "top"),
    [
        ("Llama-3.2-1B", "DVTS", 2.5, 6.4),
        ("Llama-3.1-8B", "DVTS", 4.3, 19.4),
        ("Qwen2.5-Math-7B", "DVTS", 4.0, 8.0),
        ("Qwen2.5-Math-1.5B", "DVTS", 1.1, 2.8),
        ("Qwen2.5-Math-1.5B", "WBoN", 0.9, 0.7),
    ],
)
def test_paper_curves_give_the_published_factors_to_five_percent(
    model, against, mean, top
):
    rate = paper_scaling_rate(model, "PF", against)
    assert float(rate.mean) == pytest.approx(mean, rel=0.05)
    assert float(rate.top) == pytest.approx(top, rel=0.05)
    assert rate.rates[-1] == rate.top


@pytest.mark.parametrize(
    ("model", "low", "high"),
    [
        ("Llama-3.2-1B", 1.2, 6.4),
        ("Llama-3.1-8B", 1.8, 19.4),
        ("Qwen2.5-Math-7B", 1.6, 9.5),
        ("Qwen2.5-Math-1.5B", 0.6, 2.8),
    ],
)
def test_paper_curves_give_the_published_extremes(model, low, high):
    rate = paper_scaling_rate(model, "PF", "DVTS")
    # The grid's last point before a jump may miss the extreme by a grid step.
    assert rate.rates.min() == pytest.approx(low, rel=0.06)
    assert rate.rates.max() == pytest.approx(high, rel=0.06)


def test_dvts_starts_at_four():
    budgets, accuracies = paper_curves()["Llama-3.2-1B"]["DVTS"]
    assert budgets[0] == 4
    assert len(budgets) == len(accuracies) == 6


def test_unknown_curve_lists_the_known():
    with pytest.raises(UnknownNameError, match=r"Llama-3\.1-8B"):
        paper_scaling_rate("Llama-9", "PF", "DVTS")
    with pytest.raises(UnknownNameError, match="DVTS, PF, WBoN"):
        paper_scaling_rate("Llama-3.1-8B", "PF", "beam")


def test_shifted_curve_gives_the_shift_everywhere():
    log_curve = 0.1 * np.log2(BUDGETS) + 0.1
    rate = scaling_rate(BUDGETS, log_curve, BUDGETS * 3.0, log_curve)
    np.testing.assert_allclose(rate.rates, 3.0)
    assert float(rate.mean) == pytest.approx(3.0)


def test_swapping_methods_inverts_the_rate():
    curves = paper_curves()["Llama-3.1-8B"]
    one = scaling_rate(*curves["PF"], *curves["DVTS"])
    other = scaling_rate(*curves["DVTS"], *curves["PF"])
    assert float(one.mean * other.mean) == pytest.approx(1.0)
    assert float(one.top * other.top) == pytest.approx(1.0)


def test_exact_mean_is_the_limit_of_grids():
    curves = paper_curves()["Qwen2.5-Math-7B"]
    rate = scaling_rate(*curves["PF"], *curves["DVTS"], num_points=200_001)
    assert np.exp(np.log(rate.rates).mean()) == pytest.approx(float(rate.mean), 1e-3)


def test_dips_do_not_count_and_flat_pieces_are_reached_at_their_start():
    accuracies = np.array([0.1, 0.3, 0.2, 0.3, 0.5])
    needed = np.exp(
        log_budget_needed(
            np.log(BUDGETS[:5]), accuracies, np.array([0.1, 0.2, 0.3, 0.4, 0.5])
        )
    )
    np.testing.assert_allclose(needed, [1, 2**0.5, 2, 8 * 2**0.5, 16])


def test_curves_without_common_accuracy_have_no_rate():
    rate = scaling_rate(BUDGETS[:2], np.array([0.1, 0.2]), BUDGETS[:1], np.array([0.5]))
    assert np.isnan(rate.mean)
    assert np.isnan(rate.rates).all()


def test_a_range_without_width_has_no_rate():
    flat = np.full(3, 0.25)
    rate = scaling_rate(BUDGETS[:3], flat, BUDGETS[:3], flat)
    assert np.isnan([rate.mean, rate.top]).all()
    estimate = bootstrap_scaling_rate(
        {b: np.eye(8)[:, :1] for b in (1, 2)}, {b: np.eye(8)[:, :1] for b in (1, 2)}
    )
    assert np.isnan([*estimate.mean, estimate.rate.mean]).all()
    assert estimate.fraction_shared == 0


def test_both_envelopes_agree_where_both_curves_rise():
    curves = paper_curves()["Llama-3.1-8B"]
    best = scaling_rate(*curves["PF"], *curves["DVTS"])
    raw = scaling_rate(*curves["PF"], *curves["DVTS"], envelope="raw")
    for one, other in zip(best, raw, strict=True):
        np.testing.assert_allclose(one, other)


def test_a_raw_range_ends_at_the_accuracy_of_the_largest_budget():
    rising, falling = np.array([0.2, 0.3, 0.4, 0.5]), np.array([0.2, 0.6, 0.5, 0.3])
    raw = scaling_rate(BUDGETS[:4], rising, BUDGETS[:4], falling, envelope="raw")
    np.testing.assert_allclose(raw.accuracies[[0, -1]], [0.2, 0.3])
    # The falling curve reaches 0.3 a quarter of the way to budget 2, the other at 2.
    assert float(raw.top) == pytest.approx(2**0.25 / 2)
    best = scaling_rate(BUDGETS[:4], rising, BUDGETS[:4], falling)
    assert best.accuracies[-1] == 0.5
    back = np.array([0.2, 0.6, 0.5, 0.2])
    raw = scaling_rate(BUDGETS[:4], rising, BUDGETS[:4], back, envelope="raw")
    assert np.isnan(raw.mean)


def test_raw_accuracies_are_interpolated_from_the_bottom_of_a_dip():
    dipping = np.array([0.1, 0.3, 0.2, 0.5])
    needed = np.exp(
        log_budget_needed(np.log(BUDGETS[:4]), dipping, np.array([0.3, 0.35]), "raw")
    )
    np.testing.assert_allclose(needed, [2, 4 * 2**0.5])


def test_batched_rates_equal_single_ones():
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 20, 8))
    batched = scaling_rate(BUDGETS, a, BUDGETS, b)
    for r in range(20):
        single = scaling_rate(BUDGETS, a[r], BUDGETS, b[r])
        np.testing.assert_allclose(batched.mean[r], single.mean)
        np.testing.assert_allclose(batched.rates[r], single.rates)


@pytest.mark.parametrize("budgets", [[1, 1], [2, 1], [0, 1], []])
def test_budgets_that_are_no_axis_are_refused(budgets):
    budgets = np.array(budgets, np.float64)
    with pytest.raises(ConfigurationError, match="increasing"):
        scaling_rate(budgets, np.ones(budgets.size), BUDGETS, BUDGETS)


def test_clustered_error_counts_problems_not_rows():
    correct = np.repeat([[0.0], [1.0], [1.0], [0.0]], 100, axis=1)
    mean, error = accuracy(correct)
    assert mean == 0.5
    assert error == pytest.approx(np.sqrt(1 / 3) / 2)
    assert np.isnan(accuracy(correct[:1])[1])


def test_bootstrap_error_agrees_with_the_clustered_formula():
    generator = np.random.default_rng(1)
    difficulty = generator.beta(0.5, 0.5, size=(300, 1))
    correct = generator.random((300, 4)) < difficulty
    weights = cluster_weights(0, 4000, 300, 4)
    replicates = bootstrap_accuracies(weights, correct[..., None])[:, 0]
    # The two-stage scheme adds the within-problem noise once more than the formula:
    # by its expectation, exactly.
    within = correct.var(axis=1).mean() / 300 / 4
    expected = np.sqrt(accuracy(correct)[1] ** 2 * 299 / 300 + within)
    assert replicates.std() == pytest.approx(expected, rel=0.05)
    assert replicates.mean() == pytest.approx(correct.mean(), abs=4 * expected / 60)


def _correct(generator, budgets, shift):
    """Problems whose success probability rises with log budget plus a shift."""
    difficulty = generator.normal(size=(400, 1))
    noise = generator.logistic(size=(400, 2))
    return {
        budget: (np.log2(budget) + shift - 3 + 2 * difficulty + noise > 0) * 1.0
        for budget in budgets
    }


def test_interval_covers_a_known_factor_and_pairing_narrows_it():
    covered = 0
    for trial in range(40):
        generator = np.random.default_rng(trial)
        a = _correct(generator, BUDGETS, 1.0)
        # The same problems and noise: B is A at half the budget, so the rate is 2.
        b = _correct(np.random.default_rng(trial), BUDGETS, 0.0)
        estimate = bootstrap_scaling_rate(a, b, num_replicates=200)
        covered += estimate.mean.low <= 2.0 <= estimate.mean.high
        assert estimate.fraction_shared == 1.0
    assert covered >= 33
    unpaired = _correct(np.random.default_rng(99), BUDGETS, 0.0)
    wide = bootstrap_scaling_rate(a, unpaired, num_replicates=200).mean
    narrow = estimate.mean
    assert wide.high - wide.low > narrow.high - narrow.low


def test_equal_methods_have_rate_one_without_noise():
    a = _correct(np.random.default_rng(0), BUDGETS, 0.0)
    estimate = bootstrap_scaling_rate(a, a, num_replicates=100)
    assert estimate.mean == (1.0, 1.0)
    assert all(interval == (1.0, 1.0) for interval in estimate.curve[1:-1])


def test_unpaired_shapes_are_refused():
    with pytest.raises(ConfigurationError, match="same problems"):
        bootstrap_scaling_rate({1: np.ones((3, 1))}, {1: np.ones((4, 1))})
