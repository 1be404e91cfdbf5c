r"""Forced ends: tokens that a solution must have where a limit would cut it.

Without a forced end, a solution that reaches a limit is truncated, and the target is
the policy conditioned on finishing. With one, such a solution keeps its weight. At some
places a token must belong to a set F. The proposal draws it from the policy restricted
to F, and the weight is multiplied by the probability of F,

    q(x | past) = p(x | past) / p(F | past),    p / q = p(F | past),

so that the target is still p, restricted to solutions with a token of F at this place.

- *The end.* At the last token that the limits allow, F contains the tokens that end the
  solution: all end tokens, and all tokens that complete a stop string. If a delimiter
  ends the last step that the step limit allows, that step has one more token, with the
  same F.
- *The string*, if there is one. It begins where `answer_tokens` tokens remain after it,
  or at the start of the last step that the step limit allows, whichever comes first. At
  each of its places F contains only the string's token. After the string the policy
  draws freely until the solution ends or reaches the limit. In the last step,
  delimiters within the string do not end the step.

A solution that ends earlier is not changed and has its own probability. A solution that
continues past the string's place without the string does not belong to the target. If
p(F) is zero, which is possible for a truncated policy or at temperature 0, the solution
ends with weight zero and counts as truncated.

The places depend only on the solution's length and its number of steps, so that a
repeated step has the same weight as a drawn one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from tsi.decoding.boundary import Advance, Boundary
from tsi.errors import ConfigurationError


class ForcedEnd(NamedTuple):
    """The forced end of a solution, after a forced string if there is one.

    Attributes:
        string: token ids of the string; empty for none.
        answer_tokens: the maximum number of tokens after the string, including the
            token that ends the solution; used only with a string.
    """

    string: tuple[int, ...] = ()
    answer_tokens: int = 1

    @property
    def reserve(self) -> int:
        """Number of tokens before the token limit at which the string begins."""
        return len(self.string) + self.answer_tokens

    def check(self, boundary: Boundary, max_step_tokens: int, max_tokens: int) -> None:
        """Refuse a string that cannot be placed.

        Raises:
            ConfigurationError: the string and the answer do not fit into a step or a
                solution, the string has ids that are never drawn or would itself end
                the solution, or no token remains for the answer.
        """
        string, answer = self.string, self.answer_tokens
        if not isinstance(answer, int | np.integer) or answer < 1:
            raise ConfigurationError(
                f"answer_tokens is {answer!r}. Give at least 1: the tokens after the "
                "forced string, the end token included."
            )
        room = min(max_step_tokens, max_tokens)
        if self.reserve > room:
            raise ConfigurationError(
                f"The forced string has {len(string)} tokens, {answer} are reserved "
                f"for the answer after it, and a step has at most {room}. The last "
                "step must hold both. Shorten the string, lower answer_tokens, or "
                "raise max_step_tokens and max_tokens."
            )
        size = len(boundary.stops)
        unknown = [i for i in string if not 0 <= i < size]
        if boundary.padding is not None and not unknown:
            unknown = [i for i in string if boundary.padding[i]]
        if unknown:
            raise ConfigurationError(
                f"The forced string has the ids {unknown}, which are not tokens of the "
                f"policy's vocabulary of {size}. Encode it with the policy's tokenizer."
            )
        state, ends = jnp.zeros((), jnp.int32), False
        for token in string:
            state, _, stopped = boundary.advance(state, jnp.int32(token), jnp.int32(1))
            ends |= bool(stopped)
        if ends:
            raise ConfigurationError(
                "The forced string contains an end token or a stop string, which would "
                "end the solution before its answer. Remove it, or force the end "
                "without a string."
            )


class Places(NamedTuple):
    """Places of forced tokens in a step of each row, counted from its first token.

    Attributes:
        last: whether this is the last step that the row may have, ``[R]``.
        string: place of the string's first token, ``[R]``; negative if it is in an
            earlier step. Not used without a string.
        end: place of the token that must end the solution, ``[R]``; beyond the step if
            the step does not reach the limit.
    """

    last: Bool[Array, " R"]
    string: Int[Array, " R"]
    end: Int[Array, " R"]


def places_of(
    forced_end: ForcedEnd,
    lengths: Int[Array, " R"],
    depths: Int[Array, " R"],
    limits: tuple[int, int, int],
) -> Places:
    """Places of forced tokens in the next step.

    Args:
        forced_end: the forced end.
        lengths: number of tokens of each solution so far.
        depths: number of steps of each solution so far.
        limits: ``max_step_tokens``, ``max_tokens`` and ``max_steps``.
    """
    step_tokens, tokens, steps = limits
    left, last = tokens - lengths, depths + 1 >= steps
    string = left - forced_end.reserve
    return Places(
        last,
        jnp.where(last, jnp.minimum(string, 0), string),
        jnp.where(last, jnp.minimum(left, step_tokens), left) - 1,
    )


def empty_places(rows: int) -> Places:
    """Placeholders for rows without a step."""
    zeros = jnp.zeros(rows, jnp.int32)
    return Places(jnp.zeros(rows, bool), zeros, jnp.copy(zeros))


def is_in_string(
    forced_end: ForcedEnd, places: Places, place: Int[Array, "..."]
) -> Bool[Array, " R"]:
    """Whether the token at a place of the step belongs to the forced string."""
    index = place - places.string
    return (index >= 0) & (index < len(forced_end.string))


def string_token(
    forced_end: ForcedEnd, places: Places, place: Int[Array, "..."]
) -> Int[Array, " R"]:
    """The string's token at a place; arbitrary outside of the string."""
    string = jnp.asarray(forced_end.string or (0,), jnp.int32)
    return string[jnp.clip(place - places.string, 0, len(string) - 1)]


