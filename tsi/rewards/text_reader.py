"""A model that reads a solution in tokens of its own, and only what is new of it.

The solution so far is rendered and tokenised on the host at every step, as if for the
first time; the ids are compared with those that the model has read already, its cache
is cut back to the common prefix, and the rest is read. So what a step's last token
becomes, once text follows it, is right by construction, and so is a row that an
explorer has cut back.

Within one compiled program, as in :func:`tsi.run.run`, the host is asked by a callback,
and encodes every text whole. The engine asks it between two programs
(:mod:`tsi.engine.text_readings`), and texts that have grown are encoded from a word's
end on, where the tokenizer allows it (:mod:`tsi.rewards.transcripts`).

The prompt is read once a problem and shared by its rows. A row whose rendering parts
from the prompt's tokens before their end (the first step may merge with the prompt)
attends to fewer of them, and reads the rest by itself.

Beside the ids each row keeps what the model said at each of them, so that scores of
earlier steps survive forks and cuts without a book of their own.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tsi.decoding.cache import Suffix, append, cut, empty_suffix, fork, keep, take
from tsi.decoding.step_texts import (
    NOTHING,
    Decoded,
    num_common,
    text_so_far,
    texts_of_more_steps,
)
from tsi.errors import ConfigurationError
from tsi.models.decoder_config import DecoderConfig
from tsi.models.layers import Segment
from tsi.models.prefill import read_prompts
from tsi.rewards.aggregation import with_step, within
from tsi.rewards.formats import Format, Rendering
from tsi.rewards.reader_questions import Questions, encode_questions
from tsi.rewards.reward import Models, Prompts, Reading, Step


class ReaderState(NamedTuple):
    """What each row has read.

    Attributes:
        questions, prompt: of the problems, shared by their rows.
        shared: ``[R]``, how many of the prompt's tokens the row attends to.
        suffix: keys and values of what stands after them.
        tokens: ``[R, L]``, all ids that have been read, of which ``lengths`` are real.
        values: ``[R, L]``, what the model said at each.
        ends: ``[R, M]``, the length of the policy's solution after each step.
    """

    questions: Questions
    prompt: Segment
    shared: Int[Array, " R"]
    suffix: Suffix
    tokens: Int[Array, "R L"]
    lengths: Int[Array, " R"]
    values: Float[Array, "R L"]
    ends: Int[Array, "R M"]


class Rendered(NamedTuple):
    """Rows as rendered: ``common`` of their ids stand in the cache already.

    ``num_marks`` of the ``marks`` are real; -1 for a rendering that has no room.
    """

    tokens: Int[Array, "R L"]
    lengths: Int[Array, " R"]
    common: Int[Array, " R"]
    marks: Int[Array, "R K"]
    num_marks: Int[Array, " R"]


Progress = tuple[Int[Array, " R"], Suffix, Float[Array, "R L"]]
"""Ids of each row that have been read, their cache, and their values."""


class TextReader:
    """What rewards with a tokenizer of their own share; see the module's text.

    Args:
        format: how the model is shown a solution.
        decode: the policy's token ids to text.
        max_steps: M, the target's.
        max_tokens: L, the longest rendering that is read. A longer one has no score:
            its log-odds are NaN, which samplers count and give no weight.
        width: ids read in one pass of the model; longer texts take several.
        one_block: show the model all steps as one, lines joined (the "model"
            aggregation of arXiv 2502.01618's code), which gives one mark.

    Raises:
        ConfigurationError: a number is not positive.
    """

    reads_prompts = True
    reads_ids = False
    looks_ahead = False
    """Whether the value at an id depends on the next id, too."""

    def __init__(
        self,
        format: Format,
        decode: Callable[[list[int]], str],
        *,
        max_steps: int,
        max_tokens: int,
        width: int = 64,
        one_block: bool = False,
    ) -> None:
        if min(max_steps, max_tokens, width) < 1:
            raise ConfigurationError(
                f"A reward that reads text has max_steps={max_steps}, "
                f"max_tokens={max_tokens} and width={width}; all must be at least 1."
            )
        self.format, self.decode, self.one_block = format, decode, one_block
        self.max_steps, self.max_tokens = max_steps, max_tokens
        self.width = min(width, max_tokens)
        self.num_marks = max(max_steps, 2)

    def values(
        self, model: Any, hidden: Float[Array, "R W D"], following: Int[Array, "R W"]
    ) -> Float[Array, "R W"]:
        """What the model says at each id.

        Args:
            model: ``params.reward``.
            hidden: of its trunk.
            following: the next id of each.
        """
        raise NotImplementedError

    def prepare(self, questions: Sequence[str]) -> Questions:
        """Encode the questions.

        Raises:
            PromptTooLongError: one leaves no room for a solution.
        """
        return encode_questions(self.format, questions, self.max_tokens)

    def check(self, questions: Questions | None, config: DecoderConfig) -> None:
        """Refuse questions that were not prepared, and a model that cannot read so far.

        Raises:
            ConfigurationError: so it is.
        """
        if questions is None:
            raise ConfigurationError(
                "This reward reads the questions' text: give Prompts the result of its "
                "`prepare`, as tsi.Engine does."
            )
        if self.max_tokens > config.max_length:
            raise ConfigurationError(
                f"The reward is to read up to max_tokens={self.max_tokens}, and its "
                f"model's context is {config.max_length}; lower max_tokens."
            )

    def init(
        self, prompts: Prompts, rows: int, capacity: int, params: Models
    ) -> ReaderState:
        """Read the prompts; ``capacity`` counts the policy's tokens and is not used.

        Raises:
            ConfigurationError: the prompts were not prepared, or the model cannot read
                that far.
        """
        del capacity
        questions, config = prompts.reward, params.reward.config
        self.check(questions, config)
        problems, width = questions.tokens.shape
        each = rows // problems
        prompt = self.read_prompts(params.reward, questions)
        room = ((0, 0), (0, max(self.max_tokens - width, 0)))
        read = jnp.pad(questions.tokens, room)[:, : self.max_tokens]
        lengths = jnp.repeat(questions.lengths, each)
        # One pass may have to start after the slots of the longest row.
        slots = self.max_tokens + self.width
        return ReaderState(
            questions=questions,
            prompt=prompt,
            shared=lengths,
            suffix=empty_suffix(config, rows, slots, prompt.keys.dtype),
            tokens=jnp.repeat(read, each, axis=0),
            lengths=lengths,
            values=jnp.zeros((rows, self.max_tokens), jnp.float32),
            ends=jnp.zeros((rows, self.max_steps), jnp.int32),
        )

    def read(
        self, state: ReaderState, step: Step, params: Models
    ) -> tuple[ReaderState, Reading]:
        """See :class:`tsi.rewards.reward.Reward`."""
        _, ends = with_step(state.ends, step)
        rendered = self._render(state, step, ends)
        shared = jnp.minimum(state.shared, rendered.common)
        suffix, values = self.read_new(
            params.reward,
            visible(state.prompt, shared),
            cut(state.suffix, rendered.common - shared),
            state.values,
            rendered,
        )
        log_odds = self.log_odds(values, rendered, step.log_prob)
        state = state._replace(
            shared=shared,
            suffix=suffix,
            tokens=rendered.tokens,
            lengths=rendered.lengths,
            values=values,
            ends=ends,
        )
        read = rendered.lengths - rendered.common
        return state, Reading(log_odds, read, rendered.common)

    def read_prompts(self, model: Any, questions: Questions) -> Segment:
        """Keys and values of the tokens that renderings begin with."""
        width = questions.tokens.shape[1]
        mask = jnp.arange(width) < questions.lengths[:, None]
        new = read_prompts(model.trunk, questions.tokens, mask)
        return Segment(new.keys, new.values, new.positions, mask)

    def read_new(
        self,
        model: Any,
        prompt: Segment,
        suffix: Suffix,
        values: Float[Array, "R L"],
        rendered: Rendered,
        width: int | None = None,
    ) -> tuple[Suffix, Float[Array, "R L"]]:
        """Read the ids of renderings that follow those in the cache.

        Args:
            model: ``params.reward``.
            prompt: as far as each row attends to it.
            suffix: what stands in the cache behind it.
            values: what the model said at the ids in the cache.
            rendered: rows.
            width: ids read in one pass, by default the reader's.
        """
        width = self.width if width is None else width
        end, last = rendered.lengths, rendered.tokens.shape[1] - 1
        offsets = jnp.arange(width)

        def read_chunk(carry: Progress) -> Progress:
            done, suffix, values = carry
            places = done[:, None] + offsets
            real = places < end[:, None]
            ids, following = (
                jnp.take_along_axis(rendered.tokens, jnp.minimum(at, last), axis=1)
                for at in (places, places + 1)
            )
            context = (prompt, suffix.segment)
            hidden, new = model.trunk(jnp.where(real, ids, 0), places, real, context)
            said = self.values(model, hidden, following)
            counts = jnp.clip(end - done, 0, width)
            # In slots up to the row's end; more steps than a cache has slots.
            suffix = append(suffix, new, counts, suffix.segment.mask.shape[-1] + 1)
            slots = jnp.arange(last + 1) - done[:, None]
            said = jnp.take_along_axis(said, jnp.clip(slots, 0, width - 1), axis=1)
            fresh = (slots >= 0) & (slots < counts[:, None])
            return done + counts, suffix, jnp.where(fresh, said, values)

        _, suffix, values = jax.lax.while_loop(
            lambda carry: jnp.any(carry[0] < end),
            read_chunk,
            (rendered.common, suffix, values),
        )
        return suffix, values

    def log_odds(
        self,
        values: Float[Array, "R L"],
        rendered: Rendered,
        log_prob: Float[Array, " R"],
    ) -> Float[Array, " R"]:
        """The log-odds of rows; NaN for a rendering that has no room.

        Args:
            values: what the model said at each id.
            rendered: rows.
            log_prob: the policy's, of each solution.
        """
        raise NotImplementedError

    def fork(self, state: ReaderState, ancestors: Int[Array, " R"]) -> ReaderState:
        """Give each row its ancestor's state."""
        return self._rows(state, ancestors, fork(state.suffix, ancestors))

    def take(self, state: ReaderState, rows: Int[Array, " W"]) -> ReaderState:
        """The state of W rows out of a store."""
        return self._rows(state, rows, take(state.suffix, rows))

    def keep(
        self, stored: ReaderState, slots: Int[Array, " W"], rows: ReaderState
    ) -> ReaderState:
        """Write the state of W rows over the stored ones at ``slots``."""
        written = {
            name: getattr(stored, name).at[slots].set(getattr(rows, name), mode="drop")
            for name in BY_ROW
        }
        return stored._replace(
            suffix=keep(stored.suffix, slots, rows.suffix), **written
        )

    def cut(self, state: ReaderState, lengths: Int[Array, " R"]) -> ReaderState:
        """Forget steps; the cache is cut back when the next one is read."""
        return state._replace(ends=within(state.ends, lengths))

    def reader(self, params: Models) -> DecoderConfig:
        """The model that reads."""
        return params.reward.config

    def _rows(
        self, state: ReaderState, rows: Int[Array, " W"], suffix: Suffix
    ) -> ReaderState:
        taken = {name: getattr(state, name)[rows] for name in BY_ROW}
        return state._replace(suffix=suffix, **taken)

    def _render(
        self, state: ReaderState, step: Step, ends: Int[Array, "R M"]
    ) -> Rendered:
        rows, marks = state.tokens.shape[0], self.num_marks
        like = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
        shapes = ((rows,), (rows,), (rows, marks), (rows,))
        rendered = jax.pure_callback(
            self._render_on_host,
            (like(state.tokens.shape), *map(like, shapes)),
            state.questions.text,
            state.questions.sizes,
            state.tokens,
            state.lengths,
            step.solution,
            ends,
            step.counts > 0,
            step.stopped,
            step.finished,
            vmap_method="sequential",
        )
        return Rendered(*rendered)

    def _render_on_host(self, *arrays: Any) -> tuple[np.ndarray, ...]:
        text, sizes, read, lengths, solution, ends, live, stopped, finished = map(
            np.asarray, arrays
        )
        tokens, end, common = read.copy(), lengths.copy(), lengths.copy()
        marks = np.zeros((len(read), self.num_marks), np.int32)
        num_marks = np.zeros(len(read), np.int32)
        for row in np.flatnonzero(live):
            problem = row * len(text) // len(read)
            question = bytes(text[problem, : sizes[problem]]).decode("utf-8")
            steps, _ = self.steps(solution[row], ends[row], bool(finished[row]))
            found: Rendering = self.format.render(question, steps, bool(stopped[row]))
            size = len(found.tokens)
            if size > self.max_tokens:
                num_marks[row] = -1
                continue
            tokens[row, :size] = found.tokens
            end[row] = size
            common[row] = self.num_kept(found, read[row, : lengths[row]].tolist())
            marks[row, : len(found.marks)] = found.marks
            num_marks[row] = len(found.marks)
        return tokens, end, common, marks, num_marks

    def num_kept(self, rendering: Rendering, read: list[int]) -> int:
        """How many of the ids that have been read stay as they are."""
        same = num_common(rendering.tokens, read) - self.looks_ahead
        # The last score must come from this pass, whatever was read before.
        return max(0, min(same, *rendering.marks[-1:], len(rendering.tokens)))

    def steps(
        self,
        solution: Int[np.ndarray, " T"],
        ends: Int[np.ndarray, " M"],
        finished: bool,
        before: Decoded = NOTHING,
    ) -> tuple[list[str], Decoded]:
        """Texts of the steps; a character cut by a step's end goes to the next one.

        Args:
            solution: the policy's tokens.
            ends: of steps, 0 where there is none.
            finished: whether nothing follows.
            before: what was decoded of its first steps.
        """
        cuts = [int(end) for end in ends if end > 0]
        if self.one_block:
            tokens = solution[: cuts[-1]].tolist()
            whole = text_so_far(self.decode, tokens, finished=finished)
            return [re.sub(r"\n+", "\n", whole)], NOTHING
        return texts_of_more_steps(
            self.decode, before, solution, cuts, finished=finished
        )


def visible(prompt: Segment, shared: Int[Array, " R"]) -> Segment:
    """A prompt as far as rows attend to it."""
    places = jnp.arange(prompt.mask.shape[1])
    return prompt._replace(mask=places < shared[:, None])


BY_ROW = ("shared", "tokens", "lengths", "values", "ends")
