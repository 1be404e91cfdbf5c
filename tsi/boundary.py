"""Where a reasoning step ends, decided on token ids inside a compiled loop.

A delimiter such as a blank line may be one token, the tail of a token, or span several
tokens. The search for it is the Knuth–Morris–Pratt automaton over bytes, lifted to
tokens: ``next_state[a, v]`` is the automaton's state after reading all bytes of token v
from state a, and ``ends[a, v]`` says whether the delimiter was completed on the way.
The delimiter's tokens stay in the step and in its density.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tsi.errors import ConfigurationError


class Boundary(NamedTuple):
    """Tables that tell where steps and solutions end.

    Attributes:
        next_state: ``[A, V]``, the automaton's next state.
        ends: ``[A, V]``, whether the token completes the delimiter.
        stops: ``[V]``, whether the token ends the whole solution.
        padding: ``[V]``, ids that stand for nothing and are never drawn; None if there
            are none.
    """

    next_state: Int[Array, "A V"]
    ends: Bool[Array, "A V"]
    stops: Bool[Array, " V"]
    padding: Bool[Array, " V"] | None = None

    def among_tokens(self, logits: Float[Array, "*b V"]) -> Float[Array, "*b V"]:
        """A policy's logits without what only pads its vocabulary."""
        return (
            logits
            if self.padding is None
            else jnp.where(self.padding, -jnp.inf, logits)
        )


def step_boundary(
    token_bytes: Sequence[bytes],
    delimiter: bytes,
    eos_ids: Sequence[int],
    *,
    padding: Sequence[int] = (),
) -> Boundary:
    """Build the tables for a vocabulary and a delimiter.

    Args:
        token_bytes: the bytes that each token id decodes to, ``b""`` for control
            tokens.
        delimiter: the bytes that end a step, for example ``b"\\n\\n"``.
        eos_ids: tokens that end the solution (and its last step).
        padding: ids that no token has, which the policy is not to write.

    Raises:
        ConfigurationError: the delimiter is empty, or an end token or padding is out of
            range, or one is both.
    """
    if not delimiter:
        raise ConfigurationError(
            "The step delimiter is empty; give at least one byte, such as b'\\n'."
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
    automaton = _byte_automaton(delimiter)
    next_state = np.zeros((len(delimiter), size), np.int32)
    ends = np.zeros((len(delimiter), size), bool)
    for start in range(len(delimiter)):
        for token, text in enumerate(token_bytes):
            state = start
            for byte in text:
                state = automaton[state, byte]
                if state == len(delimiter):
                    ends[start, token] = True
                    state = 0
            next_state[start, token] = state
    stops = np.zeros(size, bool)
    stops[list(eos_ids)] = True
    padded = np.zeros(size, bool)
    padded[list(padding)] = True
    return Boundary(
        jnp.asarray(next_state),
        jnp.asarray(ends),
        jnp.asarray(stops),
        jnp.asarray(padded) if len(padding) else None,
    )


def _byte_automaton(pattern: bytes) -> np.ndarray:
    """Transitions ``[len(pattern), 256]``; state = bytes of the pattern matched."""
    table = np.zeros((len(pattern), 256), np.int32)
    for state in range(len(pattern)):
        for byte in range(256):
            seen = pattern[:state] + bytes([byte])
            table[state, byte] = next(
                n for n in range(len(seen), -1, -1) if seen.endswith(pattern[:n])
            )
    return table
