"""A dry run says what a run would cost, and computes nothing."""

import contextlib
import dataclasses
import fcntl
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tsi.engine.engine import Engine
from tsi.engine.lane import Lane
from tsi.errors import ConfigurationError
from tsi.experiments.cli import main
from tsi.experiments.forecasts import dry_run
from tsi.experiments.forecasts.dry_run import Run, Speed, cost_of, forecast, runs_of
from tsi.experiments.plans.methods import method_settings
from tsi.experiments.plans.plan import batches, make_plan
from tsi.experiments.processes.process_group import Group
from tsi.experiments.rows.results import ResultsFile
from tsi.experiments.worlds.embedded_world import embedded_world


@pytest.fixture
def still(monkeypatch):
    """No lane may be made, and no program with a model be called."""
    monkeypatch.setattr(Lane, "__init__", None)
    monkeypatch.setattr(Engine, "run", None)


def test_costs_by_hand(still):
    world = embedded_world("chain", 5, shapes_only=True)
    world = world._replace(typical_tokens=lambda: 30.0)
    target, policy = world.engine.target, world.engine.policy.config
    cost = cost_of(world, Run("particle_filter", 8, 5))
    assert cost.at_once == 5
    assert cost.max_tokens == 5 * 8 * target.max_steps * target.max_step_tokens
    assert cost.tokens == 5 * 8 * 30
    prompt = dry_run.prompt_tokens(world)
    context = prompt + 15.0
    reader = world.engine.reward_model.config
    flops = cost.tokens * policy.flops_per_token(context)
    flops += cost.tokens * reader.flops_per_token(context, head=False)
    for config in (policy, reader):
        mean = config.count_attended(0, prompt) / prompt
        flops += 5 * prompt * config.flops_per_token(mean, head=False)
    assert cost.flops == pytest.approx(flops, rel=1e-6)
    # Rounds of four, of which there are two.
    rounds = cost_of(world, Run("adaptive_smc", 8, 5))
    assert rounds.max_tokens == cost.max_tokens
    search = cost_of(world, Run("mcts", 8, 5))
    assert search.max_tokens > cost.max_tokens


def test_a_solution_bounds_the_tokens_of_rows_that_never_resample(still):
    world = embedded_world("chain", 5, shapes_only=True)
    engine = world.engine
    short = dataclasses.replace(engine.target, max_tokens=7)
    engine.target = short
    world = world._replace(engine=engine, typical_tokens=lambda: 30.0)
    independent = cost_of(world, Run("weighted_best_of_n", 8, 5))
    assert independent.max_tokens == 5 * 8 * 7
    filtered = cost_of(world, Run("particle_filter", 8, 5))
    assert filtered.max_tokens == 5 * 8 * short.max_steps * short.max_step_tokens
    # The typical solution is no longer than the limit.
    assert independent.tokens == filtered.tokens == 5 * 8 * 7


def test_a_dry_run_says_what_is_refused_and_at_which_speed(still, tmp_path):
    world = embedded_world("chain", 5, shapes_only=True)
    plan = make_plan(["beam_search", "smc"], [6, 8, 10**8], 2)
    runs = runs_of(plan, world, tmp_path / "rows.jsonl")
    assert sum(run.problems for run in runs) == 2 * 2 * 3 * 5
    text, _, refused = forecast(world, runs, 1e9)
    assert refused
    assert "1.0 GFLOP/s (as stated)" in text
    assert text.count("Refused: ") >= 2
    assert "cannot divide 6 particles" in text
    slow, fast = (
        cost_of(world, Run("smc", 8, 5)).flops / speed for speed in (1e9, 2e9)
    )
    assert slow == 2 * fast
    assert math.isnan(cost_of(world, Run("smc", 10**8, 5)).flops)


