"""Caches in blocks: forks copy nothing, no past is written over, no block leaks."""

import collections
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_engine
import tiny_language as tiny

from tsi import samplers
from tsi.engine import engine as engine_module
from tsi.engine import writers as writers_module
from tsi.engine.common_past import Common
from tsi.engine.lane import Lane
from tsi.engine.paging.blocks import BlockTables
from tsi.engine.paging.pages import (
    Dense,
    empty_pages,
    layers_of,
    merge,
    moves_of,
    page_in,
    page_out,
)
from tsi.engine.paging.pool import Pool
from tsi.engine.programs.model_programs import Programs
from tsi.engine.sizing import sizes as sizes_module
from tsi.engine.sizing.shapes import Shapes
from tsi.engine.sizing.sizes import coarse_room_of, num_slots_of, room_of, width_of
from tsi.engine.step_reader import StepReader
from tsi.engine.writers import Writers

ROWS, LENGTH, BLOCK = 6, 40, 4


class Mirror:
    """Rows whose positions are numbers, in blocks and, to compare, one by one."""

    def __init__(self):
        self.tables = BlockTables(ROWS, LENGTH, BLOCK)
        self.tables.grow(200)
        self.contents = np.full((200, BLOCK), -1)
        self.rows = [[] for _ in range(ROWS)]
        self.counter = 0

    def extend(self, rows, kept, added):
        dense = np.full((len(rows), LENGTH + BLOCK), -2)
        lengths = []
        for i, row in enumerate(rows):
            fresh = list(range(self.counter, self.counter + added[i]))
            self.counter += added[i]
            self.rows[row] = self.rows[row][: kept[i]] + fresh
            dense[i, : len(self.rows[row])] = self.rows[row]
            lengths.append(len(self.rows[row]))
        copies = self.tables.extend(rows, kept, np.asarray(lengths))
        for i, position, block in zip(*copies, strict=True):
            self.contents[block] = dense[i, position : position + BLOCK]

    def check(self):
        for row, expected in enumerate(self.rows):
            copies = self.tables.contents([row])
            held = [self.contents[block] for block in copies.blocks]
            found = np.concatenate([*held, []])[: len(expected)]
            np.testing.assert_array_equal(found, expected)
            assert self.tables.lengths[row] == len(expected)
        uses = np.bincount(
            self.tables.table[self.tables.table >= 0], minlength=self.tables.uses.size
        )
        np.testing.assert_array_equal(uses, self.tables.uses)


@pytest.mark.parametrize("seed", range(20))
def test_rows_keep_their_past_whatever_others_do(seed):
    random, mirror = np.random.default_rng(seed), Mirror()
    for _ in range(60):
        count = random.integers(1, ROWS + 1)
        rows = random.permutation(ROWS)[:count]
        lengths = mirror.tables.lengths[rows]
        match random.integers(4):
            case 0:
                parents = random.integers(0, ROWS, count)
                mirror.tables.fork(rows, parents)
                past = [list(mirror.rows[parent]) for parent in parents]
                for row, mine in zip(rows, past, strict=True):
                    mirror.rows[row] = mine
            case 1:
                left = random.integers(0, lengths + 1)
                mirror.tables.cut(rows, left)
                for row, length in zip(rows, left, strict=True):
                    del mirror.rows[row][length:]
            case 2:
                mirror.tables.release(rows[:1])
                mirror.rows[rows[0]] = []
            case _:
                kept = random.integers(0, lengths + 1)
                room = np.minimum(LENGTH - kept, 9)
                mirror.extend(rows, kept, random.integers(0, room + 1))
        mirror.check()
    mirror.tables.release(np.arange(ROWS))
    assert mirror.tables.num_used == 0


def test_memory_follows_the_genealogy():
    """64 rows that forked at position 30 hold its blocks once, and one more each."""
    tables = BlockTables(64, 64, 4)
    tables.grow(200)
    tables.extend([0], [0], [30])
    assert tables.num_used == 8
    rows = np.arange(64)
    tables.fork(rows, np.zeros(64, int))
    assert tables.num_used == 8
    # Two positions more: only the last block, which is half full, is copied.
    copies = tables.extend(rows, np.full(64, 30), np.full(64, 32))
    assert len(copies.rows) == 64
    assert tables.num_used == 7 + 64


