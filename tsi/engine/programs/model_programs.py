"""The compiled programs of a lane, which do not depend on the sampler.

Models run on dense rows of few shapes: R slots of S positions to draw tokens, A rows to
read steps. Separate programs copy between dense rows and blocks, so that a model is not
compiled again when a pool grows.

The computation of each program is defined in the other modules of this folder:
:mod:`tsi.engine.programs.prompt_programs`, `prefix_programs`, `step_programs`, `slots`
and `row_replies`. This module binds them to one target and compiles them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from tsi.engine.meters.clock import Timed
from tsi.engine.paging.page_programs import PagePrograms
from tsi.engine.paging.pages import Dense, resize
from tsi.engine.programs.prefix_programs import arrange, cache_positions, keep
from tsi.engine.programs.prompt_programs import Prefill, enter, prefill
from tsi.engine.programs.row_replies import score, solutions_of
from tsi.engine.programs.rows import Stored
from tsi.engine.programs.slots import (
    BurstStatus,
    Chosen,
    Slots,
    append_burst,
    burst,
    empty_slots,
)
from tsi.engine.programs.step_programs import admit, end_step, repeat
from tsi.engine.programs.text_programs import TextPrograms
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.aggregated_on_host import AggregatedOnHost
from tsi.rewards.aggregation import Aggregated
from tsi.rewards.host_reward import DeferredReward, HostReward
from tsi.rewards.reward import NoReward
from tsi.rewards.text_reader import TextReader

PARTS = {
    "prefill": "prefill",
    "enter": "prefill",
    "burst": "decode",
    "end_step": "reward",
    "solutions_of": "reward",
    "score": "reward",
    "repeat": "repeat",
    "arrange": "decide",
    "keep": "decide",
    "admit": "move",
    "append_burst": "move",
    "widen": "move",
}
"""The part that each program belongs to, see :mod:`tsi.engine.meters.clock`."""


class Programs(PagePrograms):
    """Programs of one target on one group of devices.

    Args:
        target: the target.
        mesh: with an axis ``model`` over which heads are divided; None for one device.
        by_kernel: whether a kernel attends to the caches of slots.
    """

    def __init__(
        self, target: ReasoningTarget, mesh: Mesh | None, *, by_kernel: bool = False
    ) -> None:
        super().__init__(mesh)
        self.by_kernel = by_kernel
        self.host_reward: HostReward | None = None
        self.texts: TextPrograms | None = None
        reward = target.reward
        if isinstance(reward, Aggregated) and isinstance(reward.reward, HostReward):
            reward = AggregatedOnHost(reward.reward, reward.aggregation)
        if isinstance(reward, HostReward):
            self.host_reward = reward
            target = dataclasses.replace(target, reward=DeferredReward(reward))
        if isinstance(target.reward, TextReader):
            self.texts = TextPrograms(target.reward, mesh)
            target = dataclasses.replace(target, reward=NoReward())
        self.target, self.store = target, ReasoningStore(target)
        self.structure: Any = None
        donate = functools.partial(jax.jit, donate_argnums=0)
        self.prefill = jax.jit(self._prefill, static_argnums=1)
        self.enter = donate(enter)
        self.arrange = donate(self._arrange)
        self.keep = donate(keep)
        self.admit = donate(self._admit)
        self.burst = jax.jit(self._burst, static_argnums=5)
        self.append_burst = donate(self._append_burst)
        self.end_step = jax.jit(self._end_step, static_argnums=8, donate_argnums=0)
        self.repeat = jax.jit(self._repeat, static_argnums=9, donate_argnums=0)
        self.solutions_of = jax.jit(solutions_of)
        self.score = donate(self._score)
        self.widen = jax.jit(resize, static_argnums=1)
        for name, part in PARTS.items():
            setattr(self, name, Timed(getattr(self, name), part))

    def counts(self) -> dict[str, int]:
        """Number of compiled programs that contain a model, by part."""
        models: dict[str, Any] = {
            "prefill": self.prefill,
            "decode": self.burst,
            "reward": self.end_step,
            "repeat": self.repeat,
        }
        counts = {part: timed.num_compiled() for part, timed in models.items()}
        if self.texts is not None:
            counts["prefill"] += self.texts.read_prompts.num_compiled()
            counts["reward"] += self.texts.read.num_compiled()
        return counts

    def count(self) -> int:
        """Number of compiled programs that contain a model."""
        return sum(self.counts().values())

    def slots(self, like: Dense, rows: int, size: int, vocab_size: int | None) -> Slots:
        """R slots without rows; see `empty_slots`."""
        keys = jax.random.split(jax.random.key(0), rows)
        cache = self.make_zeros(like, rows, size)
        # A buffer must not be donated twice under several names.
        forced = self.target.forced_end is not None
        step_tokens = self.target.max_step_tokens
        empty = empty_slots(
            cache,
            step_tokens,
            keys,
            vocab_size,
            forced=forced,
            confident=self.target.reward.token_confidence is not None,
        )
        rest = jax.tree.map(jnp.copy, empty._replace(cache=()))
        return self.place(rest)._replace(cache=cache)

    def positions(self, stored: Stored) -> list[Array]:
        """The positions of the reward's growing caches."""
        return cache_positions(stored, self.structure)

    # The functions that are compiled, traced with this target.

    def _prefill(self, params: ReasoningParams, block: int) -> Prefill:
        results, self.structure = prefill(self.target, params, block)
        return (self.divide(results[0]), *results[1:])

    def _arrange(self, stored: Stored, *arguments: Any) -> Any:
        return arrange(self.store, self.structure, stored, *arguments)

    def _admit(self, slots: Slots, *arguments: Any) -> Slots:
        return admit(self.target, slots, *arguments)

    def _burst(
        self,
        params: ReasoningParams,
        slots: Slots,
        common: Dense | None,
        chosen_slots: Chosen | None,
        min_ended: Int[Array, ""],
        width: int,
    ) -> tuple[Slots, Dense, BurstStatus]:
        slots = slots._replace(cache=self.divide(slots.cache))
        return burst(
            params.policy,
            self.target.boundary,
            slots,
            None if common is None else self.divide(common),
            chosen_slots,
            params.temperatures,
            min_ended,
            width,
            self.target.forced_end,
            self.target.reward.token_confidence,
            by_kernel=self.by_kernel,
        )

    def _append_burst(
        self,
        cache: Dense,
        new: Dense,
        rows: Int[Array, " r"],
        places: Int[Array, " r"],
        was_active: Bool[Array, " r"],
    ) -> Dense:
        return self.divide(
            append_burst(self.divide(cache), new, rows, places, was_active)
        )

    def _end_step(self, stored: Stored, *arguments: Any) -> Any:
        return end_step(self.target, self.structure, stored, *arguments)

    def _repeat(self, stored: Stored, *arguments: Any) -> Any:
        return repeat(self.store, self.structure, stored, *arguments)

    def _score(self, stored: Stored, *arguments: Any) -> Any:
        return score(self.target, stored, *arguments)
