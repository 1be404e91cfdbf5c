"""The model of a scripted server: a Markov chain over a few tokens.

Every solution and its probability can be listed.
"""

from typing import Any

import numpy as np

PIECES = ("<s>", "1", "2", "+", "\n", "</s>", "\n\n")
"""Text of each token; the first begins a prompt and the sixth ends a solution."""
BOS, EOS = 0, 5
PROBABILITIES = np.asarray(
    [
        # <s>   1    2     +    \n   </s>  \n\n
        [0.0, 0.45, 0.25, 0.1, 0.1, 0.05, 0.05],
        [0.0, 0.1, 0.2, 0.3, 0.2, 0.15, 0.05],
        [0.0, 0.25, 0.05, 0.15, 0.25, 0.2, 0.1],
        [0.0, 0.4, 0.4, 0.05, 0.05, 0.05, 0.05],
        [0.0, 0.3, 0.3, 0.05, 0.05, 0.25, 0.05],
        [0.0, 0.2, 0.2, 0.2, 0.2, 0.1, 0.1],
        [0.0, 0.2, 0.4, 0.1, 0.1, 0.1, 0.1],
    ]
)
"""Of the next token after each."""


def text_of(tokens: Any) -> str:
    """The text of tokens without those that begin and end."""
    return "".join(PIECES[t] for t in tokens if t not in (BOS, EOS))


def tokens_of(text: str) -> list[int]:
    """Tokens of a text: two line ends are one, and all other characters are "1"."""
    found = []
    while text:
        piece = "\n\n" if text.startswith("\n\n") else text[0]
        found.append(PIECES.index(piece) if piece in PIECES else 1)
        text = text[len(piece) :]
    return found


def apply_controls(
    row: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> np.ndarray:
    """Probabilities after temperature and truncation."""
    if temperature == 0:
        return np.eye(len(row))[np.argmax(row)]
    p = row ** (1 / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = np.zeros(len(p), bool)
    kept = order[: top_k if top_k > 0 else len(p)]
    before = np.concatenate([[0.0], np.cumsum(p[kept])[:-1]])
    keep[kept[before < top_p]] = True
    keep &= p >= min_p * p.max()
    p = np.where(keep, p, 0.0)
    return p / p.sum()


class Drawn:
    """One completion: its tokens, why it ended, and log-probabilities."""

    def __init__(self, prompt: list[int], most: int, stops: list[str], draw: Any):
        self.tokens: list[int] = []
        self.raw: list[float] = []
        self.processed: list[float] = []
        self.reason, self.word = "limit", ""
        while len(self.tokens) < most:
            row = draw.next_of((*prompt, *self.tokens))
            p = draw.apply_controls(row)
            token = int(np.searchsorted(np.cumsum(p), draw.uniform(), side="right"))
            token = min(token, len(p) - 1)
            self.tokens.append(token)
            with np.errstate(divide="ignore"):
                self.raw.append(float(np.log(row[token])))
                self.processed.append(float(np.log(p[token])))
            if token == EOS:
                self.reason = "eos"
                return
            text = text_of(self.tokens)
            found = [word for word in stops if word in text]
            if found:
                self.reason = "word"
                self.word = min(found, key=text.find)
                return

    @property
    def text_before_stop(self) -> str:
        """The text without the string that has stopped it."""
        text = text_of(self.tokens)
        return text[: text.find(self.word)] if self.reason == "word" else text


def next_of_chain(tokens: tuple[int, ...]) -> np.ndarray:
    """Probabilities of the next token in the Markov chain."""
    return PROBABILITIES[tokens[-1]]


class Draw:
    """The model, the random numbers and the controls of one completion."""

    def __init__(self, seed: int, controls: dict[str, float], next_of: Any):
        self._rng = np.random.default_rng(seed)
        self._controls, self.next_of = controls, next_of

    def uniform(self) -> float:
        return float(self._rng.random())

    def apply_controls(self, row: np.ndarray) -> np.ndarray:
        return apply_controls(row, **self._controls)  # type: ignore[arg-type]