def allowed_tokens(
    forced_end: ForcedEnd,
    boundary: Boundary,
    places: Places,
    place: Int[Array, " R"],
    state: Int[Array, " R"],
    vocab_size: int,
) -> Bool[Array, "R V"]:
    """The set F at a place of the step; all tokens where none is forced.

    Args:
        forced_end: the forced end.
        boundary: where solutions end.
        places: places of forced tokens in the step.
        place: of the token.
        state: of the boundary before the token.
        vocab_size: V.
    """
    ends = boundary.stop_tokens(state)[:, :vocab_size] | (place < places.end)[:, None]
    token = string_token(forced_end, places, place)[:, None]
    string = is_in_string(forced_end, places, place)[:, None]
    return jnp.where(string, jnp.arange(vocab_size) == token, ends)


def end_step(
    forced_end: ForcedEnd,
    places: Places,
    count: Int[Array, "..."],
    now: Advance,
) -> tuple[Places, Bool[Array, " R"]]:
    """Update the places after a token; also return whether the step has ended.

    Args:
        forced_end: the forced end.
        places: places of forced tokens in the step.
        count: number of the step's tokens, including this one.
        now: state of the boundary after the token.
    """
    # After a delimiter of the last step the solution must end.
    is_due = places.last & now.ended & ~is_in_string(forced_end, places, count - 1)
    end = jnp.where(is_due, jnp.minimum(places.end, count), places.end)
    ended = jnp.where(places.last, now.stopped, now.ended)
    return places._replace(end=end), ended


class ForcedStep(NamedTuple):
    """Forced tokens of a given step; ``[R]`` unless stated otherwise.

    Attributes:
        state: state of the boundary after the step.
        before: state of the boundary before the step's last token.
        ended: whether the step is possible and ends with its last token.
        stopped: whether the step ends the solution.
        string: which of its tokens belong to the forced string, ``[R, C]``.
        end: whether its last token is a forced end.
    """

    state: Int[Array, " R"]
    before: Int[Array, " R"]
    ended: Bool[Array, " R"]
    stopped: Bool[Array, " R"]
    string: Bool[Array, "R C"]
    end: Bool[Array, " R"]


ForcedCarry = tuple[
    Places, Advance, Int[Array, " R"], Bool[Array, " R"], Bool[Array, " R"]
]
"""Places, the boundary after the newest token, its state before that token, whether a
token was impossible, and whether the newest token must end the solution."""


def read_forced(
    forced_end: ForcedEnd,
    boundary: Boundary,
    tokens: Int[Array, "R C"],
    counts: Int[Array, " R"],
    state: Int[Array, " R"],
    places: Places,
    cut: Bool[Array, " R"],
) -> ForcedStep:
    """Find the forced tokens of a given step, and whether it could have been drawn.

    Args:
        forced_end: the forced end.
        boundary: where steps and solutions end.
        tokens: tokens of the step, padded.
        counts: number of tokens of each row.
        state: state of the boundary before the step.
        places: places of forced tokens in the step.
        cut: whether a limit ends the step after these tokens.
    """
    false = jnp.zeros(counts.shape, bool)

    def read_token(
        carry: ForcedCarry, column: tuple[Int[Array, ""], Int[Array, " R"]]
    ) -> tuple[ForcedCarry, Bool[Array, " R"]]:
        places, last, _, wrong, _ = carry
        place, token = column
        valid = place < counts
        string = is_in_string(forced_end, places, place)
        must_end = ~string & (place >= places.end)
        now = boundary.advance(last.state, token, place + 1)
        after, ended = end_step(forced_end, places, place + 1, now)
        is_mismatch = string & (token != string_token(forced_end, places, place))
        is_mismatch |= must_end & ~now.stopped
        # Only the last token may end the step.
        is_mismatch |= last.ended
        new = (
            after,
            now._replace(ended=ended),
            last.state,
            wrong | is_mismatch,
            must_end,
        )
        new_carry = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry)
        return new_carry, string & valid

    places_at = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    start = (places, Advance(state, false, false), state, false, false)
    (_, last, before, wrong, end), string = jax.lax.scan(
        read_token, start, (places_at, tokens.T)
    )
    whole = ~wrong & (last.ended | cut)
    return ForcedStep(last.state, before, whole, last.stopped, string.T, end)
