"""Rows are planned from bytes, and a dry run says what a run would cost."""

import contextlib
import dataclasses
import fcntl
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_engine
import tiny_language as tiny
from jax.sharding import Mesh

from tsi import samplers
from tsi.engine.engine import Engine
from tsi.engine.lane import Lane
from tsi.engine.sizing import memory as memory_module
from tsi.engine.sizing import planning
from tsi.engine.sizing.memory import CacheSizes, unloaded_bytes
from tsi.engine.sizing.planning import (
    Need,
    bytes_of_prefix,
    bytes_of_slot,
    device_limits,
    limits_of,
)
from tsi.errors import ConfigurationError
from tsi.experiments.cli import main
from tsi.experiments.scaling import dry_run
from tsi.experiments.scaling.dry_run import Run, Speed, cost_of, forecast, runs_of
from tsi.experiments.scaling.methods import method_settings
from tsi.experiments.scaling.plan import batches, make_plan
from tsi.experiments.scaling.process_group import Group
from tsi.experiments.scaling.results import ResultsFile
from tsi.experiments.worlds.embedded_world import embedded_world

GB = 10**9
KEYS = 2 * 28 * 4 * 128 * 2
"""Bytes of a position in the cache of Qwen2.5-7B, in bfloat16."""
LONG = tiny.target(max_tokens=2048, max_step_tokens=256, max_steps=40)


def limits(free, reward=KEYS, target=LONG, prompt=256, *, on_cpu=False):
    need = Need(CacheSizes(KEYS, reward), prompt, 16)
    slot = bytes_of_slot(need, target, 152_064, 16)
    return limits_of(slot, bytes_of_prefix(need, target), free, on_cpu=on_cpu)


def test_what_a_slot_takes_by_hand():
    need = Need(CacheSizes(100, 30), 10, 4)
    target = tiny.target(max_tokens=50, max_step_tokens=20, max_steps=3)
    # Room for 64 positions holds 50 + 10 and no burst of 5, so that it is 128.
    for burst, room in ((4, 64), (5, 128)):
        numbers = 2 * (4 * 50 + 4 * 4 * 3 + 32)
        expected = 2 * room * 100 + 54 * 130 + 12 * 1000 + numbers
        assert bytes_of_slot(need, target, 1000, burst) == expected
    row = 4 * 50 + 4 * 4 * 3 + 32 + 4 * 13 * 2
    assert bytes_of_prefix(need, target) == (10 + 4) * 130 + row


def test_a_card_of_80_gb_has_room_for_a_sensible_number_of_rows():
    """A policy of 7B and a reward of 7B leave 50 GB, a policy alone 65 GB."""
    both, alone = limits(50 * GB), limits(65 * GB, reward=0)
    assert 32 <= both.rows < alone.rows <= 160
    for found in (both, alone):
        assert found.rows % 16 == 0
        assert found.stored >= found.rows
    # What is planned fits, and not much more would.
    need = Need(CacheSizes(KEYS, KEYS), 256, 16)
    slot, prefix = bytes_of_slot(need, LONG, 152_064, 16), bytes_of_prefix(need, LONG)
    planned = both.rows * slot + both.stored * prefix
    assert 0.6 * 50 * GB < planned <= planning.USABLE * 50 * GB
    # Short solutions leave room for many rows.
    short = tiny.target(max_tokens=128, max_step_tokens=64, max_steps=4)
    assert limits(50 * GB, target=short).rows > 4 * both.rows


def test_rows_follow_the_memory_and_end_at_what_was_measured_to_be_fast():
    rows = [limits(free * GB).rows for free in (0, 1, 4, 8, 30, 60, 120, 10**5)]
    assert rows == sorted(rows)
    assert rows[0] == 1
    assert rows[-1] == planning.MOST_ROWS
    assert rows[6] == pytest.approx(2 * rows[5], abs=16)
    # Numbers that can be halved, as slots are.
    assert all(n in (1, 2, 4, 8) or n % 16 == 0 for n in rows)
    assert limits(-5 * GB).rows == 1
    assert limits(10**5 * GB, on_cpu=True) == (128, 16_384, 256)


def test_rows_in_progress_use_memory_that_is_left(monkeypatch):
    policy, reward = tiny.models()
    found = []
    for free in (10**5, 10**9):
        monkeypatch.setattr(planning, "free_bytes", lambda device, n=free: n)
        suits = device_limits(tiny.target(), policy, reward, 16, None, max_rows=4)
        found.append(suits.in_flight)
    assert found == [8, 16]


