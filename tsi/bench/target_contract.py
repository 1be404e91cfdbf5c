"""Checks of every target: shapes, independence of particles, finished particles."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.robustness import Check
from tsi.bench.target_walk import Outputs, Walk, Walker, agree, first_row, rows_of


def _shapes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def shapes_check(walker: Walker, key: Key[Array, ""], size: int) -> Check:
    """Whether steps keep shapes and dtypes, and give one number per particle."""
    target, params = walker.target, walker.params
    before = walker.start(key, size)
    places = jnp.arange(size, dtype=jnp.int32)
    changes = {
        "propose": lambda p: target.propose(key, 0, p, params)[0],
        "gather": lambda p: target.gather(p, places),
    }
    if walker.has("truncate"):
        changes["truncate"] = lambda p: target.truncate(p, places, params)
    if not walker.replay_refusal:
        changes["replay"] = lambda p: target.replay(0, p, p, params)[0]
    for name, change in changes.items():
        after = jax.eval_shape(change, before)
        if _shapes(before) != _shapes(after):
            differ = [
                f"{jax.tree_util.keystr(path)} from {a.dtype}{list(a.shape)} to "
                f"{b.dtype}{list(b.shape)}"
                for (path, a), b in zip(
                    jax.tree_util.tree_leaves_with_path(before),
                    jax.tree.leaves(after),
                    strict=False,
                )
                if (a.shape, a.dtype) != (b.shape, b.dtype)
            ]
            what = "; ".join(differ) or "the structure of the particles"
            return Check("shapes", False, f"{name} changes {what}")
    outputs = jax.eval_shape(lambda p: walker.eager_step(key, 0, p)[1], before)
    for name, numbers in outputs._asdict().items():
        kind = "b" if name == "finished" else "f"
        if numbers.shape != (size,) or np.dtype(numbers.dtype).kind not in (kind, "V"):
            expected = "bool" if kind == "b" else "floating-point"
            detail = f"{name} must be {expected} [{size}], and are {numbers.dtype}"
            return Check("shapes", False, f"{detail}{list(numbers.shape)}")
    return Check("shapes", True, "the same before and after each method")


def numbers_check(walk: Walk) -> Check:
    """Whether no particle that took a step has a number that is NaN or +inf."""
    before = np.zeros(len(walk.outputs[0].finished), bool)
    for t, outputs in enumerate(walk.outputs):
        for name in ("log_corrections", "log_potentials"):
            values = np.asarray(getattr(outputs, name), np.float64)[~before]
            if np.isnan(values).any() or (values == np.inf).any():
                invalid_value = values[np.isnan(values) | (values == np.inf)][0]
                detail = f"{name} of step {t} are {invalid_value} for some particle"
                return Check("numbers", False, detail)
        before = np.asarray(outputs.finished)
    return Check("numbers", True, "log potentials and corrections are numbers")


def finished_check(walker: Walker, walk: Walk, key: Key[Array, ""], size: int) -> Check:
    """Whether no particle starts finished, and finished ones are not changed."""
    target = walker.target
    if np.asarray(target.finished(walk.particles[0])).any():
        return Check(
            "finished", False, "particles are finished before their first step"
        )
    for t, (particles, outputs) in enumerate(
        zip(walk.particles[1:], walk.outputs, strict=True)
    ):
        finished_rows = np.flatnonzero(outputs.finished)
        if not len(finished_rows):
            continue
        after, next_outputs = walker.step(jax.random.fold_in(key, t), t + 1, particles)
        if not np.asarray(next_outputs.finished)[finished_rows].all():
            detail = (
                f"a particle that finished in step {t} is unfinished after the next"
            )
            return Check("finished", False, detail)
        for name in ("log_probs", "log_proposals"):
            if not agree(
                getattr(outputs, name)[finished_rows],
                getattr(next_outputs, name)[finished_rows],
            ):
                detail = f"{name} of a finished particle change with the next step"
                return Check("finished", False, detail)
        if walker.has("put"):
            # The particle has caches, whose masked slots are arbitrary.
            continue
        pairs = zip(
            rows_of(particles, size, finished_rows),
            rows_of(after, size, finished_rows),
            strict=True,
        )
        if not all(agree(a, b, 0.0) for a, b in pairs):
            detail = "a finished particle is changed by the next step"
            return Check("finished", False, detail)
    if not np.asarray(walk.outputs[-1].finished).any():
        return Check("finished", None, "no particle finished within the walk")
    return Check("finished", True, "finished particles stay finished and unchanged")


def _first_difference(outputs: Outputs, other: Outputs, rows: Any) -> str:
    """The first field in which particles `rows` differ; empty if there is none."""
    for name, values in outputs._asdict().items():
        if not agree(np.asarray(values)[rows], np.asarray(getattr(other, name))[rows]):
            return name
    return ""


def own_numbers_check(
    walker: Walker, walk: Walk, key: Key[Array, ""], size: int
) -> Check:
    """Whether the draws of particle i do not depend on the number of particles."""
    half = size // 2
    small_walk = walker.walk(key, half)
    half_rows = np.arange(half)
    for t, (outputs, other) in enumerate(
        zip(walk.outputs, small_walk.outputs, strict=False)
    ):
        rows = half_rows
        if t:
            rows = half_rows[~np.asarray(walk.outputs[t - 1].finished)[:half]]
        name = _first_difference(outputs, other, rows)
        if name:
            detail = (
                f"{name} of step {t} depend on whether there are {half} particles or "
                f"{size}; draw the numbers of particle i from fold_in(key, i)"
            )
            return Check("own numbers", False, detail)
    for t, outputs in enumerate(walk.outputs):
        before = walk.particles[t]
        step_mask = np.ones(size, bool)
        if t:
            step_mask = ~np.asarray(walk.outputs[t - 1].finished)
        for place in np.flatnonzero(step_mask)[:2]:
            # All particles are copies of this one, which must continue as before.
            copies = walker.gather(before, jnp.full(size, place, jnp.int32))
            _, other = walker.step(walker.key_of(key, t), t, copies)
            name = _first_difference(outputs, jax.device_get(other), [place])
            if name:
                detail = (
                    f"{name} of particle {place} in step {t} depend on the "
                    "other particles"
                )
                return Check("own numbers", False, detail)
    return Check("own numbers", True, "particle i draws with its own key")


def gather_check(walker: Walker, walk: Walk, size: int) -> Check:
    """Whether `gather` moves all parts of a particle."""
    backwards = jnp.arange(size - 1, -1, -1, dtype=jnp.int32)
    for t, outputs in enumerate(walk.outputs):
        reversed_particles = walker.gather(walk.particles[t + 1], backwards)
        moved_outputs = walker.evaluate(t, reversed_particles, jnp.zeros(size))
        expected_outputs = jax.tree.map(
            lambda values: np.asarray(values)[::-1], outputs
        )
        step_mask = np.ones(size, bool)
        if t:
            step_mask = ~np.asarray(walk.outputs[t - 1].finished)[::-1]
        expected_outputs = expected_outputs._replace(log_corrections=np.zeros(size))
        name = _first_difference(
            expected_outputs, jax.device_get(moved_outputs), step_mask
        )
        if name:
            row = first_row(
                getattr(expected_outputs, name), getattr(moved_outputs, name)
            )
            detail = f"{name} after step {t} are not particle {size - 1 - row}'s"
            return Check("gather", False, f"{detail} once it is at index {row}")
    return Check("gather", True, "a particle is the same at every index")


def rows_check(walker: Walker, walk: Walk, key: Key[Array, ""], size: int) -> Check:
    """Whether t may be one number per row."""
    step = jax.jit(walker.eager_step)
    for t, outputs in enumerate(walk.outputs):
        step_numbers = jnp.full(size, t, jnp.int32)
        _, other = step(walker.key_of(key, t), step_numbers, walk.particles[t])
        step_mask = np.ones(size, bool)
        if t:
            step_mask = ~np.asarray(walk.outputs[t - 1].finished)
        name = _first_difference(outputs, jax.device_get(other), step_mask)
        if name:
            detail = f"{name} of step {t} differ if t is given per row"
            return Check("rows", False, detail)
    return Check("rows", True, "t may be one number or one per row")


def compiled_check(walker: Walker, walk: Walk, key: Key[Array, ""], size: int) -> Check:
    """Whether jit and vmap over problems do not change a step."""
    key_first = walker.key_of(key, 0)
    before, outputs = walk.particles[0], walk.outputs[0]
    all_rows = np.arange(size)
    _, eager_outputs = walker.eager_step(key_first, 0, before)
    name = _first_difference(outputs, jax.device_get(eager_outputs), all_rows)
    if name:
        return Check("compiled", False, f"jit changes {name} of the first step")
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), before)
    keys = jnp.stack([key_first, jax.random.fold_in(key_first, 1)])
    _, mapped_outputs = jax.jit(jax.vmap(walker.eager_step, in_axes=(0, None, 0)))(
        keys, 0, copies
    )
    expected_outputs = jax.tree.map(
        lambda values: np.asarray(values)[0], mapped_outputs
    )
    name = _first_difference(outputs, expected_outputs, all_rows)
    if name:
        return Check("compiled", False, f"vmap changes {name} of the first step")
    return Check("compiled", True, "jit and vmap change nothing")