@pytest.mark.parametrize(
    "command",
    [
        ["scale", "--budgets", "4", "--num-problems", "3", "--out", "{}"],
        ["scale", "--budgets", "4", "--num-problems", "3", "--out", "file://{}"],
        ["solve", "1+1+1+1", "--budget", "4", "--figures", "{}"],
        ["profile", "--budget", "4", "--trace", "{}"],
    ],
)
def test_a_dry_run_writes_and_computes_nothing(command, still, tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = [part.format(folder) for part in command]
    assert main([*arguments, "--dry-run"]) == 0
    assert not folder.exists()
    out = capsys.readouterr().out
    assert "GFLOP/s (measured" in out
    assert "Nothing has been run or written." in out
    stated = ["--dry-run", "--flops-per-second"]
    assert main([*arguments, *stated, "2e12"]) == 0
    assert "2,000.0 GFLOP/s (as stated)" in capsys.readouterr().out
    assert main([*arguments, *stated, "0"]) == 2


@pytest.mark.long
def test_rows_that_are_there_are_not_counted_again(tmp_path, capsys):
    arguments = ["scale", "--methods", "greedy", "beam_search", "--num-problems", "2"]
    arguments += ["--out", str(tmp_path), "--no-progress", "--budgets"]
    assert main([*arguments, "1", "--dry-run"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "rollouts: " in x]
    assert main([*arguments, "1"]) == 0
    before = (tmp_path / "rows.jsonl").read_bytes()
    # The run says the same before it begins, up to the time, which is measured.
    said = line.split(", up to")[0]
    assert said.startswith("2 problems, 4 rollouts: ")
    assert f"tsi: {said}" in capsys.readouterr().err
    assert main([*arguments, "1", "4", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("| beam search |") == 1
    assert "greedy" not in out
    assert (tmp_path / "rows.jsonl").read_bytes() == before


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_speed_of_weights_in_few_bits_is_that_of_what_is_computed(weights, capsys):
    arguments = ["solve", "1+1+1+1", "--budget", "2", "--max-rows", "4", "--dry-run"]
    assert main([*arguments, "--weights", weights]) == 0
    assert "GFLOP/s (measured, 4 rows)" in capsys.readouterr().out


FEW = ["scale", "--methods", "smc", "--budgets", "1", "2", "--num-problems", "3"]
COST = ["--dry-run", "--flops-per-second", "1e9"]


@pytest.fixture
def finished_run(tmp_path, still):
    """The arguments of a run, and its file of six rows, which no model has made."""
    world = embedded_world("chain", 3, shapes_only=True)
    plan = make_plan(["smc"], [1, 2], 1)
    path = tmp_path / "rows.jsonl"
    of_method = {"smc": method_settings("smc", world.max_steps)}
    with ResultsFile(path, world.settings, of_method) as results:
        for batch in batches(plan, world):
            results.append((cell, {"correct": True}) for cell in batch.cells)
    return [*FEW, "--out", str(tmp_path)], path


def budgets_and_problems(out):
    """Budgets and numbers of problems of SMC in a table."""
    rows = [line.split("|") for line in out.splitlines() if line.startswith("| SMC")]
    return [(row[2].strip(), row[3].strip()) for row in rows]


def test_only_problems_that_lack_a_row_are_charged(finished_run, capsys):
    arguments, path = finished_run
    assert main([*arguments, *COST]) == 0
    assert "All rows exist. Nothing has been run" in capsys.readouterr().out
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert main([*arguments, *COST]) == 0
    out = capsys.readouterr().out
    assert budgets_and_problems(out) == [("2", "1")]
    assert "3 problems, 2 rollouts: " in out
    assert " FLOPs, up to " in out


def test_a_dry_run_refuses_rows_of_other_settings_as_the_run_does(finished_run, capsys):
    arguments, path = finished_run
    before = path.read_bytes()
    told = []
    for more in ([], COST):
        assert main([*arguments, "--cache-dtype", "bfloat16", *more]) == 2
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert "cache_dtype is 'absent' there, 'bfloat16' now" in told[0]
    assert path.read_bytes() == before


@pytest.mark.parametrize("half", [b'{"method": "sm', b'{"method": "sm\n'])
def test_a_dry_run_leaves_out_half_a_last_line(finished_run, capsys, half):
    arguments, path = finished_run
    whole = path.read_bytes()
    cut = whole[: whole.rfind(b"\n", 0, -1) + 1] + half
    path.write_bytes(cut)
    # Another run may be writing it.
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main([*arguments, *COST]) == 0
    assert budgets_and_problems(capsys.readouterr().out) == [("2", "1")]
    assert path.read_bytes() == cut


def test_a_dry_run_ends_as_the_command_would(still, capsys, tmp_path):
    arguments = ["scale", "--methods", "beam_search", "--num-problems", "2"]
    arguments += ["--out", str(tmp_path), "--budgets", "8", "6"]
    for command in (
        arguments,
        ["solve", "1+1+1+1", "--method", "beam_search", "--budget", "6"],
        ["profile", "--method", "beam_search", "--budget", "6", "--num-problems", "2"],
    ):
        assert main([*command, *COST]) == 2
        out = capsys.readouterr().out
        assert "refused" in out
        assert "Refused: " in out
        assert "cannot divide 6 particles" in out
    assert main([*arguments[:-1], *COST]) == 0


def test_a_budget_that_is_refused_is_so_even_if_its_rows_are_there(
    finished_run, capsys, monkeypatch
):
    def refuse(*_):
        raise ConfigurationError("It does not fit.")

    monkeypatch.setattr(Engine, "check_fits", refuse)
    for more in ([], COST):
        assert main([*finished_run[0], *more]) == 2
        assert "It does not fit." in "".join(capsys.readouterr())


@pytest.mark.parametrize("command", [["scale"], ["solve", "1+1+1+1"], ["profile"]])
def test_a_speed_is_a_part_of_a_dry_run(command, still, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--flops-per-second", "1e12"]) == 2
    assert "needs --dry-run; add it." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_takes_options_of_processes_as_the_run_does(
    still, capsys, tmp_path, monkeypatch
):
    arguments = [*FEW, "--out", str(tmp_path), *COST]
    assert main([*arguments, "--num-processes", "4"]) == 2
    assert "need --distributed" in capsys.readouterr().err

    class Two(Group):
        """What the others tell is not waited for."""

        def gather(self, name, text=""):
            asked.append((self.index, name))
            return [text] * self.count

    asked, told = [], []
    for index in (0, 1):
        monkeypatch.setattr(
            "tsi.experiments.processes.distributed.group_of",
            lambda *_, i=index: contextlib.nullcontext(Two(i, 2)),
        )
        assert main([*arguments, "--distributed"]) == 0
        told.append(capsys.readouterr().out)
    # Two of three problems, at half the speed; and the other process is silent.
    assert budgets_and_problems(told[0]) == [("1", "2"), ("2", "2")]
    assert "0.5 GFLOP/s (as stated, a share of 1/2)" in told[0]
    assert "the first of 2 processes" in told[0]
    assert told[1] == ""
    assert {index for index, _ in asked} == {0, 1}


def test_the_speed_is_that_of_all_devices_and_one_problem_uses_one_group(
    still, monkeypatch
):
    devices, measured = [jax.local_devices()[0]] * 4, []
    world = embedded_world("chain", 8, shapes_only=True)
    monkeypatch.setattr(Engine, "num_groups", 4)
    world.engine.mesh = Mesh(np.array(devices), ("data",))

    def measure(config, dtype, rows, devices):
        measured.append(len(devices))
        return Speed(1e9, "")

    monkeypatch.setattr(dry_run, "measure_speed", measure)
    forecast(world, [Run("smc", 8, 8)])
    assert measured == [4]
    whole, quarter = (cost_of(world, Run("smc", 8, n)) for n in (8, 1))
    assert (whole.device_share, quarter.device_share) == (1.0, 0.25)


def test_every_device_computes_while_the_speed_is_measured(monkeypatch):
    seen = []
    put = jax.device_put
    monkeypatch.setattr(
        jax,
        "device_put",
        lambda x, where: seen.append((x.shape, where)) or put(x, where),
    )
    config = SimpleNamespace(width=8, hidden=16, num_layers=2)
    speed = dry_run.measure_speed(config, jnp.bfloat16, 4, jax.local_devices())
    assert speed.flops > 0
    count = len(jax.local_devices())
    assert seen[-1][0] == (4 * count, 8)
    assert seen[-1][1].spec == jax.sharding.PartitionSpec("devices")
