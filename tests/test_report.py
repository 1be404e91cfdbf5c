"""Tables, comparisons and figures of a run, on rows whose outcomes are known."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from matplotlib.colors import to_rgb

from tsi.errors import UnknownNameError
from tsi.experiments.plans.cell import Cell
from tsi.experiments.reports.comparisons import (
    compare,
    compare_with_best,
    largest_common_budget,
    missing_rates_reason,
    scaling_rates,
)
from tsi.experiments.reports.confidence import calibrations, pass_at_budgets
from tsi.experiments.reports.curves import UNITS, curves_of
from tsi.experiments.reports.paper_curves import paper_curves
from tsi.experiments.reports.plots import STYLES, bar, save_accuracy_plots, spread
from tsi.experiments.reports.reliability_plot import save_reliability_plot
from tsi.experiments.reports.report import (
    accuracy_table,
    accuracy_text,
    cost_table,
    paired_table,
    paired_text,
    rate_table,
    row_notes,
)
from tsi.experiments.reports.write_report import (
    find_published_curves,
    run_title,
    write_files,
)


def rows_where(right, num_problems=40, num_seeds=1, budgets=(1, 2, 4)):
    """Rows of the methods of `right`, a function of (method, budget, problem, seed)."""
    rows = {}
    for method in right.methods:
        for budget in budgets:
            for problem in range(num_problems):
                for seed in range(num_seeds):
                    is_right = right(method, budget, problem, seed)
                    rows[Cell(method, budget, seed, problem)] = {
                        "correct": is_right,
                        "answer": "1",
                        "selected": "1" if is_right else "0",
                        "probability": 0.75,
                        "num_answered": budget,
                        "num_right": budget if is_right else 0,
                        "num_truncated": 0,
                        "unanswered": 0.0,
                        "reward_spread": 0.5,
                        "generated_tokens": 10 * budget,
                        "reward_tokens": 0 if method == "self_consistency" else 20,
                        "flops": 1e6 * budget,
                        "seconds": None if method == "self_consistency" else 0.01,
                    }
    return rows


class Shares:
    """The first problems are right: a share of them by method, and by budget."""

    def __init__(self, num_problems=40, **shares):
        self.methods, self.shares = tuple(shares), shares
        self.num_problems = num_problems

    def __call__(self, method, budget, problem, seed):
        share = self.shares[method]
        share = share[budget] if isinstance(share, dict) else share
        return problem < share * self.num_problems


RISING = {1: 0.25, 2: 0.5, 4: 0.75}
FLAT = {1: 0.25, 2: 0.25, 4: 0.25}


def test_nothing_right_is_an_interval_and_the_text_says_which():
    curves = curves_of(rows_where(Shares(8, smc=0.0, dvts=0.5), num_problems=8))
    table = accuracy_table(curves)
    assert "0.0 [0.0, 32.4]" in table
    assert "± 0.0" not in table
    assert "Wilson" in accuracy_text(curves)
    many = curves_of(rows_where(Shares(smc=0.5)))
    assert "50.0 ± 8.0" in accuracy_table(many)
    assert "Wilson" not in accuracy_text(many)


def test_each_method_is_compared_with_the_best_reference_and_holm_counts_them():
    shares = Shares(particle_filter=0.25, dvts=0.5, rebase=0.75, smc=0.5)
    curves = curves_of(rows_where(shares))
    found = {c.method: c for c in compare_with_best(curves, 4)}
    assert {m: c.against for m, c in found.items()} == {
        "particle_filter": "rebase",
        "dvts": "rebase",
        "smc": "rebase",
        "rebase": "smc",
    }
    one = found["particle_filter"]
    assert one.result.difference == -0.5
    assert (one.result.only_a, one.result.only_b) == (0, 20)
    assert one.result.p_value == pytest.approx(2 * 0.5**20)
    # Three p-values are 2 * 0.5^10, and one is smaller.
    assert found["dvts"].adjusted == pytest.approx(3 * 2 * 0.5**10)
    text = paired_text(list(found.values()))
    assert "4 comparisons" in text
    table = paired_table(list(found.values()))
    assert "−50.0 ± 8.0" in table
    assert "< 0.001" in table


def test_pairs_without_a_discordant_run_have_no_error_and_no_sample_size():
    curves = curves_of(rows_where(Shares(dvts=0.5, smc=0.5)))
    (comparison,) = compare(curves, [("smc", "dvts")], [4])
    assert comparison.needed is None
    line = paired_table([comparison]).splitlines()[-1]
    assert "0.0 ± –" in line
    assert line.rstrip(" |").endswith("–")


def test_methods_are_compared_at_the_largest_budget_that_two_have():
    rows = rows_where(Shares(dvts=0.5, smc=0.5))
    rows |= rows_where(Shares(rebase=0.5), budgets=(8,))
    assert largest_common_budget(curves_of(rows)) == 4
    assert largest_common_budget(curves_of(rows_where(Shares(smc=0.5)))) is None


def test_a_rate_of_methods_that_learn_nothing_is_a_dash():
    curves = curves_of(rows_where(Shares(smc=FLAT, dvts=FLAT)))
    best, raw = (scaling_rates(curves, envelope=e) for e in ("running_maximum", "raw"))
    cells = rate_table(best, raw).splitlines()[-1].split("|")[3:-1]
    assert [cell.strip() for cell in cells] == ["–"] * 5


def test_a_raw_rate_is_a_dash_if_one_method_has_fallen_back():
    falling = {1: 0.25, 2: 0.75, 4: 0.25}
    curves = curves_of(rows_where(Shares(particle_filter=falling, dvts=RISING)))
    best, raw = (scaling_rates(curves, envelope=e) for e in ("running_maximum", "raw"))
    cells = [c.strip() for c in rate_table(best, raw).splitlines()[-1].split("|")]
    assert cells[5] == "25.0 to 75.0"
    assert cells[6:8] == ["–", "–"]


def test_the_reason_for_no_rate_is_the_true_one():
    other_pair = curves_of(rows_where(Shares(dvts=RISING, rebase=RISING)))
    assert not scaling_rates(other_pair)
    assert "SMC or entropic particle filter" in missing_rates_reason(other_pair)
    one_budget = curves_of(rows_where(Shares(smc=0.5, dvts=0.5), budgets=(4,)))
    assert not scaling_rates(one_budget)
    assert "have one (N = 4)" in missing_rates_reason(one_budget)


@pytest.mark.parametrize("unit", UNITS)
def test_a_rate_can_be_taken_in_every_unit_of_cost(unit):
    rows = rows_where(Shares(smc=RISING, dvts=RISING))
    for cell, row in rows.items():
        factor = 3 if cell.method == "dvts" else 1
        for cost in ("generated_tokens", "flops"):
            row[cost] *= factor
        row["reward_tokens"] = row["generated_tokens"]
        row["seconds"] = row["flops"]
    (estimate,) = scaling_rates(curves_of(rows), unit, num_replicates=50).values()
    expected = 1 if unit == "rollouts" else 3
    assert float(estimate.rate.mean) == pytest.approx(expected)


def test_time_says_in_every_table_that_it_includes_compilation():
    curves = curves_of(rows_where(Shares(smc=0.5, self_consistency=0.5)))
    for table in (cost_table(curves), cost_table(curves, [4])):
        assert "ms with compilation" in table
    line = next(x for x in table.splitlines() if x.startswith("| self"))
    assert line.rstrip(" |").endswith("–")


def test_pass_at_k_uses_the_largest_pool_of_independent_samples():
    rows = rows_where(Shares(self_consistency=0.5, smc=0.5))
    for cell, row in rows.items():
        row["num_right"] = 2 if cell.problem < 20 else 0
    passed = pass_at_budgets(curves_of(rows))
    # Of four samples two are right, in half of the problems.
    assert [mean for mean, _ in passed.values()] == pytest.approx(
        [0.5 * 0.5, 0.5 * (1 - 1 / 6), 0.5]
    )
    assert pass_at_budgets(curves_of(rows_where(Shares(smc=0.5)))) == {}


def test_single_particles_are_not_judged_for_calibration():
    curves = curves_of(rows_where(Shares(smc=0.75)))
    assert calibrations(curves, 1) == {}
    found = calibrations(curves, 4)["smc"]
    assert found.ece == pytest.approx(0.0)
    assert found.brier == pytest.approx(0.75 * 0.25)


@pytest.mark.long
def test_a_report_says_the_same_in_its_table_and_its_statistics(tmp_path):
    shares = Shares(
        self_consistency=0.25, dvts=RISING, particle_filter=RISING, smc=RISING
    )
    text, names = write_files(rows_where(shares), run_title("x", 40, 1), tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert text.startswith("# x: 40 problems, 1 seed\n")
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    assert len(statistics["compared_with_best"]) == 4
    assert statistics["pairs"][0]["num_comparisons"] == len(statistics["pairs"])
    rates = json.loads((tmp_path / "scaling_rate.json").read_text())
    assert set(rates) == {"rollouts", "rollouts_raw", "flops"}
    table = (tmp_path / "table.md").read_text()
    for part in ("pass@k", "Calibration at N = 4", "Paired differences at N = 4"):
        assert part in table


@pytest.mark.long
def test_a_run_without_references_compares_what_it_has(tmp_path):
    text, _ = write_files(
        rows_where(Shares(best_of_n=0.5, beam_search=0.75)), "x", tmp_path
    )
    assert "| beam search | best-of-N |" in text
    alone, _ = write_files(rows_where(Shares(best_of_n=0.5)), "x", tmp_path)
    assert "Paired" not in alone


def test_the_same_rows_give_the_same_figures(tmp_path):
    curves = curves_of(rows_where(Shares(smc=RISING, dvts=RISING)))
    for suffix in ("png", "pdf"):
        paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
        for path in paths:
            save_accuracy_plots(curves, "rollouts", "x", [path])
        assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(b"%PDF")


def test_points_at_one_cost_are_spread_evenly_around_it():
    factors = np.log(spread(5))
    assert factors.sum() == pytest.approx(0)
    assert np.diff(factors) == pytest.approx([factors[1] - factors[0]] * 4)
    assert math.exp(factors[-1]) < 1.13
    assert spread(1) == [1.0]


def test_bars_are_one_standard_error_or_wilsons_interval():
    few = curves_of(rows_where(Shares(8, smc=0.0), num_problems=8))["smc"][4]
    assert bar(few) == (0.0, pytest.approx(1 / 9, abs=1e-6))
    many = curves_of(rows_where(Shares(smc=0.5)))["smc"][4]
    assert bar(many) == (many.error, many.error)


def lab(colour, vision):
    """CIELAB of a colour as it looks to a dichromat (Machado et al. 2009)."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)
    linear = np.clip(np.array(vision) @ linear, 0, 1)
    to_xyz = [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


VISIONS = {
    "all colours": np.eye(3).tolist(),
    "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_differ_for_every_reader(vision):
    """Methods of one line style differ by 20 units of CIELAB, others by marker."""
    for a, (colour_a, marker_a, line_a) in STYLES.items():
        for b, (colour_b, marker_b, line_b) in STYLES.items():
            if a < b:
                gap = np.linalg.norm(
                    lab(colour_a, VISIONS[vision]) - lab(colour_b, VISIONS[vision])
                )
                assert marker_a != marker_b
                assert gap > 20 or line_a != line_b, (a, b, gap)


def test_ungraded_answers_are_counted_in_a_note():
    rows = rows_where(Shares(smc=0.5))
    assert not any("could not be graded" in note for note in row_notes(rows))
    first, second, *_ = rows
    rows[first]["num_ungraded"], rows[second]["num_ungraded"] = 1, 2
    (note,) = row_notes(rows)
    answered = sum(row["num_answered"] for row in rows.values())
    assert f"3 of {answered} answers, in 2 of 120 runs, could not be graded" in note


def test_a_reliability_figure_has_a_curve_for_each_method(tmp_path):
    curves = curves_of(rows_where(Shares(smc=0.5, dvts=0.75)))
    path = tmp_path / "reliability.png"
    save_reliability_plot(calibrations(curves, 4), "title", [path])
    assert path.stat().st_size > 5000
    empty = tmp_path / "empty.png"
    save_reliability_plot({}, "title", [empty])
    assert path.read_bytes() != empty.read_bytes()


def test_expected_correctness_gives_the_difference_and_its_error():
    rows = rows_where(Shares(self_consistency=0.5, smc=0.75))
    rng = np.random.default_rng(0)
    for cell, row in rows.items():
        if cell.method == "self_consistency":
            row["expected_correct"] = float(rng.random())
    curves = curves_of(rows)
    point = curves["self_consistency"][4]
    (result,) = compare(curves, [("smc", "self_consistency")], [4])
    differences = curves["smc"][4].correct[:, 0] - point.expected[:, 0]
    assert result.result.difference == pytest.approx(differences.mean())
    assert result.result.error == pytest.approx(differences.std(ddof=1) / 40**0.5)
    assert result.result.p_value == pytest.approx(
        scipy.stats.ttest_1samp(differences, 0).pvalue
    )
    # Runs are counted by their selected answers.
    assert (result.result.only_a, result.result.only_b) == (10, 0)
    assert "over these" in accuracy_text(curves)
    assert "over these" not in accuracy_text(curves_of(rows_where(Shares(smc=0.5))))


def test_published_curves_stand_behind_runs_that_repeat_them(tmp_path):
    rows = rows_where(Shares(particle_filter=RISING, dvts=RISING))
    assert find_published_curves(rows) == []
    settings = {"task": "math500", "policy": "meta-llama/Llama-3.2-1B-Instruct"}
    repeated = {cell: row | {"settings": settings} for cell, row in rows.items()}
    background_curves = find_published_curves(repeated)
    assert [curve.method for curve in background_curves] == [
        "particle_filter",
        "weighted_best_of_n",
        "dvts",
    ]
    for curve in background_curves:
        budgets, accuracies = paper_curves()["Llama-3.2-1B"][curve.label.split(",")[0]]
        assert curve.budgets == list(budgets)
        assert curve.accuracies == list(accuracies)
    other = {"task": "math500", "policy": "mine", "temperature": 1.0}
    assert (
        find_published_curves({c: r | {"settings": other} for c, r in rows.items()})
        == []
    )
    assert find_published_curves(rows, "Qwen2.5-Math-7B")[0].accuracies[0] == 0.764
    with pytest.raises(UnknownNameError, match=r"Llama-3\.1-8B"):
        find_published_curves(rows, "Llama-9")
    # A figure by rollouts has them, and one by FLOPs does not.
    curves, images = curves_of(rows), {}
    for unit in ("rollouts", "flops"):
        for name, lines in (("with", background_curves), ("without", ())):
            path = tmp_path / f"{unit}_{name}.png"
            save_accuracy_plots(curves, unit, "title", [path], published=lines)
            images[unit, name] = path.read_bytes()
    assert images["rollouts", "with"] != images["rollouts", "without"]
    assert images["flops", "with"] == images["flops", "without"]
