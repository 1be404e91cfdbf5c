"""No key twice: two turns of a sampler are traced with JAX's checker of key reuse.

A key that feeds two draws makes them copies of one another, and nothing in a sampler's
output need show it. Two turns in one program, so that a key kept in the state from one
turn to the next is seen as well. Keys that are derived in different ways and are equal
all the same are compared by value, in `tsi.bench.key_values`.
"""

import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from tsi.bench.key_values import equal_keys
from tsi.bench.robustness import Check
from tsi.bench.source_lines import own_files, shown
from tsi.explorer import Explorer, Reply
from tsi.sampler import Sampler


def key_check(
    sampler: Sampler | Explorer, num_particles: int, key: Key[Array, ""]
) -> Check:
    """Whether no key is used twice in two turns, with the line where one is."""

    def two_turns(key: Key[Array, ""]) -> Any:
        if isinstance(sampler, Explorer):
            return _explored(sampler, num_particles, key)
        return _asked_and_told(sampler, num_particles, key)

    try:
        with jax.debug_key_reuse(True):
            # The checker remembers which keys were spent, and this one is not ours.
            jax.block_until_ready(jax.jit(two_turns)(jax.random.clone(key)))
    except jax.errors.KeyReuseError as error:
        return Check("keys", False, f"a key is used twice, {_line_of(error, sampler)}")
    equal = equal_keys(sampler, num_particles, key)
    return Check("keys", not equal, equal or "no key is used twice")


def _asked_and_told(sampler: Sampler, num_particles: int, key: Any) -> Any:
    keys = jax.random.split(key, 5)
    state = sampler.init(keys[0], num_particles)
    told = jnp.linspace(-1.0, 1.0, num_particles)
    for turn in (1, 3):
        state, ancestors = sampler.ask(keys[turn], state)
        numbers = told[ancestors]
        state, _ = sampler.tell(
            keys[turn + 1], state, numbers, 0.0 * numbers, numbers > 2.0
        )
    return jax.tree.leaves(state.log_weights)


def _explored(explorer: Explorer, num_particles: int, key: Any) -> Any:
    keys = jax.random.split(key, 5)
    state = explorer.init(keys[0], num_particles, 4)
    for turn in (1, 3):
        state, request = explorer.ask(keys[turn], state)
        numbers = jnp.linspace(-1.0, 1.0, request.parents.shape[0])
        reply = Reply(numbers, 0.0 * numbers, numbers - 2.0, numbers > 2.0)
        state, _ = explorer.tell(keys[turn + 1], state, reply)
    return jax.tree.leaves(state.log_weights)


def _line_of(error: BaseException, sampler: Sampler | Explorer) -> str:
    """Where the error came from: the sampler's own line, and the draw it led to."""
    frames: list[traceback.FrameSummary] = []
    for source in (error, error.__cause__):
        if source is not None:
            frames += traceback.extract_tb(source.__traceback__)
    outside = [
        frame
        for frame in frames
        if {"jax", "jaxlib"}.isdisjoint(Path(frame.filename).parts)
        and Path(frame.filename).name != Path(__file__).name
    ]
    if not outside:
        return str(error).splitlines()[0]
    files = own_files(sampler)
    deepest = {frame.filename: frame for frame in outside}
    own = [frame for name, frame in deepest.items() if name in files]
    if not own:
        own = outside[-1:]
    lines = [f"{shown(frame.filename)}:{frame.lineno}: {frame.line}" for frame in own]
    where = f"at {', there at '.join(lines)}"
    if outside[-1] not in own:
        draw = f"{shown(outside[-1].filename)}:{outside[-1].lineno}"
        where += f" (the second draw: {draw})"
    return where
