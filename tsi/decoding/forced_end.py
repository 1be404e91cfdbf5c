r"""A forced end: what a solution must write where a limit would cut it, at its price.

Without it a solution that reaches a limit without its end is truncated, and the target
is the policy conditioned on finishing. With it such a solution keeps its weight. At
some places a token must be one of a set F. The proposal draws it from the policy among
F alone, and the weight is multiplied by the probability of F,

    q(x | past) = p(x | past) / p(F | past),    p / q = p(F | past),

so that the target is still p, restricted to the solutions with a token of F there.

- *The end.* At the last token that the limits leave, F is what ends the solution: all
  end tokens, and whatever completes a stop string. If a delimiter ends the last step
  that the step limit leaves, the step has one token more, with the same F.
- *The string*, if there is one. It begins where `answer_tokens` more tokens are left
  behind it, or where the last step that the step limit leaves begins, whichever comes
  first. At each of its places F is its token. After it the policy goes on by itself,
  until it ends or the limit is reached. In the last step delimiters within the string
  end nothing.

A solution that ended before is left as it is, and counts by its own probability. One
that goes on beyond the string's place without the string is no part of the target.
Where p(F) is zero, as it may be for a truncated policy or at temperature 0, the
solution ends with weight zero, and counts as truncated.

The places depend on the solution's length and its number of steps alone, so that a
repeated step is weighed as a drawn one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from tsi.decoding.boundary import Advance, Boundary
from tsi.errors import ConfigurationError


class ForcedEnd(NamedTuple):
    """What is forced; without a string the end alone.

    Attributes:
        string: token ids of the string.
        answer_tokens: that may stand behind it, the token that ends the solution among
            them; counts with a string only.
    """

    string: tuple[int, ...] = ()
    answer_tokens: int = 1

    @property
    def reserve(self) -> int:
        """Tokens before the token limit at which the string begins at the latest."""
        return len(self.string) + self.answer_tokens

    def check(self, boundary: Boundary, max_step_tokens: int, max_tokens: int) -> None:
        """Refuse a string that cannot stand where it should.

        Raises:
            ConfigurationError: it does not fit into a step or a solution with the
                answer behind it, has ids that are never drawn, or would itself end the
                solution; or no token is left for the answer.
        """
        string, answer = self.string, self.answer_tokens
        if not isinstance(answer, int | np.integer) or answer < 1:
            raise ConfigurationError(
                f"answer_tokens is {answer!r}; give at least 1 for what stands behind "
                "the forced string, the end token among them."
            )
        room = min(max_step_tokens, max_tokens)
        if self.reserve > room:
            raise ConfigurationError(
                f"The forced string has {len(string)} tokens and {answer} are kept for "
                f"the answer behind it, and a step has at most {room}. The last step "
                "must hold both: shorten the string, lower answer_tokens, or raise "
                "max_step_tokens and max_tokens."
            )
        size = len(boundary.stops)
        never = [i for i in string if not 0 <= i < size]
        if boundary.padding is not None and not never:
            never = [i for i in string if boundary.padding[i]]
        if never:
            raise ConfigurationError(
                f"The forced string has the ids {never}, which name no token of the "
                f"policy's {size}; encode it with the policy's tokenizer."
            )
        state, ends = jnp.zeros((), jnp.int32), False
        for token in string:
            state, _, stopped = boundary.advance(state, jnp.int32(token), jnp.int32(1))
            ends |= bool(stopped)
        if ends:
            raise ConfigurationError(
                "The forced string has an end token or a stop string in it, which "
                "would end the solution before its answer; take it out, or force the "
                "end without a string."
            )


class Places(NamedTuple):
    """Where a step of each row has what is forced, counted from the step's first token.

    Attributes:
        last: whether it is the last step that the row may have, ``[R]``.
        string: of the string's first token; negative where that stands in an earlier
            step, ``[R]``. Of no meaning without a string.
        end: of the token that must end the solution, ``[R]``; beyond the step where
            the limit is not reached in it.
    """

    last: Bool[Array, " R"]
    string: Int[Array, " R"]
    end: Int[Array, " R"]


def places_of(
    forced: ForcedEnd,
    lengths: Int[Array, " R"],
    depths: Int[Array, " R"],
    limits: tuple[int, int, int],
) -> Places:
    """Places of the next step.

    Args:
        forced: what is.
        lengths: tokens of each solution so far.
        depths: its steps so far.
        limits: ``max_step_tokens``, ``max_tokens`` and ``max_steps``.
    """
    step_tokens, tokens, steps = limits
    left, last = tokens - lengths, depths + 1 >= steps
    string = left - forced.reserve
    return Places(
        last,
        jnp.where(last, jnp.minimum(string, 0), string),
        jnp.where(last, jnp.minimum(left, step_tokens), left) - 1,
    )


def no_places(rows: int) -> Places:
    """Of rows that write nothing yet."""
    zeros = jnp.zeros(rows, jnp.int32)
    return Places(jnp.zeros(rows, bool), zeros, jnp.copy(zeros))


def in_string(
    forced: ForcedEnd, places: Places, place: Int[Array, "..."]
) -> Bool[Array, " R"]:
    """Whether the token at a place of the step belongs to the string."""
    index = place - places.string
    return (index >= 0) & (index < len(forced.string))


def string_token(
    forced: ForcedEnd, places: Places, place: Int[Array, "..."]
) -> Int[Array, " R"]:
    """The string's token at a place; of no meaning outside of it."""
    string = jnp.asarray(forced.string or (0,), jnp.int32)
    return string[jnp.clip(place - places.string, 0, len(string) - 1)]