def test_a_pool_says_how_many_blocks_it_lacks():
    tables = BlockTables(2, 16, 4)
    tables.grow(3)
    assert tables.num_missing([0, 1], [0, 0], [8, 8]) == 1
    tables.grow(1)
    assert tables.num_missing([0, 1], [0, 0], [8, 8]) == 0
    tables.extend([0, 1], [0, 0], [8, 8])
    assert tables.num_missing([0], [8], [9]) == 1


def dense(seed: int, rows: int, size: int) -> Dense:
    keys = jax.random.split(jax.random.key(seed))
    return layers_of(
        jax.random.normal(keys[0], (2, rows, 3, 5, size)),
        jax.random.normal(keys[1], (2, rows, 3, size, 5)),
    )


def test_blocks_come_back_as_they_went():
    tables = BlockTables(3, 24, 8)
    tables.grow(9)
    rows = dense(0, 3, 24)
    copies = tables.extend([0, 1, 2], [0, 0, 0], [24, 9, 16])
    pages, back = empty_pages(rows, 8, 9), jax.tree.map(jnp.zeros_like, dense(1, 4, 32))
    for moves in moves_of(copies):
        pages = jax.jit(page_out)(pages, rows, moves)
    for moves in moves_of(tables.contents([2, 0, 1])):
        back = jax.jit(page_in)(back, pages, moves)
    for at, (row, length) in enumerate([(2, 16), (0, 24), (1, 16)]):
        for old, new in zip(rows.keys, back.keys, strict=True):
            np.testing.assert_array_equal(new[at, ..., :length], old[row, ..., :length])
        for old, new in zip(rows.values, back.values, strict=True):
            np.testing.assert_array_equal(new[at, :, :length], old[row, :, :length])
            assert not np.any(new[at, :, 24:])


def test_new_positions_go_behind_each_rows_own():
    rows, new = dense(0, 3, 12), dense(1, 3, 4)
    lengths = jnp.asarray([8, 2, 5])
    at, order = jnp.arange(3), jnp.asarray([2, 0, 1])
    after = merge(rows, new, at, lengths, order, jnp.int32(2))
    for old, added, found in zip(rows.keys, new.keys, after.keys, strict=True):
        np.testing.assert_array_equal(found[1], old[1])
        for row, length in ((0, 8), (2, 5)):
            end = length + 4
            np.testing.assert_array_equal(found[row, ..., length:end], added[row])
            np.testing.assert_array_equal(
                found[row, ..., :length], old[row, ..., :length]
            )
    for added, found in zip(new.values, after.values, strict=True):
        for row, length in ((0, 8), (2, 5)):
            np.testing.assert_array_equal(
                found[row, :, length : length + 4], added[row]
            )


def test_sizes_are_few_and_hold_what_is_asked():
    assert all(room_of(n) >= n for n in range(1, 5000))
    assert len({room_of(n) for n in range(1, 8193)}) <= 14
    assert all(coarse_room_of(n) >= n for n in range(1, 5000))
    assert {coarse_room_of(n) for n in range(1, 8193)} < set(map(room_of, range(8193)))
    for most in (1, 24, 64, 128):
        for count in range(1, most + 1):
            assert count <= width_of(count, most, True) <= most
            assert width_of(count, most, False) == most


def test_a_common_past_is_loaded_as_it_grows_and_falls_back():
    """Against the rows' own blocks, after forks that leave more or less in common."""
    rows = dense(0, 4, 40)
    programs = Programs(tiny.target(), None)
    pool = Pool(programs, 4 + 2, 40, 8, rows, 2**20)
    common = Common(programs, pool, 2, 128)
    pool.store(rows, np.arange(4), np.zeros(4, int), np.asarray([40, 40, 20, 33]))

    def check(members, length):
        members = np.asarray(members)
        common.update([members], np.asarray([1]))
        starts = common.starts(members, np.ones_like(members))
        assert starts.min() == length
        alone = programs.make_zeros(rows, 1, 40)
        own = pool.load(alone, members[:1])
        for ours, theirs in zip(
            jax.tree.leaves(common.cache), jax.tree.leaves(own), strict=True
        ):
            axis, some = ours.shape.index(128), jnp.arange(length)
            np.testing.assert_array_equal(
                jnp.take(ours[1:2], some, axis), jnp.take(theirs, some, axis)
            )

    check([0, 1], 0)
    pool.tables.fork([1], [0])
    check([0, 1], 40)
    check([0, 1], 40)
    # A row goes on from another's first 16 positions, with the rest its own.
    pool.tables.cut([1], [16])
    pool.store(rows, np.asarray([1]), np.asarray([16]), np.asarray([40]))
    check([0, 1], 16)
    assert common.starts(np.asarray([2]), np.asarray([1])).tolist() == [0]
    check([2], 16)
    pool.tables.release([0, 1, 2, 3])
    common.release(np.asarray([0, 1]))
    assert pool.tables.num_used == 0


