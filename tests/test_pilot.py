"""A pilot measures how long solutions are, and the forecast uses it."""

import re

import jax
import pytest
from fake_world import fake_world

from tsi.errors import ConfigurationError, ProblemError
from tsi.experiments.cli import main
from tsi.experiments.commands.forecast_output import forecast_runs
from tsi.experiments.forecasts import pilot
from tsi.experiments.forecasts.dry_run import Run
from tsi.experiments.forecasts.pilot import (
    PILOT_SEED,
    default_num_problems,
    measure_length,
    run_pilot,
)
from tsi.experiments.model_options import DryRun
from tsi.experiments.plans.methods import sampler_of
from tsi.experiments.worlds.embedded_world import embedded_world


@pytest.fixture(scope="module")
def world():
    return embedded_world("chain", 12)


def test_a_pilot_has_the_mean_length_of_independent_solutions(world):
    found = run_pilot(world, 4)
    places = [0, 4, 7, 11]
    results = world.engine.run(
        sampler_of("self_consistency", world.max_steps),
        jax.random.key(PILOT_SEED),
        [world.problems[place] for place in places],
        2,
        extract=world.extract,
    )
    lengths = [result.ledger.generated_tokens / 2 for result in results]
    mean = sum(lengths) / 4
    assert found.tokens == mean
    variance = sum((length - mean) ** 2 for length in lengths) / 3
    assert found.stderr == pytest.approx((variance / 4) ** 0.5)
    assert found.problems == 4
    assert "A pilot of 8 rollouts on 4 problems took" in str(found)
    other, _ = measure_length(world._replace(typical_tokens=None), 4)
    assert other.typical_tokens() == mean


def test_one_problem_has_no_standard_error(world):
    assert "± " not in str(run_pilot(world, 1))
    assert run_pilot(world, 99).problems == 12
    with pytest.raises(ConfigurationError, match="0 were asked for"):
        run_pilot(world, 0)


@pytest.mark.parametrize(
    ("problems", "rollouts", "expected"),
    [(20, 799, 0), (20, 800, 8), (3, 299, 0), (3, 300, 3)],
)
def test_a_run_makes_a_pilot_by_itself_if_that_is_a_small_part(
    problems, rollouts, expected
):
    world = fake_world(problems)
    assert default_num_problems(world, rollouts) == expected
    assert default_num_problems(world._replace(is_served=True), rollouts) == 0
    known = world._replace(typical_tokens=lambda: 3.0)
    assert default_num_problems(known, rollouts) == 0


def test_the_forecast_has_the_measured_length(world):
    unknown = world._replace(typical_tokens=None)
    runs = [Run("smc", 8, 12)]
    speed = DryRun(dry_run=True, flops_per_second=1e9)
    assert "No worked solutions" in forecast_runs(unknown, runs, speed).line
    found = forecast_runs(unknown, runs, speed._replace(pilot=4)).line
    length = run_pilot(world, 4).tokens
    assert found.startswith("A pilot of 8 rollouts on 4 problems took ")
    tokens = re.search(r"96 rollouts: ([\d,]+) tokens", found).group(1)
    assert int(tokens.replace(",", "")) == round(96 * length)
    # A run of many rollouts makes the pilot without being asked, unless told not to.
    many = [Run("smc", 8, 12), Run("smc", 64, 12)]
    assert forecast_runs(unknown, many, DryRun()).line.startswith("A pilot of 16 roll")
    assert "pilot of" not in forecast_runs(unknown, many, DryRun(pilot=0)).line
    assert "pilot of" not in forecast_runs(unknown, runs, DryRun()).line
    finished = forecast_runs(unknown, [Run("smc", 8, 0)], DryRun(pilot=4)).line
    assert finished == "All rows exist."


def test_problems_that_fail_do_not_end_a_pilot(world, monkeypatch):
    results = pilot.run_method(world, "greedy", jax.random.key(0), world.problems, 1)

    def fail(*_):
        error = ProblemError({3: ValueError("no")})
        error.results = tuple(results[:2])
        raise error

    monkeypatch.setattr(pilot, "run_method", fail)
    assert run_pilot(world, 4).problems == 2
    results.clear()
    with pytest.raises(ProblemError):
        run_pilot(world, 4)


def test_the_command_line_has_a_pilot(capsys, tmp_path):
    command = ["scale", "--methods", "smc", "--budgets", "2", "--num-problems", "3"]
    command += ["--out", str(tmp_path / "run"), "--no-progress"]
    assert main([*command, "--dry-run", "--pilot", "2"]) == 0
    out = capsys.readouterr().out
    assert "A pilot of 4 rollouts on 2 problems took " in out
    assert "Nothing else has been run or written." in out
    assert not (tmp_path / "run").exists()
    assert main([*command, "--pilot", "1"]) == 0
    assert "tsi: A pilot of 2 rollouts on 1 problem took" in capsys.readouterr().err
    assert main([*command, "--pilot", "-1"]) == 2
    assert "0 or more, not -1" in capsys.readouterr().err
    assert main(["solve", "1+1+1+1", "--pilot", "1"]) == 2
    assert "--pilot needs --dry-run" in capsys.readouterr().err
    assert main(["solve", "1+1+1+1", "--pilot", "1", "--dry-run"]) == 0
    assert "A pilot of 2 rollouts on 1 problem took" in capsys.readouterr().out


def test_a_pilot_that_fails_does_not_end_the_run(world, monkeypatch):
    def fail(*_):
        raise ProblemError({3: ValueError("no")})

    monkeypatch.setattr(pilot, "run_method", fail)
    unknown = world._replace(typical_tokens=None)
    speed = DryRun(dry_run=True, flops_per_second=1e9, pilot=4)
    line = forecast_runs(unknown, [Run("smc", 8, 12)], speed).line
    assert line.startswith("The pilot found no length of a solution: 1 problem failed")
    assert "No worked solutions say how long" in line
