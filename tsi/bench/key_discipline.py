"""Check that no key is used twice, by JAX's checker of key reuse.

Two draws from the same key are equal, but a sampler's output may not show this. Two
turns are traced in one program, so that a key that is kept in the state between turns
is found as well. `tsi.bench.key_values` compares keys by value, and so finds equal keys
that are derived in different ways.
"""

import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from tsi.bench.key_values import equal_keys
from tsi.bench.robustness import Check
from tsi.bench.source_lines import own_files, relative_path
from tsi.explorer import Explorer, Reply
from tsi.sampler import Sampler


def key_check(
    sampler: Sampler | Explorer, num_particles: int, key: Key[Array, ""]
) -> Check:
    """Whether no key is used twice in two turns, with the line where one is."""

    def two_turns(key: Key[Array, ""]) -> Any:
        if isinstance(sampler, Explorer):
            return _run_explorer(sampler, num_particles, key)
        return _run_sampler(sampler, num_particles, key)

    try:
        with jax.debug_key_reuse(True):
            # Copy the key: the checker marks keys as used, and this one belongs to the
            # caller.
            jax.block_until_ready(jax.jit(two_turns)(jax.random.clone(key)))
    except jax.errors.KeyReuseError as error:
        return Check("keys", False, f"a key is used twice, {_line_of(error, sampler)}")
    equal = equal_keys(sampler, num_particles, key)
    return Check("keys", not equal, equal or "no key is used twice")


def _run_sampler(sampler: Sampler, num_particles: int, key: Any) -> Any:
    keys = jax.random.split(key, 5)
    state = sampler.init(keys[0], num_particles)
    scores = jnp.linspace(-1.0, 1.0, num_particles)
    for turn in (1, 3):
        state, ancestors = sampler.ask(keys[turn], state)
        numbers = scores[ancestors]
        state, _ = sampler.tell(
            keys[turn + 1], state, numbers, 0.0 * numbers, numbers > 2.0
        )
    return jax.tree.leaves(state.log_weights)


def _run_explorer(explorer: Explorer, num_particles: int, key: Any) -> Any:
    keys = jax.random.split(key, 5)
    state = explorer.init(keys[0], num_particles, 4)
    for turn in (1, 3):
        state, request = explorer.ask(keys[turn], state)
        numbers = jnp.linspace(-1.0, 1.0, request.parents.shape[0])
        reply = Reply(numbers, 0.0 * numbers, numbers - 2.0, numbers > 2.0)
        state, _ = explorer.tell(keys[turn + 1], state, reply)
    return jax.tree.leaves(state.log_weights)


def _line_of(error: BaseException, sampler: Sampler | Explorer) -> str:
    """The sampler's line that caused the error, and the draw at which it was found."""
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
    own_frames = [frame for name, frame in deepest.items() if name in files]
    if not own_frames:
        own_frames = outside[-1:]
    lines = [
        f"{relative_path(frame.filename)}:{frame.lineno}: {frame.line}"
        for frame in own_frames
    ]
    where = f"at {', there at '.join(lines)}"
    if outside[-1] not in own_frames:
        draw = f"{relative_path(outside[-1].filename)}:{outside[-1].lineno}"
        where += f" (the second draw: {draw})"
    return where