def allowed_tokens(
    forced: ForcedEnd,
    boundary: Boundary,
    places: Places,
    place: Int[Array, " R"],
    state: Int[Array, " R"],
    vocab_size: int,
) -> Bool[Array, "R V"]:
    """F of the token at a place of the step; all where nothing is forced.

    Args:
        forced: what is.
        boundary: where solutions end.
        places: of the step.
        place: of the token.
        state: of the boundary before it.
        vocab_size: V.
    """
    ends = boundary.stop_tokens(state)[:, :vocab_size] | (place < places.end)[:, None]
    token = string_token(forced, places, place)[:, None]
    string = in_string(forced, places, place)[:, None]
    return jnp.where(string, jnp.arange(vocab_size) == token, ends)


def end_step(
    forced: ForcedEnd,
    places: Places,
    count: Int[Array, "..."],
    now: Advance,
) -> tuple[Places, Bool[Array, " R"]]:
    """What a token changes: the places, and whether the step has ended.

    Args:
        forced: what is.
        places: of the step.
        count: its tokens, this one included.
        now: what the boundary makes of the token.
    """
    # Behind a delimiter of the last step comes the end of the solution.
    due = places.last & now.ended & ~in_string(forced, places, count - 1)
    end = jnp.where(due, jnp.minimum(places.end, count), places.end)
    ended = jnp.where(places.last, now.stopped, now.ended)
    return places._replace(end=end), ended


class ForcedStep(NamedTuple):
    """A step that is given, and what of it is forced; ``[R]`` unless said otherwise.

    Attributes:
        state: the boundary's after the step.
        before: the same before its last token.
        ended: whether the step could be written, and ends where it does.
        stopped: whether it ends the solution.
        string: which of its tokens belong to the string, ``[R, C]``.
        end: whether its last token is a forced end.
    """

    state: Int[Array, " R"]
    before: Int[Array, " R"]
    ended: Bool[Array, " R"]
    stopped: Bool[Array, " R"]
    string: Bool[Array, "R C"]
    end: Bool[Array, " R"]


Reading = tuple[Places, Advance, Int[Array, " R"], Bool[Array, " R"], Bool[Array, " R"]]
"""Places, the boundary before and at the newest token, and whether that is wrong and
must end."""


def read_forced(
    forced: ForcedEnd,
    boundary: Boundary,
    tokens: Int[Array, "R C"],
    counts: Int[Array, " R"],
    state: Int[Array, " R"],
    places: Places,
    cut: Bool[Array, " R"],
) -> ForcedStep:
    """Read a step as if it had been drawn.

    Args:
        forced: what is.
        boundary: where steps and solutions end.
        tokens: of the step.
        counts: how many of them are real.
        state: of the boundary before the step.
        places: of the step.
        cut: whether a step of so many tokens has no room for more.
    """
    no = jnp.zeros(counts.shape, bool)

    def read_token(
        carry: Reading, column: tuple[Int[Array, ""], Int[Array, " R"]]
    ) -> tuple[Reading, Bool[Array, " R"]]:
        places, last, _, wrong, _ = carry
        place, token = column
        real = place < counts
        string = in_string(forced, places, place)
        must_end = ~string & (place >= places.end)
        now = boundary.advance(last.state, token, place + 1)
        after, ended = end_step(forced, places, place + 1, now)
        misses = string & (token != string_token(forced, places, place))
        misses |= must_end & ~now.stopped
        # A step goes on after none of its tokens but the last.
        misses |= last.ended
        new = (
            after,
            now._replace(ended=ended),
            last.state,
            wrong | misses,
            must_end,
        )
        kept = jax.tree.map(lambda a, b: jnp.where(real, a, b), new, carry)
        return kept, string & real

    places_at = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    start = (places, Advance(state, no, no), state, no, no)
    (_, last, before, wrong, end), string = jax.lax.scan(
        read_token, start, (places_at, tokens.T)
    )
    whole = ~wrong & (last.ended | cut)
    return ForcedStep(last.state, before, whole, last.stopped, string.T, end)
