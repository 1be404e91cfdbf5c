"""The loop of one group of devices: problems enter, are extended, and leave.

Every problem has its own pace. Its rows wait in a queue until slots are free. When a
row ends a step, the reward reads it and its slot becomes free. When all rows of a
problem have been read, its sampler decides, and they join the queue again. The samples
do not depend on which rows share the slots, since their random numbers do not.
"""

import collections
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from tsi.engine.host_scores import Batch, HostScores
from tsi.engine.meters.clock import Clock
from tsi.engine.meters.report import CacheBytes, Report
from tsi.engine.methods import Method, enter
from tsi.engine.paging.pages import Dense
from tsi.engine.paging.pool import Pool, bytes_held
from tsi.engine.programs.model_programs import Programs, RowReplies
from tsi.engine.programs.rows import Stored, empty_stored
from tsi.engine.reward_pools import RewardPools
from tsi.engine.sizing.shapes import Shapes, cost_of_reading
from tsi.engine.sizing.sizes import Sizes, room_of, width_of
from tsi.engine.text_readings import TextReadings
from tsi.engine.writers import Writers
from tsi.explorer import Reply, Request
from tsi.models.layers import Segment
from tsi.problem_ids import IdWords
from tsi.reasoning.particles import Particles, ReasoningParams
from tsi.rewards.reward import Prompts
from tsi.weights import weight_dtype

POOL = 2**28
"""Bytes of blocks per allocation; more are allocated when needed."""


class EndedProblem(NamedTuple):
    """A problem that has ended: its index, and its final state on the host."""

    problem: int
    particles: Particles
    state: Any
    infos: Any
    cost: Any


class FailedProblem(NamedTuple):
    """A problem that failed: its index, the error, and the step, counted from 1."""

    problem: int
    error: Exception
    step: int


