"""No key twice, by value: two draws from equal keys are copies of one another.

`tsi.bench.key_discipline` follows keys through a program and sees one that is used
twice. It does not see that two ways to derive a key lead to the same one, as
`split(key)[1]` and `fold_in(key, 1)` do. So several turns are run here, and the data of
all keys are compared that numbers are drawn from or that are split.
"""

import linecache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.explorer_batch import ORDINARY, World
from tsi.bench.source_lines import own_files, shown
from tsi.bench.watched_draws import Place, watch
from tsi.explorer import Explorer
from tsi.sampler import Sampler

MAX_STEPS, MAX_TURNS = 4, 24


class Use(NamedTuple):
    """A key that was spent: when, by which line, and whether on a draw or a split."""

    turn: int
    part: str
    place: Place
    draws: bool


class _Book:
    """Every key that was spent, and the first two uses of one key.

    To split a key twice is to make equal keys, which is seen when they are drawn from.
    """

    def __init__(self) -> None:
        self.turn, self.part = 0, ""
        self.known: dict[bytes, Use] = {}
        self.twice: tuple[Use, Use] | None = None

    def note(self, place: Place, draws: bool, data: Any) -> None:
        use = Use(self.turn, self.part, place, draws)
        for row in np.asarray(data).reshape(-1, np.shape(data)[-1]):
            first = self.known.get(row.tobytes())
            if first is None:
                self.known[row.tobytes()] = use
            elif (draws or first.draws) and self.twice is None:
                self.twice = first, use


def equal_keys(
    sampler: Sampler | Explorer, num_particles: int, key: Key[Array, ""]
) -> str:
    """Two uses of equal keys, with their lines; empty if there are none."""
    book = _Book()
    if isinstance(sampler, Explorer):
        _explore(sampler, num_particles, key, book)
    else:
        _ask_and_tell(sampler, num_particles, key, book)
    if book.twice is None:
        return ""
    first, second = (_describe(use) for use in book.twice)
    return f"equal keys are used twice: {first}, and {second}"


def _describe(use: Use) -> str:
    file, number = use.place
    line = linecache.getline(file, number).strip()
    place = f"{shown(file) if Path(file).exists() else file}:{number}"
    what = "a draw" if use.draws else "a split"
    return f"{what} in {use.part} of turn {use.turn} at {place}: {line}"


class _Watched:
    """A sampler's functions, each compiled with its draws written into the book."""

    def __init__(self, sampler: Any, book: _Book, *numbers: int) -> None:
        files = own_files(sampler)
        self.book = book
        self.functions = {
            "init": watch(lambda key: sampler.init(key, *numbers), files, book.note),
            "ask": watch(sampler.ask, files, book.note),
            "tell": watch(sampler.tell, files, book.note),
        }

    def __call__(self, part: str, turn: int, *arguments: Any) -> Any:
        self.book.turn, self.book.part = turn, part
        result = jax.block_until_ready(self.functions[part](*arguments))
        jax.effects_barrier()
        return result


def _ask_and_tell(
    sampler: Sampler, num_particles: int, key: Key[Array, ""], book: _Book
) -> None:
    call = _Watched(sampler, book, num_particles)
    keys = jax.random.split(key, 2 * MAX_STEPS + 1)
    state = call("init", 0, keys[0])
    numbers = np.linspace(-1.0, 1.0, num_particles, dtype=np.float32)
    nothing = np.zeros(num_particles, np.float32)
    for turn in range(MAX_STEPS):
        state, _ = call("ask", turn, keys[2 * turn + 1], state)
        # Flat weights first, steep ones later: schedules say no and yes.
        told = (
            np.roll(numbers, turn) * 4.0**turn,
            nothing,
            numbers > 0.5 + 0.5 / (1 + turn),
        )
        state, _ = call("tell", turn, keys[2 * turn + 2], state, *told)


def _explore(
    explorer: Explorer, num_particles: int, key: Key[Array, ""], book: _Book
) -> None:
    call = _Watched(explorer, book, num_particles, MAX_STEPS)
    plan = explorer.plan(num_particles, MAX_STEPS)
    world = World(plan, ORDINARY, 0)
    keys = jax.random.split(key, 2 * MAX_TURNS + 1)
    state = call("init", 0, keys[0])
    for turn in range(min(plan.turns, MAX_TURNS)):
        state, request = call("ask", turn, keys[2 * turn + 1], state)
        reply = world.reply(request)
        state, _ = call("tell", turn, keys[2 * turn + 2], state, reply)
        if bool(state.done):
            break
