"""Rows as a table of pandas."""

import sys

import pytest
from fake_world import fake_world

from tsi.errors import ConfigurationError
from tsi.experiments import read_rows, to_frame
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.scaling.scale import run_plan


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("frame") / "rows.jsonl"
    run_plan(make_plan(("smc", "dvts"), (2, 4), 2), fake_world(5), path, progress=False)
    return read_rows(path)


def test_a_table_has_every_row_with_its_settings(rows):
    pytest.importorskip("pandas")
    frame = to_frame(rows)
    assert len(frame) == len(rows)
    keys = frame[["method", "budget", "seed", "problem"]]
    assert set(keys.itertuples(index=False, name=None)) == set(rows)
    assert set(frame["settings.task"]) == {"fake"}
    # DVTS and SMC have different samplers, whose settings are JSON texts.
    assert frame.groupby("method")["settings.sampler"].nunique().tolist() == [1, 1]
    assert frame["settings.sampler"].nunique() == 2
    by_method = frame.groupby("method").correct.mean()
    right = [row["correct"] for cell, row in rows.items() if cell.method == "smc"]
    assert by_method["smc"] == pytest.approx(sum(right) / len(right))


def test_without_pandas_the_error_says_how_to_install_it(rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigurationError, match="pip install pandas"):
        to_frame(rows)