class Lane:
    """Runs one method on problems, on one group of devices.

    Args:
        programs: the compiled programs.
        method: of the sampler.
        key: of the run.
        params: weights and temperatures; its prompts are not used.
        prompts: token ids of all problems, on the host.
        questions: the result of the reward's `prepare`, one row per problem, or None.
        ids: of all problems.
        sizes: of the lane.
        exact: whether its clock is exact, see :mod:`tsi.engine.meters.clock`.
    """

    def __init__(
        self,
        programs: Programs,
        method: Method,
        key: Any,
        params: ReasoningParams,
        prompts: Prompts,
        questions: Any,
        ids: IdWords,
        sizes: Sizes,
        exact: bool = False,
    ) -> None:
        self.programs, self.method, self.key = programs, method, key
        self.params, self.sizes, self.ids = params, sizes, ids
        self.prompts, self.questions = prompts, questions
        self.readers: Any = None
        self.scores: HostScores | TextReadings | None = None
        if programs.host_reward is not None:
            reward = programs.host_reward
            self.scores = HostScores(programs, reward, questions, sizes.reads)
        self.target = programs.target
        programs.set_home(params.policy)
        rows, stored, _ = method.plan
        count = sizes.problems
        self.working = count * rows
        self.total = count * (rows + stored)
        self.width = prompts.tokens.shape[1]
        if programs.texts is not None:
            # The model that reads text has programs and devices of its own.
            model, self.params = params.reward_model, params._replace(reward_model=None)
            self.questions = None
            self.scores = self.readers = TextReadings(
                programs, programs.texts, model, questions, self.total, sizes, POOL // 2
            )
        # By place: which problem, how many turns, rows that are not yet read.
        self.index = np.full(count, -1)
        self.turns = np.zeros(count, np.int32)
        self.waiting = np.zeros(count, np.int64)
        # By row.
        self.depths = np.zeros(self.total, np.int32)
        zeros = [np.zeros(self.working, weight_dtype()) for _ in range(3)]
        self.reply: Any = Reply(*zeros, np.zeros(self.working, bool))  # type: ignore
        self.lengths = np.zeros(self.working, np.int32)
        self.request: Any = None
        self.state: Any = None
        self.key_steps: Any = None
        self.infos: list[list[Any]] = [[] for _ in range(count)]
        self.queue: collections.deque[int] = collections.deque()
        self.left: collections.deque[int] = collections.deque()
        self.failed: list[FailedProblem] = []
        self.stored: Stored | None = None
        self.writers: Any = None
        self.reads = Shapes(cost_of_reading, sizes.price, exact=2)
        self.clock, self.cache = Clock(exact), CacheBytes()

    def report(self) -> Report:
        """What has been done so far."""
        writers, spent = self.writers, self.clock.read()
        counts = (0, 0, 0)
        if writers is not None:
            counts = (writers.useful, writers.computed, writers.bursts)
        return Report(
            *counts, spent.seconds, compiling=spent.compiling, cache=self.cache
        )

    @property
    def num_written(self) -> int:
        """Tokens that have been written so far."""
        return 0 if self.writers is None else self.writers.useful

    def run(
        self,
        problems: Sequence[int],
        stop: threading.Event,
        tell: Callable[[], None] = lambda: None,
    ) -> Iterator[EndedProblem | FailedProblem]:
        """Run problems, given by index; yield each as soon as it has ended.

        Args:
            problems: indices.
            stop: when it is set, unfinished problems are abandoned.
            tell: called after each burst.
        """
        self.left = left = collections.deque(problems)
        while (left or (self.index >= 0).any()) and not stop.is_set():
            free = np.flatnonzero(self.index < 0)
            # Several at once, since each entry costs as much as a turn of all problems.
            if left and len(free) >= min(len(left), -(-self.sizes.problems // 4)):
                count = min(len(free), len(left))
                self._enter([left.popleft() for _ in range(count)], free[:count])
            while (ready := (self.index >= 0) & (self.waiting == 0)).any():
                yield from self._decide(ready)
            if self.queue or (self.writers.active | self.writers.ended).any():
                self._write()
                tell()
            yield from self.failed
            self.failed.clear()

    # Problems

    def _enter(self, problems: list[int], places: Int[np.ndarray, " n"]) -> None:
        before = self.clock.phase("prefill")
        for start in range(0, len(problems), self._entering):
            stop = start + self._entering
            self._read_prompts(problems[start:stop], places[start:stop])
        self.index[places], self.turns[places] = problems, 0
        self.depths.reshape(-1)[self._rows_of(places)] = 0
        words = jax.tree.map(
            lambda leaf: np.asarray(leaf)[np.maximum(self.index, 0)], self.ids
        )
        fresh = self.method.begin(self.key, words)
        if self.state is None:
            self.key_steps, self.state = fresh[:2]
        else:
            entered = np.isin(np.arange(self.sizes.problems), places)
            self.key_steps, self.state = enter(
                fresh[:2], (self.key_steps, self.state), entered
            )
        request = jax.device_get(fresh[2])
        self._ask(request, np.isin(np.arange(self.sizes.problems), places))
        self.clock.switch(before)

    @property
    def _entering(self) -> int:
        """How many problems' prompts are read together."""
        return self.sizes.prompts(self.width)

    def _rows_of(self, places: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
        """All rows of the problems at these places, working ones and stored ones."""
        rows, stored, _ = self.method.plan
        working = places[:, None] * rows + np.arange(rows)
        kept = self.working + places[:, None] * stored + np.arange(stored)
        return np.concatenate([working, kept], axis=1).reshape(-1)

    def _read_prompts(self, problems: list[int], places: Int[np.ndarray, " n"]) -> None:
        count, size = len(problems), self._entering
        size = width_of(count, size, self.sizes.shrinks)
        # Padded with the last one, so that few sizes are compiled.
        padded = np.asarray(problems + [problems[-1]] * (size - count))
        at = np.concatenate([places, np.full(size - count, self.sizes.problems)])
        prompts = Prompts(
            self.prompts.tokens[padded],
            self.prompts.lengths[padded],
            jax.tree.map(lambda leaf: leaf[padded], self.questions),
        )
        params = self.params._replace(prompts=prompts)
        read = self.programs.prefill(params, self.sizes.block)
        dense, particles, reward, shared, like = read
        if self.stored is None:
            self._allocate(dense, particles, reward, shared, like, prompts)
        rows = self._rows_of(places)
        each = len(rows) // count
        origin = np.repeat(np.arange(count), each)
        full = size * each
        rows_padded = np.pad(rows, (0, full - len(rows)), constant_values=self.total)
        origin = np.pad(origin, (0, full - len(origin)))
        self.stored = self.programs.enter(
            self.stored, (prompts, particles, reward, shared), rows_padded, origin, at
        )
        first = self._rows_of(places).reshape(count, each)[:, 0]
        self.policy.store(
            dense,
            first,
            np.zeros(count, np.int32),
            np.asarray(prompts.lengths)[:count] - 1,
        )
        self.policy.tables.fork(rows, np.repeat(first, each))
        if isinstance(self.readers, TextReadings):
            self.readers.enter(padded, at, rows, origin[: len(rows)])
        self.writers.forget(rows)

    def _allocate(
        self,
        dense: Dense,
        particles: Particles,
        reward: list[Array],
        shared: list[Segment],
        like: list[Dense],
        prompts: Prompts,
    ) -> None:
        count, block = self.sizes.problems, self.sizes.block
        stored = empty_stored(
            particles,
            reward,
            shared,
            prompts,
            rows=self.total,
            working=self.working,
            problems=count,
        )
        self.stored = self.programs.place(stored)
        longest = self.width + self.target.max_tokens
        most = POOL // (1 + len(like))
        lines = count if self.sizes.shares else 0
        rows = self.total + lines
        self.policy = Pool(self.programs, rows, longest, block, dense, most)
        if self.readers is None:
            lengths = [x.shape[1] for x in self.programs.positions(self.stored)]
            self.readers = RewardPools(
                self.programs, self.total, lengths, block, like, most
            )
        most = room_of(longest + self.sizes.burst)
        each = self.method.plan.rows
        self.writers = Writers(
            self.programs, self.policy, self.sizes, each, most, self.params
        )

    def _decide(self, ready: Bool[np.ndarray, " P"]) -> Iterator[EndedProblem]:
        """`tell` and `ask` for the problems that are ready."""
        before = self.clock.phase("decide")
        explores = self.method.plan.stored > 0
        if explores:
            self._keep(ready)
        shape = (self.sizes.problems, -1)
        reply = jax.tree.map(lambda leaf: leaf.reshape(shape), self.reply)
        parents = np.asarray(self.request.parents)
        state, request, info, continues = self.method.turn(
            self.key_steps, self.turns, self.state, ready, parents, reply
        )
        self.state = state
        request, info, continues = jax.device_get((request, info, continues))
        for place in np.flatnonzero(ready):
            self.infos[place].append(jax.tree.map(lambda leaf, p=place: leaf[p], info))
        self.turns += ready
        ended = np.flatnonzero(ready & ~continues)
        self._ask(request, ready & continues)
        leaving = list(self._leave(ended)) if len(ended) else []
        self.clock.switch(before)
        yield from leaving

    def _leave(self, places: Int[np.ndarray, " n"]) -> Iterator[EndedProblem]:
        assert self.stored is not None
        rows, stored, _ = self.method.plan
        host = jax.device_get(self.stored.rows)
        state, cost = jax.device_get((self.state, self.stored.cost))
        for place in places:
            problem_state = jax.tree.map(lambda leaf, p=place: leaf[p], state)
            members = place * rows + np.arange(rows)
            if stored:
                members = (
                    self.working + place * stored + np.asarray(problem_state.members)
                )
            spent = place * rows + np.arange(rows)
            infos = jax.tree.map(lambda *leaves: np.stack(leaves), *self.infos[place])
            yield EndedProblem(
                int(self.index[place]),
                jax.tree.map(lambda leaf, m=members: leaf[m], host),
                problem_state,
                infos,
                jax.tree.map(lambda leaf, s=spent: leaf[s], cost),
            )
            self.infos[place] = []
        self._release(places)

    def _release(self, places: Int[np.ndarray, " n"]) -> None:
        gone = self._rows_of(places)
        for pool in (self.policy, *self.readers):
            pool.tables.release(gone)
        self.writers.forget(gone)
        self.writers.release(places)
        self.index[places], self.waiting[places] = -1, 0

    def _keep(self, ready: Bool[np.ndarray, " P"]) -> None:
        """Store the rows of an explorer's turn where it wants them."""
        stored = self.method.plan.stored
        slots = np.asarray(self.request.slots)
        kept = ready[:, None] & (slots < stored)
        places = np.arange(self.sizes.problems)[:, None]
        to = np.where(kept, self.working + places * stored + slots, self.total)
        to = to.reshape(-1)
        self.stored = self.programs.keep(self.stored, to, np.arange(self.working))
        kept_rows = np.flatnonzero(to < self.total)
        for pool in (self.policy, *self.readers):
            pool.tables.fork(to[kept_rows], kept_rows)
        self.depths[to[kept_rows]] = self.depths[kept_rows]

    def _ask(self, request: Request, asked: Bool[np.ndarray, " P"]) -> None:
        """Give working rows the prefixes that their samplers have requested."""
        rows, stored, _ = self.method.plan
        if self.request is None:
            self.request = jax.tree.map(np.array, request)
        else:
            for old, new in zip(
                jax.tree.leaves(self.request), jax.tree.leaves(request), strict=True
            ):
                old[asked] = new[asked]
        if not asked.any():
            return
        places = np.arange(self.sizes.problems)[:, None]
        parents = np.asarray(request.parents)
        origin = self.working + places * stored if stored else places * rows
        parents = (parents + origin).reshape(-1)
        row_asked = np.repeat(asked, rows)
        all_rows = np.arange(self.working)
        slots = np.where(row_asked, all_rows, self.total).astype(np.int32)
        parents = np.where(row_asked, parents, all_rows).astype(np.int32)
        moved = all_rows[row_asked]
        depths = self.depths[parents[row_asked]]
        limit = None
        if request.depths is not None:
            limit = np.asarray(request.depths).reshape(-1).astype(np.int32)
            depths = np.minimum(depths, limit[row_asked])
        lengths = self.readers.lengths(parents)
        self.stored, replies, lengths = self.programs.arrange(
            self.stored, slots, parents, limit, lengths, all_rows // rows, self.params
        )
        replies, lengths = jax.device_get((replies, lengths))
        self.depths[moved] = depths
        self._record(moved, jax.tree.map(lambda leaf: leaf[moved], replies))
        before = self.prompts.lengths[self.index[moved // rows]] - 1
        changed = moved[parents[row_asked] != moved]
        for pool in (self.policy, *self.readers):
            pool.tables.fork(moved, parents[row_asked])
        if limit is not None:
            self.policy.tables.cut(moved, before + self.lengths[moved])
            self.readers.cut(moved, lengths)
        self.writers.forget(changed if limit is None else moved)
        extend = np.asarray(request.extend).reshape(-1)[moved]
        active = extend & ~self.reply.finished[moved]
        active &= depths < self.target.max_steps
        if stored:
            over = depths >= self.target.max_steps
            self.reply.finished[moved] |= over
        self.waiting[asked] = active.reshape(-1, rows).sum(1)
        writers = moved[active]
        if request.sources is not None:
            sources = np.asarray(request.sources).reshape(-1)[moved]
            self._repeat(moved[active & (sources >= 0)])
            writers = moved[active & (sources < 0)]
            writers = writers[self.index[writers // rows] >= 0]
        self.writers.share(writers)
        self.queue.extend(writers.tolist())

    def _record(self, rows: Int[np.ndarray, " A"], replies: RowReplies) -> None:
        """Record the numbers of working rows for the next decision."""
        for old, new in zip(self.reply, replies, strict=False):
            old[rows] = new
        self.lengths[rows] = replies.lengths

    # Rows

    def _write(self) -> None:
        """Fill the slots, draw tokens, and let the reward read the steps that ended."""
        before = self.clock.phase("move")
        each, writers = self.method.plan.rows, self.writers
        rows = writers.fill(self.queue)
        if len(rows):
            size = width_of(len(rows), writers.number, self.sizes.shrinks)
            padded = np.pad(rows, (0, size - len(rows)))
            problems = padded // each
            writers.admit(
                rows,
                self.stored,
                padded,
                problems,
                self.key_steps[problems],
                self.turns[problems],
                padded % each,
            )
        self.clock.phase("decode")
        if writers.active.any():
            writers.write(self._num_ended_to_wait_for())
        self.clock.phase("reward")
        at = self._slots_to_read()
        for start in range(0, len(at), self.sizes.reads):
            chosen = at[start : start + self.sizes.reads]
            # The rows of a problem that has just failed are not read.
            if len(chosen := chosen[writers.ended[chosen]]):
                self._read(chosen)
        self._collect_scores()
        self.clock.switch(before)
        held = bytes_held([self.policy, *self.readers])
        self.cache = max(self.cache, held, key=lambda cache: cache.held)

    def _num_ended_to_wait_for(self) -> int:
        """Number of rows that must end their steps before the burst returns."""
        writers, part = self.writers, int(self.sizes.part * self.writers.number)
        active = int(writers.active.sum())
        if self.sizes.part == 1:
            return active
        if self.queue:
            return min(max(part, 1), active)
        problems = writers.row_of[writers.active] // self.method.plan.rows
        counts = np.bincount(problems, minlength=self.sizes.problems)
        enough = max(int(counts[counts > 0].min()), part)
        # With fewer rows a smaller program is enough.
        fewer = writers.below(active)
        return min(enough, active - fewer) if fewer else min(enough, active)

    def _slots_to_read(self) -> Int[np.ndarray, " A"]:
        """Slots whose steps are read now.

        They are ordered by length, since a batch is padded to its longest step. A step
        is read later, in a fuller batch, if neither its problem nor a queued row waits
        for it.
        """
        writers, reads = self.writers, self.sizes.reads
        ended = np.flatnonzero(writers.ended)
        if not (self.queue or self.sizes.part == 1):
            problems = writers.row_of // self.method.plan.rows
            later = np.isin(problems[ended], problems[writers.active])
            needed = int((~later).sum())
            whole = max(-(-needed // reads), len(ended) // reads) * reads
            ended = ended[np.argsort(later, kind="stable")][:whole]
        return ended[np.argsort(writers.counts[ended], kind="stable")]

    def _read(self, at: Int[np.ndarray, " A"]) -> None:
        """Let the reward read the steps that have ended in some slots."""
        writers = self.writers
        rows = writers.leave(at).astype(np.int32)
        lengths = writers.counts[at]
        most = self.sizes.reads
        width = self._step_width(int(lengths.max()))
        fine = width_of(len(at), most, self.sizes.shrinks, factor=2)
        coarse, wanted = (width, writers.room, most), (width, writers.room, fine)
        *_, size = used = self.reads.choose(wanted, coarse)
        self.reads.note(wanted, used)
        pad = (0, size - len(at))
        padded = np.pad(rows, pad, constant_values=self.total)
        problems = np.pad(rows // self.method.plan.rows, pad)
        caches = self.readers.fresh(rows, size, width)
        self.stored, replies, caches, change = self.programs.end_step(
            self.stored,
            writers.slots,
            writers.past,
            np.pad(at, pad).astype(np.int32),
            padded,
            problems,
            np.pad(self.depths[rows], pad),
            caches,
            width,
            self.params,
        )
        kept, filled = self.policy.tables.lengths[rows], writers.filled[at]
        start = writers.start[at]
        self.policy.store(writers.slots.cache, rows, kept, filled, at, start)
        replies, change = jax.device_get((replies, change))
        self.readers.store(caches, rows, change)
        replies = jax.tree.map(lambda leaf: leaf[: len(at)], replies)
        self._judge(rows, replies)

    def _judge(self, rows: Int[np.ndarray, " n"], replies: RowReplies) -> None:
        """Let the host score the steps that rows have ended, if the reward needs it.

        A problem whose scoring fails is abandoned; the others continue.
        """
        if self.scores is None:
            self._end(rows, replies)
            return
        assert self.stored is not None
        places = rows // self.method.plan.rows
        batch = Batch(
            rows,
            replies,
            self.lengths[rows],
            self.depths[rows],
            self.index[places],
            places,
        )
        for i, error in self.scores.ask(self.stored, batch).items():
            self._give_up(int(places[i]), int(batch.depths[i]) + 1, error)

    def _collect_scores(self) -> None:
        """Fetch the scores that are pending."""
        if self.scores is None:
            return
        assert self.stored is not None
        for scored in self.scores.answers(self.stored, self.params):
            self.stored, rows, replies = scored
            self._end(rows, replies)

    def _give_up(self, place: int, step: int, error: Exception) -> None:
        """Abandon a problem after an error."""
        if self.index[place] < 0:
            return
        self.failed.append(FailedProblem(int(self.index[place]), error, step))
        places = np.asarray([place])
        rows = self._rows_of(places)
        self.queue = collections.deque(row for row in self.queue if row not in rows)
        self.writers.drop(rows)
        self.infos[place] = []
        self._release(places)

    def _step_width(self, longest: int) -> int:
        """The width at which a step is read: one of few, for few compiled programs."""
        most = self.target.max_step_tokens
        if not self.target.reward.reads_ids:
            return most
        width = 32
        while width < longest:
            width *= 4
        return min(width, most)

    def _repeat(self, rows: Int[np.ndarray, " n"]) -> None:
        """Let rows repeat steps of other rows."""
        if not len(rows):
            return
        before = self.clock.phase("repeat")
        each, stored, _ = self.method.plan
        places = rows // each
        flat = np.asarray(self.request.sources).reshape(-1)[rows]
        sources = self.working + places * stored + flat
        for start in range(0, len(rows), self.sizes.reads):
            chosen = np.arange(start, min(start + self.sizes.reads, len(rows)))
            chosen = chosen[self.index[places[chosen]] >= 0]
            if len(chosen):
                self._repeat_some(rows[chosen].astype(np.int32), sources[chosen])
        self._collect_scores()
        self.clock.switch(before)

    def _repeat_some(self, rows: Int[np.ndarray, " n"], sources: Any) -> None:
        count = len(rows)
        size = width_of(count, self.sizes.reads, self.sizes.shrinks)
        pad = (0, size - count)
        width = self.target.max_step_tokens
        filled = self.policy.tables.lengths[rows]
        room = room_of(int(filled.max()) + width)
        cache = self.policy.fresh(rows, size, room)
        self.stored, replies, caches, change, cache = self.programs.repeat(
            self.stored,
            cache,
            np.pad(filled, pad),
            np.pad(rows, pad, constant_values=self.total),
            np.pad(sources, pad).astype(np.int32),
            np.pad(rows // self.method.plan.rows, pad),
            np.pad(self.depths[rows], pad),
            self.readers.fresh(rows, size, width),
            self.params,
            width,
        )
        replies, change = jax.device_get((replies, change))
        replies = jax.tree.map(lambda leaf: leaf[:count], replies)
        taken = replies.lengths - self.lengths[rows]
        self.policy.store(cache, rows, filled, filled + taken)
        self.readers.store(caches, rows, change)
        self.writers.forget(rows)
        self._judge(rows, replies)

    def _end(self, rows: Int[np.ndarray, " n"], replies: RowReplies) -> None:
        """Record that rows have ended a step."""
        self._record(rows, replies)
        self.depths[rows] += 1
        if self.method.plan.stored:
            self.reply.finished[rows] |= self.depths[rows] >= self.target.max_steps
        places = rows // self.method.plan.rows
        np.subtract.at(self.waiting, places[self.index[places] >= 0], 1)
