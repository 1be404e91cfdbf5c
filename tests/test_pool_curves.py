"""Curves over subsets of kept pools, against rows of many seeds."""

import numpy as np
import pytest
from fake_world import fake_world

from tsi.errors import ResultsError
from tsi.experiments.scaling.curves import curves_of
from tsi.experiments.scaling.plan import make_plan
from tsi.experiments.scaling.pool_curves import METHODS, pool_curves
from tsi.experiments.scaling.scale import run_plan


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("pools") / "rows.jsonl"
    plan = make_plan((*METHODS, "smc"), (1, 2, 4, 8), 8)
    return run_plan(plan, fake_world(8), path, progress=False), path


def test_at_the_pools_size_the_curve_is_that_of_the_rows(run):
    rows, path = run
    pooled, curves = pool_curves(rows, path), curves_of(rows)
    for method in METHODS:
        # Ties are broken by order in rows, and at random over subsets.
        assert pooled[method][8].accuracy == pytest.approx(
            curves[method][8].accuracy, abs=0.03
        )
        assert pooled[method][8].choice_error == 0


def test_smaller_subsets_agree_with_the_first_samples(run):
    rows, path = run
    pooled, curves = pool_curves(rows, path), curves_of(rows)
    for method in METHODS:
        for n in (1, 2, 4):
            point = curves[method][n]
            # Both average over the same eight pools; the rows use a part of each.
            within = point.correct.std(axis=1).mean() / point.correct.size**0.5
            gap = pooled[method][n].accuracy - point.accuracy
            assert abs(gap) < 4 * within
    pools = [
        row["num_right"]
        for cell, row in rows.items()
        if (cell.method, cell.budget) == ("best_of_n", 8)
    ]
    for method in METHODS:
        assert pooled[method][1].accuracy == pytest.approx(np.mean(pools) / 8)


def test_few_random_subsets_have_an_error_that_says_so(run):
    rows, path = run
    few = pool_curves(rows, path, num_subsets=20)["weighted_best_of_n"]
    exact = pool_curves(rows, path)["weighted_best_of_n"]
    # Twenty subsets of each of 64 pools, of which each is right or wrong.
    assert 0 < few[4].choice_error < 0.5 / (20 * 64) ** 0.5
    assert exact[4].choice_error == 0
    assert abs(few[4].accuracy - exact[4].accuracy) < 4 * few[4].choice_error
    assert few[1].choice_error == 0


def test_rows_that_do_not_tell_which_samples_are_right_are_refused(run):
    rows, path = run
    other = {
        cell: row | {"num_right": row["num_right"] + 1} for cell, row in rows.items()
    }
    with pytest.raises(ResultsError, match="answers are known to be right"):
        pool_curves(other, path)


def test_a_run_without_pools_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = run_plan(make_plan(("smc",), (2,), 1), fake_world(3), path, progress=False)
    with pytest.raises(ResultsError, match="self_consistency or best_of_n"):
        pool_curves(rows, path)
