"""A reward model with its own tokenizer that reads only the new part of a solution.

At every step the host renders and tokenises the whole solution so far. The ids are
compared with those that the model has already read, its cache is cut back to the common
prefix, and the rest is read. This remains correct when the next text changes how a
step's last characters are tokenised, and when an explorer has cut a row back.

Within one compiled program, as in :func:`tsi.run.run`, the host is called through a
callback and encodes every text in full. The engine calls the host between two programs
(:mod:`tsi.engine.text_readings`) and, where the tokenizer allows it, encodes a text
that has grown only from the end of a word on (:mod:`tsi.rewards.transcripts`).

The prompt is read once per problem and shared by its rows. The tokenizer may merge the
prompt's last characters with the first step, so that a rendering differs from the
prompt in its last tokens. Such a row attends to fewer of the shared tokens and reads
the rest itself.

Each row also keeps the model's output at each id, so that the scores of earlier steps
are forked and cut along with the ids.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tsi.decoding.cache import Suffix, append, cut, empty_suffix, fork, keep, take
from tsi.decoding.step_texts import (
    NO_TEXT,
    Decoded,
    num_common,
    text_so_far,
    texts_of_more_steps,
)
from tsi.errors import ConfigurationError
from tsi.models.attention import Segment
from tsi.models.decoder_config import DecoderConfig
from tsi.models.prefill import read_prompts
from tsi.numeric_arguments import check_numbers
from tsi.rewards.aggregation import append_end, cut_ends
from tsi.rewards.formats import Format, Rendering
from tsi.rewards.reader_questions import Questions, encode_questions
from tsi.rewards.reader_state import (
    ReaderState,
    RenderedRows,
    mask_prompt,
    with_rows,
    write_rows,
)
from tsi.rewards.reward import Models, Prompts, Reading, Step

Progress = tuple[Int[Array, " R"], Suffix, Float[Array, "R L"]]
"""For each row, the number of ids that have been read, their cache, and their
values."""


class TextReader:
    """Base class of rewards with a model that has its own tokenizer; see the module.

    Args:
        format: how a solution is rendered for the model.
        decode: function from the policy's token ids to text.
        max_steps: M, the target's step limit.
        max_tokens: L, the longest rendering that is read. A longer one has log-odds
            NaN, which samplers count as invalid and give weight zero.
        width: number of ids read in one pass of the model; longer texts take several
            passes.
        one_block: join all steps and render them as one step with one mark (the "model"
            aggregation of arXiv 2502.01618's code).

    Raises:
        ConfigurationError: an argument is not a positive number.
    """

    reads_prompts = True
    reads_ids = False
    token_confidence = None
    looks_ahead = False
    """Whether the value at an id also depends on the next id."""

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
        check_numbers(
            "A reward that reads text",
            max_steps=max_steps,
            max_tokens=max_tokens,
            width=width,
        )
        if min(max_steps, max_tokens, width) < 1:
            raise ConfigurationError(
                f"A reward that reads text has max_steps={max_steps}, "
                f"max_tokens={max_tokens} and width={width}. All must be at least 1."
            )
        self.format, self.decode, self.one_block = format, decode, one_block
        self.max_steps, self.max_tokens = max_steps, max_tokens
        self.width = min(width, max_tokens)
        self.num_marks = max(max_steps, 2)

    def values(
        self, model: Any, hidden: Float[Array, "R W D"], following: Int[Array, "R W"]
    ) -> Float[Array, "R W"]:
        """The model's output at each id.

        Args:
            model: ``params.reward_model``.
            hidden: hidden states of the model's trunk.
            following: the id after each id.
        """
        raise NotImplementedError

    def prepare(self, questions: Sequence[str]) -> Questions:
        """Encode the questions.

        Raises:
            PromptTooLongError: a question leaves no room for a solution.
        """
        return encode_questions(self.format, questions, self.max_tokens)

    def check(self, questions: Questions | None, config: DecoderConfig) -> None:
        """Refuse unprepared questions, and a context shorter than `max_tokens`.

        Raises:
            ConfigurationError: see above.
        """
        if questions is None:
            raise ConfigurationError(
                "This reward reads the text of the questions. Give Prompts the result "
                "of its `prepare`, as tsi.Engine does."
            )
        if self.max_tokens > config.max_length:
            raise ConfigurationError(
                f"The reward reads up to max_tokens={self.max_tokens}, and the context "
                f"of its model is {config.max_length}. Lower max_tokens."
            )

    def init(
        self, prompts: Prompts, rows: int, capacity: int, params: Models
    ) -> ReaderState:
        """Read the prompts; ``capacity`` counts the policy's tokens and is not used.

        Raises:
            ConfigurationError: the prompts were not prepared, or the model's context is
                too short.
        """
        del capacity
        questions, config = prompts.questions, params.reward_model.config
        self.check(questions, config)
        problems, width = questions.tokens.shape
        each = rows // problems
        prompt = self.read_prompts(params.reward_model, questions)
        room = ((0, 0), (0, max(self.max_tokens - width, 0)))
        read = jnp.pad(questions.tokens, room)[:, : self.max_tokens]
        lengths = jnp.repeat(questions.lengths, each)
        # A pass may begin after the last slot of the longest row.
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
        _, ends = append_end(state.ends, step)
        rendered = self._render(state, step, ends)
        shared = jnp.minimum(state.shared, rendered.common)
        suffix, values = self.read_new(
            params.reward_model,
            mask_prompt(state.prompt, shared),
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
        """Keys and values of the tokens with which all renderings begin."""
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
        rendered: RenderedRows,
        width: int | None = None,
    ) -> tuple[Suffix, Float[Array, "R L"]]:
        """Read the ids of renderings that are not in the cache yet.

        Args:
            model: ``params.reward_model``.
            prompt: the shared prompt, masked to what each row attends to.
            suffix: the cache of the ids after the prompt.
            values: the model's output at the ids in the cache.
            rendered: the renderings.
            width: number of ids read in one pass, by default the reader's.
        """
        width = self.width if width is None else width
        end, last = rendered.lengths, rendered.tokens.shape[1] - 1
        offsets = jnp.arange(width)

        def read_chunk(carry: Progress) -> Progress:
            done, suffix, values = carry
            places = done[:, None] + offsets
            mask = places < end[:, None]
            ids, following = (
                jnp.take_along_axis(rendered.tokens, jnp.minimum(at, last), axis=1)
                for at in (places, places + 1)
            )
            context = (prompt, suffix.segment)
            hidden, key_values = model.trunk(
                jnp.where(mask, ids, 0), places, mask, context
            )
            output = self.values(model, hidden, following)
            counts = jnp.clip(end - done, 0, width)
            # So many steps that `append` removes gaps whenever the slots run out.
            num_slots = suffix.segment.mask.shape[-1]
            suffix = append(suffix, key_values, counts, num_slots + 1)
            slots = jnp.arange(last + 1) - done[:, None]
            output = jnp.take_along_axis(output, jnp.clip(slots, 0, width - 1), axis=1)
            new = (slots >= 0) & (slots < counts[:, None])
            return done + counts, suffix, jnp.where(new, output, values)

        _, suffix, values = jax.lax.while_loop(
            lambda carry: jnp.any(carry[0] < end),
            read_chunk,
            (rendered.common, suffix, values),
        )
        return suffix, values

    def log_odds(
        self,
        values: Float[Array, "R L"],
        rendered: RenderedRows,
        log_prob: Float[Array, " R"],
    ) -> Float[Array, " R"]:
        """The log-odds of rows; NaN for a rendering that is too long.

        Args:
            values: the model's output at each id.
            rendered: the renderings.
            log_prob: the policy's log p of each solution.
        """
        raise NotImplementedError

    def fork(self, state: ReaderState, ancestors: Int[Array, " R"]) -> ReaderState:
        """Give each row its ancestor's state."""
        return with_rows(state, ancestors, fork(state.suffix, ancestors))

    def take(self, state: ReaderState, rows: Int[Array, " W"]) -> ReaderState:
        """Take the state of W rows out of a store."""
        return with_rows(state, rows, take(state.suffix, rows))

    def keep(
        self, stored: ReaderState, slots: Int[Array, " W"], rows: ReaderState
    ) -> ReaderState:
        """Write the state of W rows over the stored ones at ``slots``."""
        return write_rows(stored, slots, rows, keep(stored.suffix, slots, rows.suffix))

    def cut(self, state: ReaderState, lengths: Int[Array, " R"]) -> ReaderState:
        """Forget steps; the cache is cut back when the next one is read."""
        return state._replace(ends=cut_ends(state.ends, lengths))

    def reader(self, params: Models) -> DecoderConfig:
        """The reward model."""
        return params.reward_model.config

    def _render(
        self, state: ReaderState, step: Step, ends: Int[Array, "R M"]
    ) -> RenderedRows:
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
        return RenderedRows(*rendered)

    def _render_on_host(self, *arrays: Any) -> tuple[np.ndarray, ...]:
        text, sizes, read, lengths, solution, ends, step_mask, stopped, finished = map(
            np.asarray, arrays
        )
        tokens, end, common = read.copy(), lengths.copy(), lengths.copy()
        marks = np.zeros((len(read), self.num_marks), np.int32)
        num_marks = np.zeros(len(read), np.int32)
        for row in np.flatnonzero(step_mask):
            problem = row * len(text) // len(read)
            question = bytes(text[problem, : sizes[problem]]).decode("utf-8")
            steps, _ = self.steps(solution[row], ends[row], bool(finished[row]))
            rendering: Rendering = self.format.render(
                question, steps, bool(stopped[row])
            )
            size = len(rendering.tokens)
            if size > self.max_tokens:
                num_marks[row] = -1
                continue
            tokens[row, :size] = rendering.tokens
            end[row] = size
            common[row] = self.num_ids_to_keep(
                rendering, read[row, : lengths[row]].tolist()
            )
            marks[row, : len(rendering.marks)] = rendering.marks
            num_marks[row] = len(rendering.marks)
        return tokens, end, common, marks, num_marks

    def num_ids_to_keep(self, rendering: Rendering, read: list[int]) -> int:
        """Number of ids that have been read and are kept."""
        same = num_common(rendering.tokens, read) - self.looks_ahead
        # At least one id is read again, since the newest score must come from this
        # pass.
        return max(0, min(same, *rendering.marks[-1:], len(rendering.tokens)))

    def steps(
        self,
        solution: Int[np.ndarray, " T"],
        ends: Int[np.ndarray, " M"],
        finished: bool,
        before: Decoded = NO_TEXT,
    ) -> tuple[list[str], Decoded]:
        """Texts of the steps; a character cut by a step's end belongs to the next step.

        Args:
            solution: the policy's tokens.
            ends: length after each step; 0 beyond the last step.
            finished: whether no further step follows.
            before: decoded texts of the solution's first steps.
        """
        cuts = [int(end) for end in ends if end > 0]
        if self.one_block:
            tokens = solution[: cuts[-1]].tolist()
            whole = text_so_far(self.decode, tokens, finished=finished)
            return [re.sub(r"\n+", "\n", whole)], NO_TEXT
        return texts_of_more_steps(
            self.decode, before, solution, cuts, finished=finished
        )
