"""Prompts are read, and problems get their first rows."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tsi.engine.paging.pages import Dense, layers_of
from tsi.engine.programs.rows import Stored, parts_of
from tsi.models.attention import Segment
from tsi.reasoning.particles import Particles, ReasoningParams, without_caches
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.reward import Prompts

Prefill = tuple[Dense, Particles, list[Array], list[Segment], list[Dense]]
"""The policy's caches of some prompts, the first rows of their problems, and the parts
of the reward's state: small leaves, caches of prompts, and the shapes of growing ones.
"""


def prefill(
    target: ReasoningTarget, params: ReasoningParams, block: int
) -> tuple[Prefill, Any]:
    """Read E prompts.

    Args:
        target: policy and reward.
        params: weights, prompts and temperatures.
        block: positions of a block; caches are padded to a whole number of blocks.

    Returns:
        The results, and the structure of the reward's state (see `rows.parts_of`).
    """
    particles = target.init(None, 1, params)
    rows, shared, caches, structure = parts_of(particles.reward_state)
    num_padded, none = (0, -particles.prompt.mask.shape[1] % block), (0, 0)
    prompt = layers_of(
        jnp.pad(particles.prompt.keys, [none] * 4 + [num_padded]),
        jnp.pad(particles.prompt.values, [none] * 3 + [num_padded, none]),
    )
    like = [
        layers_of(x.segment.keys[..., :0], x.segment.values[..., :0, :]) for x in caches
    ]
    return (prompt, without_caches(particles), rows, shared, like), structure


def enter(
    stored: Stored,
    fresh: tuple[Prompts, Particles, list[Array], list[Segment]],
    rows: Int[Array, " n"],
    origin: Int[Array, " n"],
    problems: Int[Array, " E"],
) -> Stored:
    """Give problems their first rows.

    Args:
        stored: of P problems.
        fresh: prompts, and the results of `prefill`.
        rows: rows that are written; indices out of range are dropped.
        origin: index of the fresh row that is copied to each.
        problems: place of each fresh problem.
    """
    prompts, particles, reward, shared = fresh

    def write(old: Array, new: Array) -> Array:
        return old.at[rows].set(new[origin], mode="drop")

    def by_problem(old: Array, new: Array) -> Array:
        return old.at[problems].set(new, mode="drop")

    def segment(old: Any, new: Any) -> Any:
        return old._replace(
            keys=old.keys.at[:, problems].set(new.keys, mode="drop"),
            values=old.values.at[:, problems].set(new.values, mode="drop"),
            positions=by_problem(old.positions, new.positions),
            mask=by_problem(old.mask, new.mask),
        )

    return stored._replace(
        rows=jax.tree.map(write, stored.rows, particles),
        reward=[write(a, b) for a, b in zip(stored.reward, reward, strict=True)],
        cost=jax.tree.map(lambda old: old.at[rows].set(0, mode="drop"), stored.cost),
        shared=[segment(a, b) for a, b in zip(stored.shared, shared, strict=True)],
        prompts=jax.tree.map(by_problem, stored.prompts, prompts),
    )
