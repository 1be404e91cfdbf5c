"""A temperature is a part of a method's name, and an axis of a plan."""

import numpy as np
import pytest
from fake_world import FakeEngine, fake_world, read_answer

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.cli import main
from tsi.experiments.grading.grade import Grade
from tsi.experiments.pages.page_data import page_data
from tsi.experiments.plans.methods import (
    METHODS,
    get_method,
    method_settings,
    sampler_of,
)
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.reports.comparisons import challenger_pairs, compare_with_best
from tsi.experiments.reports.curves import curves_of
from tsi.experiments.reports.plots import styles_of
from tsi.experiments.reports.write_report import write_report
from tsi.experiments.rows.graded_run import Grading
from tsi.experiments.rows.regrade import regrade
from tsi.experiments.rows.results import read_rows
from tsi.experiments.scaling.scale import run_plan

NAMES = ("greedy", "self_consistency", "best_of_n", "dvts", "particle_filter", "smc")


class Recording(FakeEngine):
    """Records the temperature of each call."""

    def __init__(self):
        super().__init__()
        self.temperatures = []

    def run(self, *args, temperature=None, **settings):
        self.temperatures.append(temperature)
        return super().run(*args, temperature=temperature, **settings)


def recording_world(num_problems=6):
    return fake_world(num_problems)._replace(engine=Recording())


def test_a_name_with_a_temperature_is_the_method_at_it():
    method = get_method("smc@0.4")
    assert method._replace(temperature=None, label="SMC") == METHODS["smc"]._replace(
        label="SMC"
    )
    assert method.temperature == 0.4
    assert "T = 0.4" in method.label
    assert sampler_of("smc@0.4", 5) is sampler_of("smc", 5)
    assert method_settings("smc@0.4", 5)["temperature"] == 0.4


@pytest.mark.parametrize(
    "name",
    [
        *("smc@", "smc@0", "smc@-1", "smc@nan", "smc@inf", "smc@0.40", "smc@ 1"),
        *("smc@1@2", "smc@1e-300", "smc@1e+300"),
    ],
)
def test_a_temperature_is_positive_and_written_in_one_way(name):
    with pytest.raises(ConfigurationError, match=r"as in smc@0\.4"):
        get_method(name)
    with pytest.raises(ConfigurationError):
        sampler_of(name, 5)


def test_a_method_that_fixes_its_temperature_has_no_other():
    with pytest.raises(ConfigurationError, match="greedy has the temperature 0"):
        get_method("greedy@0.4")
    with pytest.raises(UnknownNameError, match="particle_filter"):
        get_method("particles@0.4")


def test_a_plan_has_each_method_at_each_temperature_in_the_order_of_tables():
    plan = make_plan(("smc", "greedy", "best_of_n"), (2, 1), 1, (1.0, 0.4, 0.4))
    assert plan.methods == (
        "greedy",
        "best_of_n@0.4",
        "best_of_n@1",
        "smc@0.4",
        "smc@1",
    )
    assert make_plan(("smc", "smc@0.4"), (1,), 1).methods == ("smc", "smc@0.4")
    with pytest.raises(ConfigurationError, match="positive temperature"):
        make_plan(("smc",), (1,), 1, (0.0,))
    with pytest.raises(ConfigurationError, match="six digits"):
        make_plan(("smc",), (1,), 1, (0.5, 0.50000001))


def test_each_temperature_is_run_once_and_rows_record_it(tmp_path):
    world, path = recording_world(), tmp_path / "rows.jsonl"
    plan = make_plan(NAMES, (1, 4), 1, (0.4, 1.0))
    run_plan(plan, world, path, progress=False)
    by_method = {}
    for (name, *_), temperature in zip(
        world.engine.calls, world.engine.temperatures, strict=True
    ):
        by_method.setdefault(name, set()).add(temperature)
    assert by_method.pop("greedy") == {0.0}
    # Independent methods share one run per temperature.
    assert by_method == {
        name: {0.4, 1.0}
        for name in ("weighted_best_of_n", "dvts", "particle_filter", "smc")
    }
    for cell, row in read_rows(path).items():
        expected = get_method(cell.method).temperature
        assert row["settings"]["temperature"] == expected
    num_calls = len(world.engine.calls)
    run_plan(plan, world, path, progress=False)
    assert len(world.engine.calls) == num_calls
    run_plan(make_plan(("smc",), (4,), 1, (0.7,)), world, path, progress=False)
    assert set(world.engine.temperatures[num_calls:]) == {0.7}
    before = {cell: row["correct"] for cell, row in read_rows(path).items()}
    assert len(before) == 6 * (1 + 5 * 2 * 2 + 1)

    def grading(settings):
        return Grading(
            read_answer, lambda pairs: [Grade(a == p.answer) for p, a in pairs]
        )

    assert regrade(path, grading).num_changed == 0
    assert {cell: row["correct"] for cell, row in read_rows(path).items()} == before


def test_comparisons_are_within_a_temperature_or_with_the_best_of_all(tmp_path):
    world = recording_world(12)
    plan = make_plan(NAMES, (4,), 1, (0.4, 1.0))
    rows = run_plan(plan, world, tmp_path / "rows.jsonl", progress=False)
    curves = curves_of(rows)
    assert list(curves) == list(plan.methods)
    pairs = challenger_pairs(curves)
    assert len(pairs) == 2 * 2 * 3
    assert all(a.partition("@")[2] == b.partition("@")[2] for a, b in pairs)
    best = max(
        (name for name in curves if name.startswith(("smc", "dvts"))),
        key=lambda name: curves[name][4].accuracy,
    )
    against = {c.against for c in compare_with_best(curves, 4) if c.method != best}
    assert np.isclose(curves[against.pop()][4].accuracy, curves[best][4].accuracy)
    text = write_report(plan, world, rows, tmp_path)
    assert f"{METHODS['smc'].label}, T = 0.4" in text


def test_temperatures_of_a_method_share_a_colour_and_differ_by_line():
    styles = styles_of(["smc", "smc@0.4", "smc@1", "dvts@0.4"])
    assert len({styles[name][:2] for name in ("smc", "smc@0.4", "smc@1")}) == 1
    assert styles["smc@0.4"][2] == styles["dvts@0.4"][2] != styles["smc@1"][2]
    assert len(set(styles.values())) == len(styles)
    many = ["smc", *(f"smc@0.{i}" for i in range(1, 10))]
    assert len(set(styles_of(many).values())) == len(many)


def test_the_command_line_has_temperatures_as_an_axis(capsys):
    command = ["scale", "--task", "chain", "--methods", "smc", "greedy", "--budgets"]
    command += ["2", "--num-problems", "2", "--temperatures", "0.4", "1", "--dry-run"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "T = 0.4" in told
    assert "T = 1" in told
    assert "greedy" in told


def test_a_page_shows_each_temperature_with_a_style_of_its_own(tmp_path):
    world, path = recording_world(), tmp_path / "rows.jsonl"
    plan = make_plan(("smc", "best_of_n"), (2, 4), 1, (0.4, 1.0))
    run_plan(plan, world, path, progress=False)
    methods = page_data("run", read_rows(path))["methods"]
    assert [method["name"] for method in methods] == list(plan.methods)
    styles = {tuple(m[key] for key in ("colour", "dash", "symbol")) for m in methods}
    assert len(styles) == len(methods)
    assert {method["label"].rpartition(", ")[2] for method in methods} == {
        "T = 0.4",
        "T = 1",
    }
