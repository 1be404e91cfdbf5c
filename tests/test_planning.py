"""Rows are planned from bytes, and a dry run says what a run would cost."""

import math

import jax
import pytest
import test_engine
import tiny_language as tiny

from tsi import samplers
from tsi.engine import engine as engine_module
from tsi.engine import planning
from tsi.engine.engine import Engine
from tsi.engine.lane import Lane
from tsi.engine.memory import CacheSizes, unloaded_bytes
from tsi.engine.planning import Need, bytes_of_prefix, bytes_of_slot, limits_of
from tsi.errors import ConfigurationError
from tsi.experiments import dry_run
from tsi.experiments.cli import main
from tsi.experiments.dry_run import Run, cost_of, dry_run_text, runs_of
from tsi.experiments.scale import checked_plan
from tsi.experiments.world import embedded_world

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
    assert limits(10**5 * GB, on_cpu=True) == (128, 16_384)


def test_weights_that_are_not_here_count_as_missing():
    world = embedded_world("chain", 3, shapes_only=True)
    leaves = jax.tree.leaves((world.engine.policy, world.engine.reward))
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
    monkeypatch.setattr(engine_module, "free_bytes", lambda device: 10**7)
    world = embedded_world("chain", 3, shapes_only=True)
    missing = unloaded_bytes((world.engine.policy, world.engine.reward))
    assert world.engine.free_bytes() == 10**7 - missing < 10**7


@pytest.mark.parametrize("limit", [{"max_rows": 0}, {"max_rows": 4, "max_stored": 0}])
def test_an_engine_needs_room_for_a_row(limit):
    policy, reward = tiny.models()
    models = {"encode": tiny.encode, "decode": tiny.decode}
    with pytest.raises(ConfigurationError, match=r"max_\w+ must be at least 1, not 0"):
        Engine(tiny.target(), policy, reward, **models, **limit)


def test_the_engine_alone_says_how_many_problems_are_in_work(monkeypatch):
    engine, sampler = test_engine.engine(16), samplers.particle_filter()
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
    assert cost.most_tokens == 5 * 8 * target.max_steps * target.max_step_tokens
    assert cost.tokens == 5 * 8 * 30
    prompt = dry_run.prompt_tokens(world)
    context = prompt + 15.0
    reader = world.engine.reward.config
    flops = cost.tokens * policy.flops_per_token(context)
    flops += cost.tokens * reader.flops_per_token(context, head=False)
    for config in (policy, reader):
        mean = config.attended(0, prompt) / prompt
        flops += 5 * prompt * config.flops_per_token(mean, head=False)
    assert cost.flops == pytest.approx(flops, rel=1e-6)
    # Rounds of four, of which there are two.
    rounds = cost_of(world, Run("adaptive_smc", 8, 5))
    assert rounds.most_tokens == cost.most_tokens
    search = cost_of(world, Run("mcts", 8, 5))
    assert search.most_tokens > cost.most_tokens


def test_a_dry_run_says_what_is_refused_and_at_which_speed(still, tmp_path):
    world = embedded_world("chain", 5, shapes_only=True)
    plan = checked_plan(["beam", "smc"], [6, 8, 10**8], 2)
    runs = runs_of(plan, world, tmp_path / "rows.jsonl")
    assert sum(run.problems for run in runs) == 2 * 2 * 3 * 5
    text = dry_run_text(world, runs, 1e9)
    assert "1.0 GFLOP/s (as stated)" in text
    assert text.count("Refused: ") >= 2
    assert "cannot share out 6 particles" in text
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


def test_rows_that_are_there_are_not_counted_again(tmp_path, capsys):
    arguments = ["scale", "--methods", "greedy", "beam", "--num-problems", "2"]
    arguments += ["--out", str(tmp_path), "--no-progress", "--budgets"]
    assert main([*arguments, "1"]) == 0
    before = (tmp_path / "rows.jsonl").read_bytes()
    capsys.readouterr()
    assert main([*arguments, "1", "4", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("| beam search |") == 1
    assert "greedy" not in out
    assert (tmp_path / "rows.jsonl").read_bytes() == before