def test_slots_that_are_computed_hold_all_that_write():
    for most in (1, 6, 16, 64, 100):
        sizes = [num_slots_of(n, most, True) for n in range(1, most + 1)]
        assert all(n <= size <= most for n, size in enumerate(sizes, 1))
        assert sizes == sorted(sizes)
        assert len(set(sizes)) <= 7


def area(shape):
    return float(np.prod(shape))


def test_a_shape_is_compiled_once_it_would_have_saved_its_price():
    shapes = Shapes(area, 100.0, exact=1)
    assert shapes.choose((4, 8), (4, 64)) == (4, 64)
    for _ in range(2):
        assert shapes.choose((4, 48), (4, 64)) == (4, 64)
        shapes.record_waste((4, 48), (4, 64), turns=1)
    # Twice 4 * 16 has been wasted, which is more than the price.
    assert shapes.choose((4, 48), (4, 64)) == (4, 48)
    assert shapes.choose((4, 8), (4, 64)) == (4, 48)
    # Another room is another matter, whatever else is there.
    assert shapes.choose((2, 8), (2, 16)) == (2, 16)
    assert shapes.known == {(4, 64), (4, 48), (2, 16)}


@pytest.mark.parametrize("seed", range(3))
def test_shapes_take_at_most_twice_what_the_best_choice_in_hindsight_takes(seed):
    """Two sizes, a large one and its half: with the half from the start, or never."""
    rng = np.random.default_rng(seed)
    price, shapes, spent = 300.0, Shapes(area, 300.0), 0.0
    shapes.choose((16,), (16,))
    calls = rng.integers(1, 17, rng.integers(1, 120))
    for rows in calls:
        wanted = (8,) if rows <= 8 else (16,)
        before = len(shapes.known)
        used = shapes.choose(wanted, (16,))
        shapes.record_waste(wanted, used)
        spent += used[0] + price * (len(shapes.known) - before)
    needed = np.where(calls <= 8, 8, 16).sum()
    assert spent <= needed + 2 * min(price, 16 * len(calls) - needed) + 16


def test_the_number_of_shapes_is_bounded_but_for_what_nothing_else_can_do():
    shapes = Shapes(area, 0.0, max_shapes=3)
    for rows in (64, 48, 32, 16, 8, 4):
        shapes.choose((rows,), (64,))
    assert shapes.known == {(64,), (48,), (32,)}
    assert shapes.choose((4,), (4,)) == (32,)
    assert shapes.choose((65,), (128,)) == (65,)


@pytest.mark.long
def test_repeated_steps_need_fewer_programs_if_programs_are_dear(monkeypatch):
    """With a price, one program repeats the steps of any number of rows."""
    monkeypatch.setattr(sizes_module, "CHEAP", 0)
    sampler = samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True)
    runs, shapes = {}, []
    init = StepReader.__init__

    def watch(self, *arguments):
        init(self, *arguments)
        shapes.append(self.repeat_shapes)

    monkeypatch.setattr(StepReader, "__init__", watch)
    for price in (0.0, 1e30):
        monkeypatch.setattr(sizes_module, "COMPILATION", price)
        engine = test_engine.engine()
        results = engine.run(
            sampler,
            jax.random.key(0),
            test_engine.PROBLEMS,
            8,
            extract=test_engine.extract,
        )
        (known,) = (one.known for one in shapes)
        assert engine.report.model_programs["repeat"] == len(known)
        runs[price] = known, results
        shapes.clear()
    (cheap, left), (dear, right) = runs[0.0], runs[1e30]
    assert len(cheap) > 1
    # All rows, and room for the growth of later turns.
    width = engine.target.max_step_tokens
    assert dear == {(width, coarse_room_of(1), sizes_module.READS)}
    for a, b in zip(left, right, strict=True):
        test_engine.same(a, b)


