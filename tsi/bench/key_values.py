"""Check by value that no key is used twice, since equal keys give equal draws.

`tsi.bench.key_discipline` follows keys through a program and finds a key that is used
twice. It does not find equal keys that are derived in two ways, such as `split(key)[1]`
and `fold_in(key, 1)`. This check therefore runs several turns and compares the data of
all keys that are used for draws and splits.
"""

import linecache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.explorer_batch import ORDINARY, World
from tsi.bench.key_uses import Place, record_keys
from tsi.bench.source_lines import own_files, relative_path
from tsi.explorer import Explorer
from tsi.sampler import Sampler

NUM_TURNS = 12
"""Of a sampler, and steps of an explorer's paths, since mistakes may begin late."""
MAX_TURNS = 24
"""Of an explorer."""


class Use(NamedTuple):
    """The use of a key: its turn, function and line, and whether it is a draw."""

    turn: int
    part: str
    place: Place
    draws: bool


class _KeyRecord:
    """All keys that were used, and the first two uses of the same key.

    Splitting a key twice makes equal keys, which are found when they are used.
    """

    def __init__(self) -> None:
        self.turn, self.part = 0, ""
        self.uses: dict[bytes, Use] = {}
        self.repeated: tuple[Use, Use] | None = None

    def add(self, place: Place, draws: bool, data: Any) -> None:
        use = Use(self.turn, self.part, place, draws)
        for row in np.asarray(data).reshape(-1, np.shape(data)[-1]):
            first = self.uses.get(row.tobytes())
            if first is None:
                self.uses[row.tobytes()] = use
            elif (draws or first.draws) and self.repeated is None:
                self.repeated = first, use


def equal_keys(
    sampler: Sampler | Explorer, num_particles: int, key: Key[Array, ""]
) -> str:
    """Two uses of equal keys, with their lines; empty if there are none."""
    record = _KeyRecord()
    if isinstance(sampler, Explorer):
        _run_explorer(sampler, num_particles, key, record)
    else:
        _run_sampler(sampler, num_particles, key, record)
    if record.repeated is None:
        return ""
    first, second = (_describe(use) for use in record.repeated)
    return f"equal keys are used twice: {first}, and {second}"


def _describe(use: Use) -> str:
    file, number = use.place
    line = linecache.getline(file, number).strip()
    place = f"{relative_path(file) if Path(file).exists() else file}:{number}"
    what = "a draw" if use.draws else "a split"
    return f"{what} in {use.part} of turn {use.turn} at {place}: {line}"


class _RecordedFunctions:
    """A sampler's functions, each compiled with its uses of keys recorded."""

    def __init__(self, sampler: Any, record: _KeyRecord, *numbers: int) -> None:
        files = own_files(sampler)
        self.record = record
        self.functions = {
            "init": record_keys(
                lambda key: sampler.init(key, *numbers), files, record.add
            ),
            "ask": record_keys(sampler.ask, files, record.add),
            "tell": record_keys(sampler.tell, files, record.add),
        }

    def __call__(self, part: str, turn: int, *arguments: Any) -> Any:
        self.record.turn, self.record.part = turn, part
        result = jax.block_until_ready(self.functions[part](*arguments))
        jax.effects_barrier()
        return result


def _run_sampler(
    sampler: Sampler, num_particles: int, key: Key[Array, ""], record: _KeyRecord
) -> None:
    call = _RecordedFunctions(sampler, record, num_particles)
    keys = jax.random.split(key, 2 * NUM_TURNS + 1)
    state = call("init", 0, keys[0])
    numbers = np.linspace(-1.0, 1.0, num_particles, dtype=np.float32)
    zeros = np.zeros(num_particles, np.float32)
    for turn in range(NUM_TURNS):
        state, _ = call("ask", turn, keys[2 * turn + 1], state)
        # Flat weights first and steep ones later, so that adaptive schedules resample
        # at some steps only.
        numbers_of_turn = (
            np.roll(numbers, turn) * 4.0 ** (turn % 4),
            zeros,
            numbers > 0.5 + 0.5 / (1 + turn),
        )
        state, _ = call("tell", turn, keys[2 * turn + 2], state, *numbers_of_turn)


def _run_explorer(
    explorer: Explorer, num_particles: int, key: Key[Array, ""], record: _KeyRecord
) -> None:
    call = _RecordedFunctions(explorer, record, num_particles, NUM_TURNS)
    plan = explorer.plan(num_particles, NUM_TURNS)
    world = World(plan, ORDINARY, 0, NUM_TURNS)
    keys = jax.random.split(key, 2 * MAX_TURNS + 1)
    state = call("init", 0, keys[0])
    for turn in range(min(plan.turns, MAX_TURNS)):
        state, request = call("ask", turn, keys[2 * turn + 1], state)
        reply = world.reply(request)
        state, _ = call("tell", turn, keys[2 * turn + 2], state, reply)
        if bool(state.done):
            break
