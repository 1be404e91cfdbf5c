"""Where a reasoning step ends, decided on token ids inside a compiled loop.

A delimiter such as a blank line may be one token, the end of a token, or several
tokens. An automaton over bytes (:mod:`tsi.decoding.byte_search`) searches for it, and
its tables are lifted to tokens: ``next_state[a, v]`` is the automaton's state after
reading all bytes of token v from state a, and ``ends[a, v]`` says whether these bytes
complete a delimiter. The delimiter's tokens belong to the step and to its density.

A second automaton searches for strings that stop the whole solution, since such a
string may begin in one step and end in the next. A solution ends with the token that
completes a string, and includes the whole token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.byte_search import search_tables
from tsi.errors import ConfigurationError


class Advance(NamedTuple):
    """The automata's state after a token, and whether step and solution end.

    Attributes:
        state: of both automata.
        ended: whether the step has ended.
        stopped: whether the solution has ended.
    """

    state: Int[Array, "*b"]
    ended: Bool[Array, "*b"]
    stopped: Bool[Array, "*b"]


class Boundary(NamedTuple):
    """Tables that define where steps and solutions end.

    Attributes:
        next_state: ``[A, V]``, the automaton's next state.
        ends: ``[A, V]``, whether the token completes a delimiter.
        stops: ``[V]``, whether the token ends the whole solution.
        padding: ``[V]``, ids without a token, which are never drawn; None if there are
            none.
        strings: ``[S, V]``, the next state of the search for strings that end the whole
            solution, -1 where the token completes one; None if there are no strings.
        min_tokens: the minimum number of tokens of a step, except at the end of the
            solution; None for 1.
    """

    next_state: Int[Array, "A V"]
    ends: Bool[Array, "A V"]
    stops: Bool[Array, " V"]
    padding: Bool[Array, " V"] | None = None
    strings: Int[Array, "S V"] | None = None
    min_tokens: int | None = None

    def mask_padding(self, logits: Float[Array, "*b V"]) -> Float[Array, "*b V"]:
        """A policy's logits, with -inf at ids that only pad its vocabulary."""
        return (
            logits
            if self.padding is None
            else jnp.where(self.padding, -jnp.inf, logits)
        )

    def stop_tokens(self, state: Int[Array, "*b"]) -> Bool[Array, "*b V"]:
        """Mark the tokens that would end the solution in a state of `advance`."""
        if self.strings is None:
            return jnp.broadcast_to(self.stops, (*state.shape, *self.stops.shape))
        return self.stops | (self.strings[state % self.strings.shape[0]] < 0)

    def advance(
        self, state: Int[Array, "*b"], token: Int[Array, "*b"], count: Int[Array, "..."]
    ) -> Advance:
        """Advance both automata by a token.

        Args:
            state: of both automata before the token; 0 at the start of a solution.
            token: token ids.
            count: number of the step's tokens, including this one; broadcasts.
        """
        stopped = self.stops[token]
        num_string_states, string_state = 1, jnp.zeros_like(state)
        if self.strings is not None:
            num_string_states = self.strings.shape[0]
            state, string_state = state // num_string_states, state % num_string_states
            string_state = self.strings[string_state, token].astype(state.dtype)
            stopped |= string_state < 0
            string_state = jnp.maximum(string_state, 0)
        ended = self.ends[state, token]
        if self.min_tokens is not None:
            ended &= count >= self.min_tokens
        ended |= stopped
        # The search restarts after a boundary, but not after a step that a limit cuts.
        state = jnp.where(ended, 0, self.next_state[state, token])
        return Advance(state * num_string_states + string_state, ended, stopped)


def step_boundary(
    token_bytes: Sequence[bytes],
    delimiter: bytes | Sequence[bytes],
    eos_ids: Sequence[int],
    *,
    padding: Sequence[int] = (),
    stop_strings: Sequence[bytes] = (),
    min_step_tokens: int = 1,
) -> Boundary:
    """Build the tables for a vocabulary and a delimiter.

    Args:
        token_bytes: the bytes that each token id decodes to, ``b""`` for control
            tokens.
        delimiter: the bytes that end a step, for example ``b"\\n\\n"``, or a list of
            such byte strings.
        eos_ids: tokens that end the solution (and its last step).
        padding: ids without a token, which are never drawn.
        stop_strings: byte strings that also end the solution.
        min_step_tokens: the minimum number of tokens of a step; an earlier delimiter
            does not end it.

    Raises:
        ConfigurationError: a delimiter or stop string is empty, an end token or padding
            id is out of range, an id is both an end token and padding, or
            min_step_tokens is below 1.
    """
    delimiters = [delimiter] if isinstance(delimiter, bytes | str) else delimiter
    if not len(delimiters) or not all(map(_is_string, delimiters)):
        raise ConfigurationError(
            f"The step delimiter is {delimiter!r}. Give at least one byte, such as "
            "b'\\n', or a list of such byte strings."
        )
    is_single_string = isinstance(stop_strings, bytes | str)
    if is_single_string or not all(map(_is_string, stop_strings)):
        raise ConfigurationError(
            f"The stop strings are {stop_strings!r}. Give a list of byte strings that "
            "are not empty."
        )
    if not isinstance(min_step_tokens, int | np.integer) or min_step_tokens < 1:
        raise ConfigurationError(
            f"min_step_tokens is {min_step_tokens!r}. Give an integer of at least 1."
        )
    size = len(token_bytes)
    ids_outside = [i for i in eos_ids if not 0 <= i < size]
    if ids_outside or not eos_ids:
        raise ConfigurationError(
            f"The end tokens {list(eos_ids)} are not ids of a vocabulary of {size} "
            "tokens. Give the tokenizer's own end-of-sequence ids."
        )
    invalid_ids = [i for i in padding if not 0 <= i < size or i in eos_ids]
    if invalid_ids:
        raise ConfigurationError(
            f"The ids {invalid_ids} cannot be padding of a vocabulary of {size} whose "
            f"end tokens are {list(eos_ids)}. Give ids that belong to no token."
        )
    next_state, ends = search_tables(token_bytes, delimiters)
    strings = None
    if len(stop_strings):
        next_string_state, complete = search_tables(token_bytes, stop_strings)
        # Every program holds the table in memory: one byte per entry if that is enough.
        dtype = np.int8 if len(next_string_state) < 128 else np.int32
        strings = jnp.asarray(np.where(complete, -1, next_string_state).astype(dtype))
    stops = np.zeros(size, bool)
    stops[list(eos_ids)] = True
    is_padding = np.zeros(size, bool)
    is_padding[list(padding)] = True
    return Boundary(
        jnp.asarray(next_state),
        jnp.asarray(ends),
        jnp.asarray(stops),
        jnp.asarray(is_padding) if len(padding) else None,
        strings,
        min_step_tokens if min_step_tokens > 1 else None,
    )


def _is_string(text: object) -> bool:
    return isinstance(text, bytes) and len(text) > 0
