"""The compiled programs of a lane, which do not depend on the sampler.

Models run on dense rows of few shapes: R slots of S positions when tokens are drawn, A
rows when steps are read. Copies between these and the blocks are separate programs, so
that a model is not compiled again when a pool grows.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.decoding.decode_step import Decoding
from tsi.engine.meters.clock import Timed
from tsi.engine.paging import pages as paging
from tsi.engine.paging.page_programs import PagePrograms
from tsi.engine.paging.pages import Dense, layers_of
from tsi.engine.programs.rows import (
    RewardCaches,
    RewardChange,
    Stored,
    of_rows,
    parts_of,
    put,
    take,
    without_caches,
)
from tsi.engine.programs.slots import (
    BurstStatus,
    Chosen,
    Slots,
    append_burst,
    burst,
    common_segment,
    empty_slots,
    slot_segment,
)
from tsi.engine.programs.text_programs import TextPrograms
from tsi.models.layers import Segment
from tsi.reasoning.particles import Particles, ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.host_reward import DeferredReward, HostReward
from tsi.rewards.reward import NoReward, Prompts
from tsi.rewards.text_reader import TextReader
from tsi.step_keys import step_keys
from tsi.weights import weight_dtype

PARTS = {
    "prefill": "prefill",
    "enter": "prefill",
    "burst": "decode",
    "end_step": "reward",
    "written": "reward",
    "score": "reward",
    "repeat": "repeat",
    "arrange": "decide",
    "keep": "decide",
    "admit": "move",
    "append_burst": "move",
    "widen": "move",
}
"""The part that each program belongs to, see :mod:`tsi.engine.meters.clock`."""


class RowReplies(NamedTuple):
    """The numbers of rows for the sampler and for the host, ``[A]`` each."""

    log_potentials: Float[Array, " A"]
    log_corrections: Float[Array, " A"]
    log_probs: Float[Array, " A"]
    finished: Bool[Array, " A"]
    lengths: Int[Array, " A"]


class Solutions(NamedTuple):
    """The solutions of rows that the host scores, ``[A]`` each; see `Particles`.

    ``truncated`` ones were cut at a limit.
    """

    tokens: Int[Array, "A T"]
    truncated: Bool[Array, " A"]
    step_ends: Int[Array, "A M"]
    log_prob: Float[Array, " A"]


class Programs(PagePrograms):
    """Programs of one target on one group of devices.

    Args:
        target: the target.
        mesh: with an axis ``model`` over which heads are divided; None for one device.
    """

    def __init__(self, target: ReasoningTarget, mesh: Mesh | None) -> None:
        super().__init__(mesh)
        self.host_reward: HostReward | None = None
        self.texts: TextPrograms | None = None
        if isinstance(target.reward, HostReward):
            self.host_reward = target.reward
            target = dataclasses.replace(target, reward=DeferredReward(target.reward))
        if isinstance(target.reward, TextReader):
            self.texts = TextPrograms(target.reward, mesh)
            target = dataclasses.replace(target, reward=NoReward())
        self.target, self.store = target, ReasoningStore(target)
        self.structure: Any = None
        donate = functools.partial(jax.jit, donate_argnums=0)
        self.prefill = jax.jit(self._prefill, static_argnums=1)
        self.enter = donate(self._enter)
        self.arrange = donate(self._arrange)
        self.keep = donate(self._keep)
        self.admit = donate(self._admit)
        self.burst = jax.jit(self._burst, static_argnums=5)
        self.append_burst = donate(self._append_burst)
        self.end_step = jax.jit(self._end_step, static_argnums=8, donate_argnums=0)
        self.repeat = jax.jit(self._repeat, static_argnums=9, donate_argnums=0)
        self.written = jax.jit(self._written)
        self.score = donate(self._score)
        self.widen = jax.jit(self._widen, static_argnums=1)
        for name, part in PARTS.items():
            setattr(self, name, Timed(getattr(self, name), part))

    def counts(self) -> dict[str, int]:
        """Programs with models in them that have been compiled, by part."""
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
        """Programs with models in them that have been compiled."""
        return sum(self.counts().values())

    def slots(self, like: Dense, rows: int, size: int, vocab_size: int | None) -> Slots:
        """R slots without rows, see `empty_slots`."""
        keys = jax.random.split(jax.random.key(0), rows)
        cache = self.empty(like, rows, size)
        # A buffer must not be donated twice under several names.
        forced = self.target.forced_end is not None
        step_tokens = self.target.max_step_tokens
        empty = empty_slots(cache, step_tokens, keys, vocab_size, forced=forced)
        rest = jax.tree.map(jnp.copy, empty._replace(cache=()))
        return self.place(rest)._replace(cache=cache)

    def _prefill(
        self, params: ReasoningParams, block: int
    ) -> tuple[Dense, Particles, list[Array], list[Segment], list[Dense]]:
        """Read E prompts: their caches, and the first rows of their problems."""
        particles = self.target.init(None, 1, params)
        rows, shared, caches, structure = parts_of(particles.reward_state)
        self.structure = structure
        beyond, none = (0, -particles.prompt.mask.shape[1] % block), (0, 0)
        prompt = layers_of(
            jnp.pad(particles.prompt.keys, [none] * 4 + [beyond]),
            jnp.pad(particles.prompt.values, [none] * 3 + [beyond, none]),
        )
        like = [
            layers_of(x.segment.keys[..., :0], x.segment.values[..., :0, :])
            for x in caches
        ]
        return self.divide(prompt), without_caches(particles), rows, shared, like

    def _enter(
        self,
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
            origin: index of the fresh row that each becomes.
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
            cost=jax.tree.map(
                lambda old: old.at[rows].set(0, mode="drop"), stored.cost
            ),
            shared=[segment(a, b) for a, b in zip(stored.shared, shared, strict=True)],
            prompts=jax.tree.map(by_problem, stored.prompts, prompts),
        )

    def _arrange(
        self,
        stored: Stored,
        rows: Int[Array, " A"],
        parents: Int[Array, " A"],
        depths: Int[Array, " A"] | None,
        lengths: list[Int[Array, " A"]],
        problems: Int[Array, " A"],
        params: ReasoningParams,
    ) -> tuple[Stored, RowReplies, list[Int[Array, " A"]]]:
        """Give working rows their prefixes, cut back.

        Args:
            stored: of P problems.
            rows: all working rows; an index out of range leaves the row unchanged.
            parents: the prefix of each.
            depths: number of its steps that are kept; None for all.
            lengths: of the parents' reward caches.
            problems: of each row.
            params: weights and temperatures.

        Returns:
            The store, the numbers of the rows, and the lengths of their reward caches.
        """
        sizes = [positions.shape[1] for positions in self.positions(stored)]
        count = rows.shape[0]
        # A cut reads only the masks.
        nothing = [
            Dense((jnp.zeros((count, 0, 0, n)),), (jnp.zeros((count, 0, n, 0)),))
            for n in sizes
        ]
        caches = RewardCaches(nothing, lengths)
        working = jnp.arange(count)
        taken = take(stored, parents, working, problems, caches, self.structure)
        row_params = of_rows(params, stored, problems)
        if depths is not None:
            taken = self.store.shorten(taken, depths, row_params)
            cut = self.target.reward.cut(taken.reward_state, taken.lengths)
            taken = taken._replace(reward_state=cut)
        stored, _, change = put(stored, rows, taken, caches)
        return stored, self._replies_of(taken, None, row_params), change.lengths

    def positions(self, stored: Stored) -> list[Array]:
        _, kinds = self.structure
        # Small leaves in order, those of caches among them.
        names = [kind for kind in kinds if kind is None or kind.__name__ == "Suffix"]
        return [x for x, kind in zip(stored.reward, names, strict=True) if kind]

    def _keep(
        self, stored: Stored, rows: Int[Array, " A"], sources: Int[Array, " A"]
    ) -> Stored:
        """Copy rows over others; indices out of range are dropped."""

        def write(leaf: Array) -> Array:
            return leaf.at[rows].set(leaf[sources], mode="drop")

        return stored._replace(
            rows=jax.tree.map(write, stored.rows),
            reward=[write(leaf) for leaf in stored.reward],
        )

    def _admit(
        self,
        slots: Slots,
        at: Int[Array, " A"],
        stored: Stored,
        rows: Int[Array, " A"],
        start: Int[Array, " A"],
        filled: Int[Array, " A"],
        problems: Int[Array, " A"],
        key_steps: Key[Array, " A"],
        turns: Int[Array, " A"],
        places: Int[Array, " A"],
        params: ReasoningParams,
    ) -> Slots:
        """Put rows into slots, ready to draw a step.

        Args:
            slots: R slots without their cache, which holds the rows' past already.
            at: slot of each row, R for none.
            stored: all rows.
            rows: A working rows.
            start: the position at which their slots' caches begin.
            filled: number of positions of their past.
            problems: of each row.
            key_steps: of the problem of each.
            turns: of the problem of each.
            places: of the row in its problem.
            params: weights and temperatures.
        """
        particles = jax.tree.map(lambda leaf: leaf[rows], stored.rows)
        keys = jax.vmap(
            lambda key, turn, place: jax.random.fold_in(
                step_keys(key, turn).propose, place
            )
        )(key_steps, turns, places)
        room = self.target.max_tokens - particles.lengths
        zeros = jnp.zeros(rows.shape, jnp.int32)
        floats = jnp.zeros(rows.shape, weight_dtype())
        new = slots._replace(
            cache=(),
            start=start,
            filled=filled,
            keys=keys,
            room=jnp.minimum(room, self.target.max_step_tokens),
            token=particles.pending,
            state=particles.boundary_state,
            active=jnp.ones(rows.shape, bool),
            stopped=jnp.zeros(rows.shape, bool),
            counts=zeros,
            log_prob=floats,
            log_correction=floats,
            tokens=jnp.zeros((*rows.shape, slots.tokens.shape[1]), jnp.int32),
            seen=of_rows(params, stored, problems).mark_seen(
                particles.tokens, particles.lengths
            ),
            places=self.target.places(particles),
        )
        return jax.tree.map(
            lambda old, values: old.at[at].set(values, mode="drop"), slots, new
        )

    def _burst(
        self,
        params: ReasoningParams,
        slots: Slots,
        common: Dense | None,
        chosen: Chosen | None,
        enough: Int[Array, ""],
        width: int,
    ) -> tuple[Slots, Dense, BurstStatus]:
        slots = slots._replace(cache=self.divide(slots.cache))
        return burst(
            params.policy,
            self.target.boundary,
            slots,
            None if common is None else self.divide(common),
            chosen,
            params.temperatures,
            enough,
            width,
            self.target.forced_end,
        )

    def _append_burst(
        self,
        cache: Dense,
        new: Dense,
        rows: Int[Array, " r"],
        places: Int[Array, " r"],
        began: Bool[Array, " r"],
    ) -> Dense:
        return self.divide(append_burst(self.divide(cache), new, rows, places, began))

    def _end_step(
        self,
        stored: Stored,
        slots: Slots,
        common: Dense | None,
        at: Int[Array, " A"],
        rows: Int[Array, " A"],
        problems: Int[Array, " A"],
        depths: Int[Array, " A"],
        caches: RewardCaches,
        width: int,
        params: ReasoningParams,
    ) -> tuple[Stored, RowReplies, RewardCaches, RewardChange]:
        """Let the reward read the steps that have ended in slots."""
        row_params = of_rows(params, stored, problems)
        taken = take(stored, rows, rows, problems, caches, self.structure)
        step = jax.tree.map(lambda leaf: leaf[at], slots._replace(cache=()))
        in_store = rows < stored.rows.lengths.shape[0]
        step = step._replace(
            counts=jnp.where(in_store, step.counts, 0), tokens=step.tokens[:, :width]
        )
        cache = jax.tree.map(lambda leaf: leaf[at], slots.cache)
        own = slot_segment(cache, step.start, step.filled)
        segments: tuple[Segment, ...] = (own,)
        if common is not None:
            past = jax.tree.map(lambda leaf: leaf[problems], common)
            segments = (common_segment(past, step.start), own)
        read = self.target.read_step(depths, taken, step, row_params, segments)
        stored, caches, change = put(stored, rows, read, caches)
        return stored, self._replies_of(read, step, row_params), caches, change

    def _repeat(
        self,
        stored: Stored,
        cache: Dense,
        filled: Int[Array, " A"],
        rows: Int[Array, " A"],
        sources: Int[Array, " A"],
        problems: Int[Array, " A"],
        depths: Int[Array, " A"],
        caches: RewardCaches,
        params: ReasoningParams,
        width: int,
    ) -> tuple[Stored, RowReplies, RewardCaches, RewardChange, Dense]:
        """Let rows repeat steps of others, and the reward read these."""
        row_params = of_rows(params, stored, problems)
        taken = take(stored, rows, rows, problems, caches, self.structure)
        others = jax.tree.map(lambda leaf: leaf[sources], stored.rows)
        zeros = jnp.zeros_like(filled)
        context = (slot_segment(cache, zeros, filled),)
        step, impossible = self.store.repeat_step(
            depths, taken, others, row_params, context, width
        )
        in_store = rows < stored.rows.lengths.shape[0]
        step = step._replace(counts=jnp.where(in_store, step.counts, 0))
        count = rows.shape[0]
        cache = paging.merge(
            cache,
            layers_of(step.new.keys, step.new.values),
            jnp.arange(count),
            filled,
            jnp.arange(count),
            jnp.int32(count),
        )
        segments = (slot_segment(cache, zeros, filled + step.counts),)
        read = self.target.read_step(
            depths, taken, step, row_params, segments, drawn=False
        )
        stored, caches, change = put(stored, rows, read, caches)
        replies = self._replies_of(read, step, row_params)
        log_prob = jnp.where(impossible, -jnp.inf, step.log_prob)
        replies = replies._replace(log_probs=log_prob)
        return stored, replies, caches, change, cache

    def _written(self, stored: Stored, rows: Int[Array, " A"]) -> Solutions:
        """The solutions of rows so far."""
        old = stored.rows
        leaves = old.tokens, old.truncated, old.step_ends, old.log_prob
        return Solutions(*(leaf[rows] for leaf in leaves))

    def _score(
        self,
        stored: Stored,
        rows: Int[Array, " A"],
        depths: Int[Array, " A"],
        log_odds: Float[Array, " A"],
        spent: tuple[Int[Array, " A"], Float[Array, " A"]] | None,
        params: ReasoningParams,
    ) -> tuple[Stored, Float[Array, " A"]]:
        """Set the log-odds of steps that the host has scored.

        Args:
            stored: all rows.
            rows: which; indices out of range are dropped.
            depths: index of the step.
            log_odds: of the rows.
            spent: tokens that a model has read for them, and the positions that these
                attended to; None if no model has read.
            params: weights and temperatures.

        Returns:
            The store, and the log potentials of the rows.
        """
        old = stored.rows
        history = old.history._replace(
            log_odds=old.history.log_odds.at[rows, depths].set(log_odds, mode="drop")
        )
        new = old._replace(
            log_odds=old.log_odds.at[rows].set(log_odds, mode="drop"), history=history
        )
        scored_rows = jax.tree.map(lambda leaf: leaf[rows], new)
        potentials = self.target.log_potential(0, scored_rows, params)
        if spent is not None:
            read, context = spent
            cost = stored.cost
            cost = cost._replace(
                reward_read=cost.reward_read.at[rows].add(read, mode="drop"),
                reward_context=cost.reward_context.at[rows].add(context, mode="drop"),
            )
            stored = stored._replace(cost=cost)
        return stored._replace(rows=new), potentials.astype(weight_dtype())

    def _replies_of(
        self,
        particles: Particles,
        step: Slots | Decoding | None,
        params: ReasoningParams,
    ) -> RowReplies:
        zeros = jnp.zeros(particles.lengths.shape, weight_dtype())
        return RowReplies(
            self.target.log_potential(0, particles, params).astype(weight_dtype()),
            zeros if step is None else step.log_correction,
            zeros if step is None else step.log_prob,
            particles.finished,
            particles.lengths,
        )

    def _widen(self, cache: Dense, size: int) -> Dense:
        """The same rows with room for another number of positions."""
        keep = min(cache.keys[0].shape[-1], size)
        grow, none = (0, size - keep), (0, 0)
        return Dense(
            tuple(jnp.pad(x[..., :keep], [none, none, none, grow]) for x in cache.keys),
            tuple(
                jnp.pad(x[:, :, :keep], [none, none, grow, none]) for x in cache.values
            ),
        )
