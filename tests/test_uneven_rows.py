"""Reports of rows whose methods have different problems or seeds, or lack fields."""

import numpy as np
import pytest
from test_report import FLAT, RISING, Shares, rows_where

from tsi.experiments.pages.page import as_script_data
from tsi.experiments.pages.page_data import page_data
from tsi.experiments.reports.comparisons import (
    compare,
    compare_with_best,
    missing_rates_reason,
    scaling_rates,
)
from tsi.experiments.reports.confidence import calibrations, pass_at_budgets
from tsi.experiments.reports.curves import curves_of
from tsi.experiments.reports.report import cost_table, problem_notes, row_notes
from tsi.experiments.reports.write_report import write_files


def rows_of(method, problems, shares=RISING, seeds=(0,)):
    """Rows of one method, right on the first problems, as `rows_where` has them."""
    rows = rows_where(
        Shares(**{method: shares}), num_problems=40, num_seeds=max(seeds) + 1
    )
    return {
        cell: row
        for cell, row in rows.items()
        if cell.problem in problems and cell.seed in seeds
    }


def test_methods_are_compared_on_the_problems_that_both_have():
    smc, dvts = rows_of("smc", range(40)), rows_of("dvts", range(20, 40), FLAT)
    curves = curves_of({**smc, **dvts})
    (found,) = compare(curves, [("smc", "dvts")], [4])
    # Of the problems from 20 to 39 SMC solves those below 30, and DVTS none.
    assert found.result.difference == 0.5
    assert (found.result.num_pairs, found.result.only_a) == (20, 10)
    (note,) = problem_notes(curves)
    assert "DVTS 20, SMC 40" in note
    assert problem_notes(curves_of(smc)) == []


def test_a_pair_is_formed_by_ids_and_not_by_positions():
    apart = {**rows_of("smc", range(20)), **rows_of("dvts", range(20, 40))}
    assert compare(curves_of(apart), [("smc", "dvts")], [4]) == []
    shifted = {**rows_of("smc", range(30)), **rows_of("dvts", range(10, 40))}
    (found,) = compare(curves_of(shifted), [("smc", "dvts")], [4])
    # Both are right on the same problems, so their difference is zero.
    assert (found.result.difference, found.result.num_pairs) == (0.0, 20)


def test_rates_are_those_of_the_common_problems_and_seeds():
    smc = rows_of("smc", range(40), seeds=(0, 1))
    baseline = rows_of("best_of_n", range(40), FLAT | {4: 0.5})
    alone = scaling_rates(
        curves_of({**rows_of("smc", range(20)), **rows_of("best_of_n", range(20))}),
        num_replicates=50,
    )
    for cell, row in smc.items():
        row["flops"] *= 1 if cell.problem < 20 else 100
    part = {cell: row for cell, row in baseline.items() if cell.problem < 20}
    curves = curves_of({**smc, **part})
    (key,) = alone
    assert key == ("smc", "best_of_n")
    rates = scaling_rates(curves, "flops", num_replicates=50)
    expected = {
        **{cell: row for cell, row in smc.items() if cell.problem < 20},
        **part,
    }
    expected = {cell: row for cell, row in expected.items() if cell.seed == 0}
    (known,) = scaling_rates(curves_of(expected), "flops", num_replicates=50).values()
    assert np.array_equal(rates[key].rate.mean, known.rate.mean)
    apart = {**rows_of("smc", range(20)), **rows_of("best_of_n", range(20, 40))}
    assert scaling_rates(curves_of(apart)) == {}
    assert "no problem and seed in common" in missing_rates_reason(curves_of(apart))


def test_seeds_that_both_have_are_compared():
    several = {
        **rows_of("smc", range(40), seeds=(0, 1)),
        **rows_of("dvts", range(40), seeds=(0, 1, 2)),
    }
    (found,) = compare(curves_of(several), [("smc", "dvts")], [4])
    assert found.result.num_pairs == 80
    (note,) = problem_notes(curves_of(several))
    assert "Methods have different seeds" in note
    single = {
        **rows_of("smc", range(40), seeds=(0, 1, 2)),
        **rows_of("dvts", range(40)),
    }
    (found,) = compare(curves_of(single), [("smc", "dvts")], [4])
    assert found.result.num_pairs == 120
    assert problem_notes(curves_of(single)) == []


def test_the_best_reference_is_one_with_common_problems():
    rows = {
        **rows_of("rebase", range(20)),
        **rows_of("dvts", range(40), FLAT),
        **rows_of("particle_filter", range(20, 40)),
        **rows_of("best_of_n", range(10)),
    }
    curves = curves_of(rows)
    assert curves["rebase"][4].accuracy > curves["dvts"][4].accuracy
    found = {c.method: c.against for c in compare_with_best(curves, 4)}
    assert found == {
        "rebase": "dvts",
        "dvts": "rebase",
        "particle_filter": "dvts",
        "best_of_n": "rebase",
    }
    alone = {**rows_of("dvts", range(20)), **rows_of("best_of_n", range(20, 40))}
    assert compare_with_best(curves_of(alone), 4) == []


def test_a_page_leaves_out_what_a_method_has_not():
    rows = {**rows_of("best_of_n", range(40)), **rows_of("beam_search", range(10))}
    data = page_data("run", rows)
    records = {r["method"]: r for r in data["answers"] if r["budget"] == 4}
    assert records["best_of_n"]["correct"] == [True] * 30 + [False] * 10
    assert records["beam_search"]["correct"] == [True] * 10 + [None] * 30
    assert records["beam_search"]["selected"][10:] == [None] * 30
    assert any("different problems" in note for note in data["notes"])
    assert "NaN" not in as_script_data(data)


@pytest.mark.long
def test_rows_with_the_required_fields_alone_are_reported(tmp_path):
    rows = {
        cell: {"correct": row["correct"], "settings": {}}
        for cell, row in rows_where(
            Shares(self_consistency=FLAT, smc=RISING, dvts=RISING)
        ).items()
    }
    assert row_notes(rows) == []
    curves = curves_of(rows)
    # What rows do not tell is not taken for zero.
    assert pass_at_budgets(curves) == {}
    assert calibrations(curves, 4) == {}
    assert "nan" not in cost_table(curves)
    data = page_data("run", rows)
    assert "NaN" not in as_script_data(data)
    text, names = write_files(rows, "x", tmp_path)
    assert "Paired differences" in text
    assert "accuracy_flops.png" not in names
