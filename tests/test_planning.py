"""Numbers of rows and stored prefixes are planned from bytes."""

import jax
import pytest
import test_engine
import tiny_language as tiny

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
    assert rows[-1] == planning.MAX_ROWS
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
        planned = device_limits(tiny.target(), policy, reward, 16, None, max_rows=4)
        found.append(planned.in_flight)
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
