"""The probabilities of a few given tokens as the next one."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from tsi.errors import ServerError

NO_LOWER = -9999.0
"""Servers that cannot write minus infinity write this number instead."""


class Choice(NamedTuple):
    """A server's log-probabilities of candidates for the next token.

    Attributes:
        log_probs: log-probability of each candidate, up to a common constant.
        bounded: number of candidates that the server did not name because they are too
            unlikely; their log-probabilities are upper bounds.
        prompt_tokens: tokens of the prefix, as the server counts them.
        cached_tokens: how many of these were read from the server's cache.
    """

    log_probs: tuple[float, ...]
    bounded: int
    prompt_tokens: int
    cached_tokens: int

    @property
    def tokens_read(self) -> int:
        """Tokens that were not in the server's cache."""
        return max(self.prompt_tokens - self.cached_tokens, 0)


@runtime_checkable
class Chooser(Protocol):
    """A language model that gives log-probabilities of given next tokens."""

    async def choose(self, tokens: Sequence[int], candidates: Sequence[int]) -> Choice:
        """The probabilities of candidates after a prefix; both are ids."""


def choice_of(
    named: Mapping[int, float],
    candidates: Sequence[int],
    prompt_tokens: int,
    cached_tokens: int,
) -> Choice:
    """The choice among candidates from the log-probabilities of the most likely tokens.

    A candidate that the server does not name is less likely than all tokens that it
    names, so the smallest of the named probabilities is an upper bound.

    Args:
        named: log-probabilities by token id.
        candidates: token ids.
        prompt_tokens, cached_tokens: see :class:`Choice`.

    Raises:
        ServerError: the server names none of the candidates.
    """
    finite_log_probs = [x for x in named.values() if x > NO_LOWER and not math.isinf(x)]
    known_ids = [id for id in candidates if named.get(id, -math.inf) > NO_LOWER]
    if not known_ids:
        raise ServerError(
            f"The server's {len(named)} most likely next tokens include none of the "
            f"{len(candidates)} answers of the judge, so it cannot judge. Use another "
            "judge or question."
        )
    log_probs = tuple(
        named[id] if id in known_ids else min(finite_log_probs) for id in candidates
    )
    return Choice(
        log_probs, len(candidates) - len(known_ids), prompt_tokens, cached_tokens
    )