def test_weights_that_are_not_here_count_as_missing():
    world = embedded_world("chain", 3, shapes_only=True)
    leaves = jax.tree.leaves((world.engine.policy, world.engine.reward_model))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    loaded = embedded_world("chain", 3)
    held = sum(x.nbytes for x in jax.tree.leaves((loaded.engine.policy,)))
    assert unloaded_bytes(world.engine.policy) == held
    assert unloaded_bytes(loaded.engine.policy) == 0
    assert loaded.engine.caches == world.engine.caches
    assert loaded.engine.max_rows == world.engine.max_rows == 128
    with pytest.raises(ConfigurationError, match="no more than about"):
        world.engine.check_fits(samplers.smc(), 10**8)


def test_what_is_missing_is_taken_from_what_is_free(monkeypatch):
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 10**7)
    world = embedded_world("chain", 3, shapes_only=True)
    missing = unloaded_bytes((world.engine.policy, world.engine.reward_model))
    assert world.engine.free_bytes() == 10**7 - missing < 10**7


@pytest.mark.parametrize("limit", [{"max_rows": 0}, {"max_rows": 4, "max_stored": 0}])
def test_an_engine_needs_room_for_a_row(limit):
    policy, reward = tiny.models()
    models = {"encode": tiny.encode, "decode": tiny.decode}
    with pytest.raises(ConfigurationError, match=r"max_\w+ must be at least 1, not 0"):
        Engine(tiny.target(), policy, reward, **models, **limit)


def test_the_engine_alone_says_how_many_problems_are_in_work(monkeypatch):
    engine, sampler = test_engine.shared_engine(16), test_engine.SAMPLER
    assert engine.problems_at_once(sampler, 8) == 4
    assert engine.problems_at_once(sampler, 1000) == 1
    seen = []
    init = Lane.__init__
    monkeypatch.setattr(
        Lane,
        "__init__",
        lambda self, *rest: (seen.append(rest[7].problems), init(self, *rest))[1],
    )
    engine.run(
        sampler, jax.random.key(0), test_engine.PROBLEMS, 8, extract=test_engine.extract
    )
    assert seen == [min(4, len(test_engine.PROBLEMS))]
    search = samplers.mcts()
    plan = search.plan(8, engine.target.max_steps)
    most = min(2 * 16 // plan.rows, 16 * 16 // plan.stored)
    assert engine.problems_at_once(search, 8) == most


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
def finished(tmp_path, still):
    """The arguments of a run, and its file of six rows, which no model has made."""
    world = embedded_world("chain", 3, shapes_only=True)
    plan = make_plan(["smc"], [1, 2], 1)
    path = tmp_path / "rows.jsonl"
    of_method = {"smc": method_settings("smc", world.max_steps)}
    with ResultsFile(path, world.settings, of_method) as results:
        for batch in batches(plan, world):
            results.append((cell, {"correct": True}) for cell in batch.cells)
    return [*FEW, "--out", str(tmp_path)], path


def charged(out):
    """Budgets and numbers of problems of SMC in a table."""
    rows = [line.split("|") for line in out.splitlines() if line.startswith("| SMC")]
    return [(row[2].strip(), row[3].strip()) for row in rows]


def test_only_problems_that_lack_a_row_are_charged(finished, capsys):
    arguments, path = finished
    assert main([*arguments, *COST]) == 0
    assert "All rows exist. Nothing has been run" in capsys.readouterr().out
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert main([*arguments, *COST]) == 0
    out = capsys.readouterr().out
    assert charged(out) == [("2", "1")]
    assert "3 problems, 2 rollouts: " in out
    assert " FLOPs, up to " in out


def test_a_dry_run_refuses_rows_of_other_settings_as_the_run_does(finished, capsys):
    arguments, path = finished
    before = path.read_bytes()
    told = []
    for more in ([], COST):
        assert main([*arguments, "--cache-dtype", "bfloat16", *more]) == 2
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert "cache_dtype is 'absent' there, 'bfloat16' now" in told[0]
    assert path.read_bytes() == before


@pytest.mark.parametrize("half", [b'{"method": "sm', b'{"method": "sm\n'])
def test_a_dry_run_leaves_out_half_a_last_line(finished, capsys, half):
    arguments, path = finished
    whole = path.read_bytes()
    cut = whole[: whole.rfind(b"\n", 0, -1) + 1] + half
    path.write_bytes(cut)
    # Another run may be writing it.
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main([*arguments, *COST]) == 0
    assert charged(capsys.readouterr().out) == [("2", "1")]
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
    finished, capsys, monkeypatch
):
    def refuse(*_):
        raise ConfigurationError("It does not fit.")

    monkeypatch.setattr(Engine, "check_fits", refuse)
    for more in ([], COST):
        assert main([*finished[0], *more]) == 2
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
            "tsi.experiments.scaling.distributed.group_of",
            lambda *_, i=index: contextlib.nullcontext(Two(i, 2)),
        )
        assert main([*arguments, "--distributed"]) == 0
        told.append(capsys.readouterr().out)
    # Two of three problems, at half the speed; and the other process is silent.
    assert charged(told[0]) == [("1", "2"), ("2", "2")]
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
