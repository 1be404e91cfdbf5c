"""Where a reasoning step ends, decided on token ids inside a compiled loop.

A delimiter such as a blank line may be one token, the tail of a token, or span several
tokens. The search for it is an automaton over bytes (:mod:`tsi.decoding.byte_search`)
lifted to
tokens: ``next_state[a, v]`` is the automaton's state after reading all bytes of token v
from state a, and ``ends[a, v]`` says whether a delimiter was completed on the way. The
delimiter's tokens stay in the step and in its density.

Strings that stop the whole solution are searched for by an automaton of their own,
since a step that ends is no reason to forget the beginning of one of them. A solution
ends with the token that completes a string, and keeps all of that token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.byte_search import search_tables
from tsi.errors import ConfigurationError


class Advance(NamedTuple):
    """What a token makes of rows: their state, and whether step and solution end."""

    state: Int[Array, "*b"]
    ended: Bool[Array, "*b"]
    stopped: Bool[Array, "*b"]


class Boundary(NamedTuple):
    """Tables that tell where steps and solutions end.

    Attributes:
        next_state: ``[A, V]``, the automaton's next state.
        ends: ``[A, V]``, whether the token completes a delimiter.
        stops: ``[V]``, whether the token ends the whole solution.
        padding: ``[V]``, ids that stand for nothing and are never drawn; None if there
            are none.
        strings: ``[S, V]``, the next state of the search for strings that end the whole
            solution, -1 where the token completes one; None if there are none.
        least: tokens that a step has at least, unless the solution ends; None for one.
    """

    next_state: Int[Array, "A V"]
    ends: Bool[Array, "A V"]
    stops: Bool[Array, " V"]
    padding: Bool[Array, " V"] | None = None
    strings: Int[Array, "S V"] | None = None
    least: int | None = None

    def mask_padding(self, logits: Float[Array, "*b V"]) -> Float[Array, "*b V"]:
        """A policy's logits without what only pads its vocabulary."""
        return (
            logits
            if self.padding is None
            else jnp.where(self.padding, -jnp.inf, logits)
        )

    def stop_tokens(self, state: Int[Array, "*b"]) -> Bool[Array, "*b V"]:
        """Mark the tokens that end the solution, read in a state of `advance`."""
        if self.strings is None:
            return jnp.broadcast_to(self.stops, (*state.shape, *self.stops.shape))
        return self.stops | (self.strings[state % self.strings.shape[0]] < 0)

    def advance(
        self, state: Int[Array, "*b"], token: Int[Array, "*b"], count: Int[Array, "..."]
    ) -> Advance:
        """Read a token.

        Args:
            state: before it; 0 at the beginning of a solution. One number for both
                automata.
            token: ids.
            count: of the step's tokens, this one included; broadcasts.
        """
        stopped = self.stops[token]
        searched, searching = 1, jnp.zeros_like(state)
        if self.strings is not None:
            searched = self.strings.shape[0]
            state, searching = state // searched, state % searched
            searching = self.strings[searching, token].astype(state.dtype)
            stopped |= searching < 0
            searching = jnp.maximum(searching, 0)
        ended = self.ends[state, token]
        if self.least is not None:
            ended &= count >= self.least
        ended |= stopped
        # Afresh after a boundary, on from here where the step is cut.
        state = jnp.where(ended, 0, self.next_state[state, token])
        return Advance(state * searched + searching, ended, stopped)


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
        delimiter: the bytes that end a step, for example ``b"\\n\\n"``; or several,
            each of which does.
        eos_ids: tokens that end the solution (and its last step).
        padding: ids that no token has, which the policy is not to write.
        stop_strings: bytes that end the solution as well.
        min_step_tokens: a delimiter that comes sooner does not end the step.

    Raises:
        ConfigurationError: a delimiter or stop string is empty, an end token or padding
            is out of range, or one is both, or steps have less than one token.
    """
    delimiters = [delimiter] if isinstance(delimiter, bytes | str) else delimiter
    if not len(delimiters) or not all(map(_is_string, delimiters)):
        raise ConfigurationError(
            f"The step delimiter is {delimiter!r}; give at least one byte, such as "
            "b'\\n', or a list of such byte strings."
        )
    alone = isinstance(stop_strings, bytes | str)
    if alone or not all(map(_is_string, stop_strings)):
        raise ConfigurationError(
            f"The stop strings are {stop_strings!r}; give a list of byte strings, none "
            "of which is empty."
        )
    if not isinstance(min_step_tokens, int | np.integer) or min_step_tokens < 1:
        raise ConfigurationError(
            f"A step has at least one token, and min_step_tokens is "
            f"{min_step_tokens!r}."
        )
    size = len(token_bytes)
    outside = [i for i in eos_ids if not 0 <= i < size]
    if outside or not eos_ids:
        raise ConfigurationError(
            f"End tokens {list(eos_ids)} do not name entries of a vocabulary of {size}"
            "; give the tokenizer's own end-of-sequence ids."
        )
    wrong = [i for i in padding if not 0 <= i < size or i in eos_ids]
    if wrong:
        raise ConfigurationError(
            f"The ids {wrong} cannot be padding of a vocabulary of {size} whose end "
            f"tokens are {list(eos_ids)}; name ids that stand for no token."
        )
    next_state, ends = search_tables(token_bytes, delimiters)
    strings = None
    if len(stop_strings):
        following, halts = search_tables(token_bytes, stop_strings)
        # Programs hold the table, and few states fit into a byte.
        small = np.int8 if len(following) < 128 else np.int32
        strings = jnp.asarray(np.where(halts, -1, following).astype(small))
    stops = np.zeros(size, bool)
    stops[list(eos_ids)] = True
    padded = np.zeros(size, bool)
    padded[list(padding)] = True
    return Boundary(
        jnp.asarray(next_state),
        jnp.asarray(ends),
        jnp.asarray(stops),
        jnp.asarray(padded) if len(padding) else None,
        strings,
        min_step_tokens if min_step_tokens > 1 else None,
    )


def _is_string(text: object) -> bool:
    return isinstance(text, bytes) and len(text) > 0
