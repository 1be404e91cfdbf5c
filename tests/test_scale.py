"""The scaling experiment on a world without models."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_world import FakeEngine, fake_world, vary

from tsi.accuracy.diagnostics import diagnose, eves
from tsi.errors import (
    ConfigurationError,
    ProblemError,
    ResultsError,
    UnknownNameError,
)
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import (
    METHODS,
    STANDARD,
    budgets_of,
    get_method,
    get_methods,
    sampler_of,
)
from tsi.experiments.plans.plan import check_budgets, make_plan
from tsi.experiments.plans.shared_rollouts import first_rollouts
from tsi.experiments.reports.comparisons import scaling_rates
from tsi.experiments.reports.curves import curves_of
from tsi.experiments.reports.plots import style_of
from tsi.experiments.reports.write_report import write_report
from tsi.experiments.rows.results import read_rows
from tsi.experiments.scaling.scale import run_plan
from tsi.experiments.statistics.accuracy import accuracy, accuracy_interval
from tsi.results.estimand import estimand_of
from tsi.results.selection import select

SEVERAL = (
    *STANDARD,
    "entropic_particle_filter",
    "particle_gibbs",
    "adaptive_consistency",
)


def _plan(methods=SEVERAL, budgets=(1, 2, 4, 8), seeds=2):
    return make_plan(methods, budgets, seeds)


def _lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def _without_seconds(path):
    """The lines of a file, those with settings too; their order is that of the run."""
    lines = _lines(path)
    for line in lines:
        line.pop("seconds", None)
    return sorted(lines, key=lambda line: json.dumps(line, sort_keys=True))


@pytest.mark.long
def test_every_cell_of_the_plan_gets_one_row(tmp_path):
    world, plan = fake_world(), _plan()
    rows = run_plan(plan, world, tmp_path / "rows.jsonl", progress=False)
    expected = {
        Cell(method, budget, seed, problem)
        for method in SEVERAL
        for budget in budgets_of(method, (1, 2, 4, 8))
        for seed in range(1 if method == "greedy" else 2)
        for problem in range(20)
    }
    assert set(rows) == expected
    lines = _lines(tmp_path / "rows.jsonl")
    # Equal settings are in the file once, those of several methods too.
    settings = [line["settings_id"] for line in lines if "settings" in line]
    assert len(settings) == len(set(settings)) < len(SEVERAL)
    assert sum("method" in line for line in lines) == len(expected)


def test_independent_methods_cost_one_run_at_the_largest_budget(tmp_path):
    world = fake_world()
    names = ("self_consistency", "best_of_n", "weighted_best_of_n")
    run_plan(_plan(names, seeds=1), world, tmp_path / "rows.jsonl", progress=False)
    assert {(name, n) for name, _, n, _ in world.engine.calls} == {
        ("weighted_best_of_n", 8)
    }


@pytest.mark.parametrize(
    "name", ["self_consistency", "best_of_n", "weighted_best_of_n"]
)
def test_first_particles_of_a_large_run_are_the_small_run(name):
    world, reads = fake_world(), METHODS[name].reads_reward
    engine = world.engine
    estimand = estimand_of(sampler_of(name, 5), reads_reward=reads)
    for problem in world.problems:
        large, small = (
            engine.result(sampler_of(name, 5), name, 0, problem, n, None)
            for n in (8, 3)
        )
        derived = first_rollouts(large, 3, estimand)
        assert derived.answers == small.answers
        assert (
            derived.particles.truncated.tolist() == small.particles.truncated.tolist()
        )
        assert derived.diagnostics.num_truncated == small.diagnostics.num_truncated
        assert derived.ledger.generated_tokens == small.ledger.generated_tokens
        if reads:
            assert derived.log_evidence == pytest.approx(small.log_evidence, abs=1e-5)
            np.testing.assert_allclose(
                derived.log_weights, small.log_weights, atol=1e-5
            )
            assert derived.ledger[:4] == small.ledger[:4]
            own = diagnose(
                small.answers,
                small.log_weights,
                small.log_evidence,
                eves(small.steps.ancestors),
                0,
            )
            assert derived.posterior.errors == pytest.approx(
                own.answer_errors, nan_ok=True
            )
            assert derived.evidence.variance == pytest.approx(
                own.log_evidence_variance, abs=1e-5
            )
            assert derived.steps.unique_ancestors.tolist() == [3, 3, 3]
            assert np.isnan(derived.ledger.seconds)
            whole = first_rollouts(large, 8, estimand)
            assert whole.ledger.seconds == large.ledger.seconds
            assert derived.selected == small.selected
        else:
            assert derived.ledger.reward_tokens == 0
            assert derived.ledger.flops < small.ledger.flops
            uniform = np.zeros(3)
            expected = select("vote", small.answers, uniform, small.rewards)
            assert derived.selected == expected


def test_dead_rollouts_are_a_recovery_not_a_number():
    world = fake_world()
    result = world.engine.result(
        sampler_of("best_of_n", 5), "best_of_n", 0, world.problems[0], 4, None
    )
    dead = vary(
        result,
        particles={"log_weights": np.full(4, -np.inf, np.float32)},
        evidence={"log_estimate": -np.inf},
    )
    derived = first_rollouts(dead, 2, result.estimand)
    assert derived.log_evidence == -np.inf
    assert np.isnan(derived.evidence.variance)
    assert derived.diagnostics.num_recoveries == 1
    assert np.isfinite(derived.log_weights).all()


def test_results_without_slot_costs_are_refused():
    world = fake_world()
    result = world.engine.result(
        sampler_of("best_of_n", 5), "best_of_n", 0, world.problems[0], 4, None
    )
    for bad, n in ((result._replace(slots=None), 2), (result, 5)):
        with pytest.raises(ConfigurationError, match="Run the method itself"):
            first_rollouts(bad, n, result.estimand)


@pytest.mark.long
def test_some_methods_are_run_again_or_added_in_the_same_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    run_plan(_plan(("smc", "beam_search")), fake_world(), path, progress=False)
    before, world = path.read_bytes(), fake_world()
    plan = _plan(("beam_search",), (1, 4))
    rows = run_plan(plan, world, path, progress=False)
    assert world.engine.calls == []
    assert path.read_bytes() == before
    assert "| SMC" not in write_report(plan, world, rows, tmp_path)
    run_plan(_plan(("entropic_particle_filter",)), world, path, progress=False)
    assert {name for name, *_ in world.engine.calls} == {"entropic_particle_filter"}


def test_a_budget_that_a_method_cannot_use_is_refused_before_any_work(tmp_path):
    world, plan = fake_world(), _plan(("self_consistency", "beam_search"), (1, 6))
    with pytest.raises(ConfigurationError, match="beam search cannot run at N = 6"):
        run_plan(plan, world, tmp_path / "rows.jsonl", progress=False)
    assert world.engine.calls == []


def test_second_run_computes_nothing_and_more_budgets_only_what_is_new(tmp_path):
    path = tmp_path / "rows.jsonl"
    run_plan(_plan(("smc",), (1, 2)), fake_world(), path, progress=False)
    before = path.read_bytes()
    world = fake_world()
    run_plan(_plan(("smc",), (1, 2)), world, path, progress=False)
    assert world.engine.calls == []
    assert path.read_bytes() == before
    run_plan(_plan(("smc",), (1, 2, 4)), world, path, progress=False)
    assert {n for _, _, n, _ in world.engine.calls} == {4}


@pytest.mark.long
@pytest.mark.parametrize("cut", [3, 200, 5000, 40000])
def test_truncated_file_is_completed_to_the_same_rows(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    run_plan(_plan(), fake_world(), path, progress=False)
    undisturbed = _without_seconds(path)
    path.write_bytes(path.read_bytes()[:-cut])
    run_plan(_plan(), fake_world(), path, progress=False)
    assert _without_seconds(path) == undisturbed


@pytest.mark.long
def test_run_killed_twice_resumes_to_the_same_rows(tmp_path):
    path, undisturbed = tmp_path / "rows.jsonl", tmp_path / "undisturbed.jsonl"
    script = str(Path(__file__).parent / "fake_world.py")
    for _ in range(2):
        process = subprocess.Popen([sys.executable, script, str(path), "0.05"])
        before = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < before + 20_000:
            time.sleep(0.01)
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for file in (path, undisturbed):
        subprocess.run([sys.executable, script, str(file), "0"], check=True)
    assert _without_seconds(path) == _without_seconds(undisturbed)


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    run_plan(_plan(("smc",)), fake_world(), path, progress=False)
    other = fake_world(settings={"task": "fake", "temperature": 0.5})
    with pytest.raises(ResultsError, match="temperature"):
        run_plan(_plan(("smc",)), other, path, progress=False)


@pytest.mark.long
def test_rows_say_everything_that_decides_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    run_plan(_plan(), fake_world(), path, progress=False)
    rows = read_rows(path)
    beam = rows[Cell("beam_search", 8, 0, 0)]["settings"]
    assert beam["sampler"] == {"width": 4, "select": "argmax"}
    assert rows[Cell("greedy", 1, 0, 0)]["settings"]["temperature"] == 0.0
    assert beam["temperature"] == 1.0
    assert (
        rows[Cell("entropic_particle_filter", 2, 0, 0)]["settings"]["sampler"][
            "max_steps"
        ]
        == 5
    )


@pytest.mark.long
def test_table_is_what_a_hand_computes_from_the_rows(tmp_path):
    plan, world = _plan(), fake_world()
    run_plan(plan, world, tmp_path / "rows.jsonl", progress=False)
    lines = [x for x in _lines(tmp_path / "rows.jsonl") if "method" in x]
    mine = [line for line in lines if line["method"] == "smc" and line["budget"] == 4]
    by_problem = np.zeros((20, 2))
    for line in mine:
        by_problem[line["problem"], line["seed"]] = line["correct"]
        assert line["correct"] == (line["selected"] == line["answer"])
    point = curves_of(read_rows(tmp_path / "rows.jsonl"))["smc"][4]
    assert point.accuracy == by_problem.mean()
    assert point.error == accuracy(by_problem)[1]
    assert point.flops == np.mean([line["flops"] for line in mine])
    text = write_report(plan, world, read_rows(tmp_path / "rows.jsonl"), tmp_path)
    # Fewer than ten of the twenty problems are right.
    low, high = accuracy_interval(by_problem)
    cell = f"{100 * point.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert cell in text
    assert cell in (tmp_path / "table.md").read_text()


@pytest.mark.long
def test_report_writes_plots_and_rates_of_challengers_against_baselines(tmp_path):
    plan, world = _plan(), fake_world(60)
    rows = run_plan(plan, world, tmp_path / "rows.jsonl", progress=False)
    write_report(plan, world, rows, tmp_path)
    for name in ("accuracy_rollouts.png", "accuracy_flops.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    rates = json.loads((tmp_path / "scaling_rate.json").read_text())["rollouts"]
    pairs = {(rate["method"], rate["against"]) for rate in rates}
    assert ("particle_filter", "dvts") in pairs
    assert len(pairs) == 18
    estimates = scaling_rates(curves_of(rows), num_replicates=50)
    estimate = estimates["smc", "weighted_best_of_n"]
    # The fake searches are better by construction, and the interval says so.
    assert estimate.rate.mean > 1
    assert estimate.mean.low <= estimate.rate.mean <= estimate.mean.high


def test_incomplete_rows_are_not_reported(tmp_path):
    plan, world = _plan(("smc",)), fake_world()
    rows = run_plan(plan, world, tmp_path / "rows.jsonl", progress=False)
    rows.pop(next(iter(rows)))
    with pytest.raises(ResultsError, match="lacks 1 of"):
        write_report(plan, world, rows, tmp_path)


def test_unknown_method_lists_the_known_and_order_is_that_of_tables():
    with pytest.raises(UnknownNameError, match="best_of_n, dvts, entropic"):
        get_methods(["smc", "magic"])
    assert list(get_methods(["smc", "beam_search"])) == ["beam_search", "smc"]
    assert list(get_methods(["all"])) == list(METHODS)
    assert tuple(get_methods(["standard"])) == STANDARD


def test_every_method_has_a_style_of_its_own():
    styles = {style_of(method)[:2] for method in METHODS}
    assert len(styles) == len(METHODS)


def test_budgets_beyond_all_memory_are_checked_without_arrays():
    for method in ("smc", "self_consistency"):
        with pytest.raises(ConfigurationError, match="at N = 1000000000000"):
            check_budgets(make_plan([method], [10**12], 1), 6)


def test_methods_that_need_more_particles_leave_small_budgets_out():
    assert budgets_of("particle_gibbs", (1, 4, 8, 64)) == [8, 64]
    for name in METHODS:
        (smallest,) = budgets_of(name, [get_method(name).min_particles])
        checked = make_plan([name], [smallest], 1)
        check_budgets(checked, 6)


@pytest.mark.parametrize(
    "plan", [((), (1,), 1), (("smc",), (), 1), (("smc",), (0,), 1)]
)
def test_empty_or_impossible_plans_are_refused(plan):
    with pytest.raises(ConfigurationError, match="A plan needs"):
        make_plan(*plan)


def test_samplers_are_built_once():
    assert sampler_of("smc", 5) is sampler_of("smc", 5)
    assert isinstance(fake_world().engine, FakeEngine)


def test_methods_that_never_look_at_the_reward_are_not_charged_for_it(tmp_path):
    names = ("power_sampling", "power_smc", "adaptive_consistency", "quest")
    world = fake_world(6)
    rows = run_plan(_plan(names, (8,), 1), world, tmp_path / "r.jsonl", progress=False)
    for cell, row in rows.items():
        charged = row["reward_tokens"] > 0
        assert charged == (cell.method == "quest")
        assert (row["seconds"] is None) == (cell.method != "quest")
        assert row["generated_tokens"] > 0


@pytest.mark.parametrize("methods", [("smc", "beam_search"), ("self_consistency",)])
def test_a_problem_that_fails_costs_its_rows_alone(tmp_path, methods):
    class Failing(FakeEngine):
        def run(self, *arguments, **settings):
            results = super().run(*arguments, **settings)
            left = [result for result in results if result.problem_id != 3]
            if len(left) == len(results):
                return results
            error = ProblemError({3: ValueError("no answer")})
            error.results = tuple(left)
            raise error

    plan, path, whole = _plan(methods), tmp_path / "rows", tmp_path / "whole"
    world = fake_world()
    expected = run_plan(plan, world, whole, progress=False)
    failing = world._replace(engine=Failing(0.0))
    with pytest.raises(ProblemError, match=r"1 problem failed: 3 .*no answer"):
        run_plan(plan, failing, path, progress=False)
    # The same command goes on with what is missing, once it is mended.
    assert len(path.read_bytes().splitlines()) > 1
    before = set(path.read_bytes().splitlines())
    rows = run_plan(plan, world, path, progress=False)
    assert before <= set(path.read_bytes().splitlines())
    assert rows.keys() == expected.keys()
    lost = sum(cell.problem == 3 for cell in rows)
    assert len(path.read_bytes().splitlines()) - len(before) == lost


@pytest.mark.parametrize("method", ["smc", "self_consistency", "mcts"])
def test_a_budget_that_cannot_fit_is_refused_before_the_first_row(tmp_path, method):
    plan = make_plan(("smc", method), (1, 8192), 1)
    world, path = fake_world(), tmp_path / "rows"
    with pytest.raises(ConfigurationError, match="does not fit"):
        run_plan(plan, world, path, progress=False)
    assert not world.engine.calls
    assert not path.exists()
