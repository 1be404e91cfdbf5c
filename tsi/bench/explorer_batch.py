"""Explorers in a batch: each problem gets what it gets alone, whoever is beside it.

Four problems with keys of their own run side by side under vmap, and each of them
alone. Two have ordinary replies, the replies of one are NaN, and one is finished after
its first step, so that the others go on beside a problem that is done. Replies are made
up, because a reply may be anything; which prefixes have finished is kept true to what
the explorer asked for.

`init`, `ask` and `tell` are compiled apart, as nothing but the state goes from one to
the next in the engine: what is handed on in a closure is lost there, and seen here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.robustness import Check, same
from tsi.bench.source_lines import blamed
from tsi.explorer import Explorer, Plan, Reply, Request

ORDINARY, ALL_NAN, SHORT = "ordinary", "NaN", "short"
KINDS = (ORDINARY, ALL_NAN, SHORT, ORDINARY)
MAX_STEPS = 4
MAX_TURNS = 24


def batched_explorer_check(
    explorer: Explorer, num_particles: int, key: Key[Array, ""]
) -> Check:
    """Whether states and requests of a batch are those of each problem alone."""
    keys = jax.random.split(key, len(KINDS))
    plan = explorer.plan(num_particles, MAX_STEPS)
    alone, batched = (
        _programs(explorer, num_particles, lift) for lift in (jax.jit, _lifted)
    )
    worlds = [World(plan, kind, seed) for seed, kind in enumerate(KINDS)]

    def unequal(problem: int, mine: Any, theirs: Any) -> bool:
        own = jax.tree.map(lambda leaf: leaf[problem], theirs)
        return not same(mine, own, 1e-5, equal_nan=True)

    def broken(problem: int, turn: int, part: str) -> Check:
        detail = (
            f"in a batch of {len(KINDS)}, {part} of turn {turn} gives problem "
            f"{problem} something else than alone"
        )
        return Check("batched", False, detail, blamed(explorer, part))

    states = [alone[0](k) for k in keys]
    together = batched[0](keys)
    for problem in range(len(KINDS)):
        if unequal(problem, states[problem], together):
            return broken(problem, 0, "init")
    live = [True] * len(KINDS)
    for turn in range(min(plan.turns, MAX_TURNS)):
        now = jax.vmap(lambda k, n=turn: jax.random.fold_in(k, n))(keys)
        asked = [alone[1](k, s) for k, s in zip(now, states, strict=True)]
        asked_together = batched[1](now, together)
        for problem in np.flatnonzero(live).tolist():
            if unequal(problem, asked[problem], asked_together):
                return broken(problem, turn, "ask")
        replies = [
            world.reply(request)
            for world, (_, request) in zip(worlds, asked, strict=True)
        ]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *replies)
        told = [
            alone[2](k, state, reply, going)
            for k, (state, _), reply, going in zip(
                now, asked, replies, np.asarray(live), strict=True
            )
        ]
        together = batched[2](now, asked_together[0], stacked, np.asarray(live))
        for problem in np.flatnonzero(live).tolist():
            if unequal(problem, told[problem], together):
                return broken(problem, turn, "tell")
        states = told
        live = [bool(a and not s.done) for a, s in zip(live, states, strict=True)]
        if not any(live):
            break
    return Check("batched", True, "each problem as if alone")


def _lifted(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(jax.vmap(function))


def _programs(
    explorer: Explorer, num_particles: int, lift: Callable[..., Any]
) -> tuple[Callable[..., Any], ...]:
    def init(key: Any) -> Any:
        return explorer.init(key, num_particles, MAX_STEPS)

    def ask(key: Any, state: Any) -> Any:
        return explorer.ask(jax.random.fold_in(key, 0), state)

    def tell(key: Any, state: Any, reply: Reply, live: Any) -> Any:
        told, _ = explorer.tell(jax.random.fold_in(key, 1), state, reply)
        # A problem that is done stays as it was, as in the engine.
        return jax.tree.map(lambda a, b: jnp.where(live, a, b), told, state)

    return lift(init), lift(ask), lift(tell)


class World:
    """Made-up replies of one problem, and which of its prefixes have finished."""

    def __init__(self, plan: Plan, kind: str, seed: int) -> None:
        self.kind = kind
        self.random = np.random.default_rng(seed)
        self.depths = np.zeros(plan.stored, np.int32)
        self.ended = np.zeros(plan.stored, bool)

    def reply(self, request: Request) -> Reply:
        """What is told of a request; the children are kept."""
        # What is out of range counts as in JAX; that it is, another check says.
        last = len(self.depths) - 1
        parents = np.clip(np.asarray(request.parents), 0, last)
        slots = np.asarray(request.slots)
        depths, ended = self.depths[parents], self.ended[parents]
        if request.depths is not None:
            cuts = np.asarray(request.depths)
            ended = ended & (cuts >= depths)
            depths = np.minimum(depths, cuts)
        took = np.asarray(request.extend) & ~ended
        depths = depths + took
        size = len(parents)
        ends = self.random.random(size) < 0.1
        if request.sources is not None:
            sources = np.minimum(np.asarray(request.sources), last)
            whole = self.ended[sources] & (depths >= self.depths[sources])
            ends = np.where(sources >= 0, whole, ends)
        if self.kind == SHORT:
            ends = np.ones(size, bool)
        ended = ended | (took & (ends | (depths >= MAX_STEPS)))
        kept = (slots >= 0) & (slots <= last)
        self.depths[slots[kept]], self.ended[slots[kept]] = depths[kept], ended[kept]

        numbers = self.random.normal(0.0, [[1.5], [0.3], [0.5]], (3, size))
        numbers[0, self.random.random(size) < 0.1] = -np.inf
        if self.kind == ALL_NAN:
            numbers[0] = np.nan
        # Of rows that took no step a target says what it likes.
        numbers = np.where(took, numbers, np.nan).astype(np.float32)
        return Reply(numbers[0], numbers[1], -np.abs(numbers[2]), ended)
