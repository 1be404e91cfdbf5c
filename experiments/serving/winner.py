"""The text that answers a request: one solution with the selected answer.

A sampler's rule selects an answer, which several particles may have. Of these the text
is that of the largest weight, or, for a rule that takes the best score, of the largest
reward; the other of the two, and then the order of particles, decides between equals. A
question without an answer that could be extracted, such as a request for a poem, leaves
all particles to choose from. A particle that was cut at a limit comes last.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tsi.models.tokens.spelling import Spelling
from tsi.results.result import Result

BROKEN = "�"


class Winner(NamedTuple):
    """The text of a response.

    Attributes:
        particle: index of the particle.
        pieces: of its text, one per step.
        tokens: of the text.
        is_cut: whether it ends at a limit of tokens or steps.
    """

    particle: int
    pieces: tuple[str, ...]
    tokens: int
    is_cut: bool

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


def choose_particle(result: Result) -> int:
    """The particle whose text is returned; see the docstring of the module."""
    indices = list(range(len(result.texts)))
    if result.selected is not None:
        indices = [n for n in indices if result.answers[n] == result.selected]
    truncated = result.particles.truncated
    weights, rewards = _ranks(result.log_weights), _ranks(result.rewards)
    first, second = weights, rewards
    if result.estimand.select == "argmax":
        first, second = rewards, weights

    def order(n: int) -> tuple[bool, float, float, int]:
        is_whole = truncated is None or not truncated[n]
        return is_whole, first[n], second[n], -n

    return max(indices, key=order)


def choose_winner(
    result: Result, tokenizer: Spelling, max_tokens: int | None
) -> Winner:
    """The winning text, cut to a number of tokens.

    Args:
        result: of one problem.
        tokenizer: of the policy; it counts tokens.
        max_tokens: of the text; None for no further limit.
    """
    particle = choose_particle(result)
    truncated, steps = result.particles.truncated, result.particles.step_texts
    is_cut = truncated is not None and bool(truncated[particle])
    pieces = [result.texts[particle]] if steps is None else steps[particle]
    text = "".join(pieces)
    ids = tokenizer.encode(text)
    if max_tokens is not None and len(ids) > max_tokens:
        ids, is_cut = ids[:max_tokens], True
        prefix = tokenizer.decode(ids)
        # The last token may end within a character.
        while prefix.endswith(BROKEN) and not text.startswith(prefix):
            prefix = prefix[:-1]
        pieces = _first_characters(pieces, len(prefix))
    return Winner(particle, tuple(pieces), len(ids), is_cut)


def _ranks(numbers: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """The numbers, with NaN below all others."""
    numbers = np.asarray(numbers, np.float64)
    return np.where(np.isnan(numbers), -np.inf, numbers)


def _first_characters(pieces: Sequence[str], length: int) -> list[str]:
    """The pieces of the first characters of a text."""
    pieces_left = []
    for piece in pieces:
        pieces_left.append(piece[:length])
        length -= len(pieces_left[-1])
        if not length:
            break
    return pieces_left