class Scale(NamedTuple):
    """Constants of the engine as they are for models of some size."""

    CHEAP: float
    BURST: int = 2
    BLOCK: int = 16
    SHARED: float = 10**9
    SHARED_ROWS: int = 1
    COMPILATION: float = 0.0


SCALES = {
    "host the slower": Scale(CHEAP=10**18, BLOCK=1),
    "device the slower": Scale(CHEAP=0),
    "programs dear": Scale(CHEAP=0, COMPILATION=2.0e5),
    "long prompts": Scale(CHEAP=0, BLOCK=1, SHARED=0),
}


@pytest.mark.long
@pytest.mark.parametrize("name", ["particle_filter", "mcts"])
@pytest.mark.parametrize("scale", SCALES)
def test_samples_do_not_depend_on_pace_slots_or_bursts(monkeypatch, name, scale):
    """Queues, few slots that shrink, small blocks, and bursts cut inside steps."""
    sampler, key = getattr(samplers, name)(), jax.random.key(3)
    run = {"extract": test_engine.extract}
    lanes, starts, log_probs = [], [], collections.defaultdict(list)
    leave, write = Lane._leave, Writers.write

    def watch(self, places):
        lanes.append(self)
        for ended in leave(self, places):
            log_probs[ended.problem].append(ended.particles.log_prob)
            yield ended

    def note_starts(self, *arguments):
        starts.append(self.start[self.active].max())
        write(self, *arguments)

    monkeypatch.setattr(Lane, "_leave", watch)
    plain = test_engine.shared_engine().run(
        sampler, key, test_engine.PROBLEMS, 8, **run
    )
    monkeypatch.setattr(Writers, "write", note_starts)
    for constant, value in SCALES[scale]._asdict().items():
        monkeypatch.setattr(sizes_module, constant, value)
    monkeypatch.setattr(writers_module, "LAG", 3)
    engine = test_engine.shared_engine(16)
    other = engine.run(sampler, key, test_engine.PROBLEMS, 8, **run)
    for left, right in zip(plain, other, strict=True):
        test_engine.same(left, right)
    # Texts may be the same where attention is wrong: the models are tiny.
    for left, right in log_probs.values():
        np.testing.assert_allclose(left, right, atol=1e-4)
    report = engine.report
    spent = sum(result.slots.generated_tokens.sum() for result in other)
    assert report.computed >= report.useful == spent
    assert 0 < report.utilisation <= 1
    if scale == "long prompts":
        # The few rows of a search have more than the prompt in common.
        longest = max(len(p.prompt) for p in test_engine.PROBLEMS)
        assert max(starts) > (longest if name == "mcts" else 0)
    else:
        assert max(starts) == 0
    for lane in lanes:
        assert len(lane.writers.shapes.known) <= 12
        # Who leaves gives back every block.
        assert lane.store.policy.tables.num_used == 0
        assert [pool.tables.num_used for pool in lane.store.readers] == [0]


@pytest.mark.long
def test_slots_become_shorter_when_their_rows_do(monkeypatch):
    """Long rows leave, short ones enter; what a row's slot held of it may be cut."""
    rooms, write = [], Writers.write

    def note_room(self, *arguments):
        rooms.append(self.room)
        write(self, *arguments)

    policy, reward = tiny.models()
    target = tiny.target(max_tokens=72, max_steps=24)
    problems = test_engine.PROBLEMS

    def run(max_rows):
        engine = engine_module.Engine(
            target,
            policy,
            reward,
            encode=tiny.encode,
            decode=tiny.decode,
            max_rows=max_rows,
        )
        return engine.run(
            samplers.particle_filter(),
            jax.random.key(5),
            problems,
            8,
            extract=test_engine.extract,
        )

    plain = run(64)
    constants = Scale(CHEAP=0, BLOCK=1, COMPILATION=1.0e5)
    for constant, value in constants._asdict().items():
        monkeypatch.setattr(sizes_module, constant, value)
    monkeypatch.setattr(sizes_module, "IN_FLIGHT", 1)
    monkeypatch.setattr(Writers, "write", note_room)
    for left, right in zip(plain, run(8), strict=True):
        test_engine.same(left, right)
    longest = rooms.index(max(rooms))
    assert min(rooms[longest:]) < max(rooms)
