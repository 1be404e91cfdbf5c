"""Explorers in a batch: the results of a problem do not depend on the other problems.

Four problems with their own keys run together under vmap, and each of them runs alone.
Two have ordinary replies, one has replies of NaN, and one is finished after its first
step, so that the others continue in a batch with a problem that is done. Replies are
synthetic, but their finished flags are consistent with the requests.

`init`, `ask` and `tell` are compiled separately, as in the engine, where only the state
is passed between them. A value that is passed in a closure would be lost in the engine;
this check finds it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.robustness import Check, states_agree
from tsi.bench.source_lines import places_of_functions
from tsi.explorer import Explorer, Plan, Reply, Request

ORDINARY, ALL_NAN, SHORT = "ordinary", "NaN", "short"
KINDS = (ORDINARY, ALL_NAN, SHORT, ORDINARY)
MAX_STEPS = 4
MAX_TURNS = 24


def batched_explorer_check(
    explorer: Explorer, num_particles: int, key: Key[Array, ""]
) -> Check:
    """Whether states and requests in a batch equal those of each problem alone."""
    keys = jax.random.split(key, len(KINDS))
    plan = explorer.plan(num_particles, MAX_STEPS)
    single_programs, batched_programs = (
        _programs(explorer, num_particles, transform)
        for transform in (jax.jit, _jit_vmap)
    )
    worlds = [World(plan, kind, seed) for seed, kind in enumerate(KINDS)]

    def has_changed(problem: int, by_itself: Any, in_batch: Any) -> bool:
        state = jax.tree.map(lambda leaf: leaf[problem], in_batch)
        return not states_agree(by_itself, state, 1e-5, equal_nan=True)

    def violation(problem: int, turn: int, part: str) -> Check:
        detail = (
            f"in a batch of {len(KINDS)}, {part} of turn {turn} gives problem "
            f"{problem} other values than its own run"
        )
        return Check("batched", False, detail, places_of_functions(explorer, part))

    states = [single_programs[0](k) for k in keys]
    batched_states = batched_programs[0](keys)
    for problem in range(len(KINDS)):
        if has_changed(problem, states[problem], batched_states):
            return violation(problem, 0, "init")
    running = [True] * len(KINDS)
    for turn in range(min(plan.turns, MAX_TURNS)):
        now = jax.vmap(lambda k, n=turn: jax.random.fold_in(k, n))(keys)
        asks = [single_programs[1](k, s) for k, s in zip(now, states, strict=True)]
        batched_asks = batched_programs[1](now, batched_states)
        for problem in np.flatnonzero(running).tolist():
            if has_changed(problem, asks[problem], batched_asks):
                return violation(problem, turn, "ask")
        replies = [
            world.reply(request)
            for world, (_, request) in zip(worlds, asks, strict=True)
        ]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *replies)
        states_after = [
            single_programs[2](k, state, reply, is_running)
            for k, (state, _), reply, is_running in zip(
                now, asks, replies, np.asarray(running), strict=True
            )
        ]
        batched_states = batched_programs[2](
            now, batched_asks[0], stacked, np.asarray(running)
        )
        for problem in np.flatnonzero(running).tolist():
            if has_changed(problem, states_after[problem], batched_states):
                return violation(problem, turn, "tell")
        states = states_after
        running = [bool(a and not s.done) for a, s in zip(running, states, strict=True)]
        if not any(running):
            break
    return Check("batched", True, "each problem as in its own run")


def _jit_vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(jax.vmap(function))


def _programs(
    explorer: Explorer, num_particles: int, transform: Callable[..., Any]
) -> tuple[Callable[..., Any], ...]:
    def init(key: Any) -> Any:
        return explorer.init(key, num_particles, MAX_STEPS)

    def ask(key: Any, state: Any) -> Any:
        return explorer.ask(jax.random.fold_in(key, 0), state)

    def tell(key: Any, state: Any, reply: Reply, running: Any) -> Any:
        states_after, _ = explorer.tell(jax.random.fold_in(key, 1), state, reply)
        # A problem that is done is not changed, as in the engine.
        return jax.tree.map(lambda a, b: jnp.where(running, a, b), states_after, state)

    return transform(init), transform(ask), transform(tell)


class World:
    """Synthetic replies of one problem, and which of its prefixes have finished."""

    def __init__(
        self, plan: Plan, kind: str, seed: int, max_steps: int = MAX_STEPS
    ) -> None:
        self.kind, self.max_steps = kind, max_steps
        self.random = np.random.default_rng(seed)
        self.depths = np.zeros(plan.stored, np.int32)
        self.ended = np.zeros(plan.stored, bool)

    def reply(self, request: Request) -> Reply:
        """Reply to a request, and store the children."""
        # Indices out of range are clipped as in JAX; another check reports them.
        last = len(self.depths) - 1
        parents = np.clip(np.asarray(request.parents), 0, last)
        slots = np.asarray(request.slots)
        depths, ended = self.depths[parents], self.ended[parents]
        if request.depths is not None:
            cuts = np.asarray(request.depths)
            ended = ended & (cuts >= depths)
            depths = np.minimum(depths, cuts)
        takes_step = np.asarray(request.extend) & ~ended
        depths = depths + takes_step
        size = len(parents)
        ends = self.random.random(size) < 0.1
        if request.sources is not None:
            sources = np.minimum(np.asarray(request.sources), last)
            is_whole = self.ended[sources] & (depths >= self.depths[sources])
            ends = np.where(sources >= 0, is_whole, ends)
        if self.kind == SHORT:
            ends = np.ones(size, bool)
        ended = ended | (takes_step & (ends | (depths >= self.max_steps)))
        is_stored = (slots >= 0) & (slots <= last)
        self.depths[slots[is_stored]], self.ended[slots[is_stored]] = (
            depths[is_stored],
            ended[is_stored],
        )

        numbers = self.random.normal(0.0, [[1.5], [0.3], [0.5]], (3, size))
        numbers[0, self.random.random(size) < 0.1] = -np.inf
        if self.kind == ALL_NAN:
            numbers[0] = np.nan
        # The numbers of rows that took no step are arbitrary.
        numbers = np.where(takes_step, numbers, np.nan).astype(np.float32)
        return Reply(numbers[0], numbers[1], -np.abs(numbers[2]), ended)
