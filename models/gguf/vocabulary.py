"""The vocabulary of a GGUF file: tokens, their kinds, scores and merges."""

from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken

from tsi.errors import CheckpointError
from tsi.models.gguf.config import TURN_ENDS

# Values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

MAX_LENGTH = 1024
"""Characters of a token. All splits of a token are tried, in a time proportional to the
square of its length."""


class Vocabulary(NamedTuple):
    """The tokens of a GGUF file.

    Attributes:
        path: the file, for messages.
        tokens: by id; no two are equal.
        kinds: of each token.
        scores: of each token, the largest is merged first; None in a file without.
        merges: pairs of tokens separated by a space, first to last.
    """

    path: Path
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None
    merges: list[str]

    @property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        return {token: id for id, token in enumerate(self.tokens)}

    def of_kind(self, *kinds: int) -> list[str]:
        """The tokens of some kinds, without empty ones."""
        pairs = zip(self.tokens, self.kinds, strict=True)
        return [token for token, kind in pairs if kind in kinds and token]


def read_vocabulary(path: Path, metadata: dict[str, Any]) -> Vocabulary:
    """Read and check the lists under ``tokenizer.ggml``.

    Raises:
        CheckpointError: there are none, or their lengths or contents contradict each
            other.
    """

    def field(name: str) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}")

    tokens, merges, scores = field("tokens"), field("merges") or [], field("scores")
    if not (_is_list_of(tokens, str) and tokens and _is_list_of(merges, str)):
        raise CheckpointError(f"{path} has no vocabulary or no merges.")
    longest = max(map(len, tokens))
    if longest > MAX_LENGTH:
        raise CheckpointError(
            f"{path} has a token of {longest} characters; at most {MAX_LENGTH} are "
            "read. Convert or download the model again."
        )
    kinds = field("token_type") or [NORMAL] * len(tokens)
    num_distinct = len(set(tokens))
    if not _is_list_of(kinds, int) or not len(kinds) == num_distinct == len(tokens):
        raise CheckpointError(
            f"{path} has an inconsistent vocabulary: {len(tokens)} tokens, "
            f"{num_distinct} different, {len(kinds)} kinds. Convert or download the "
            "model again."
        )
    if scores is not None and not (
        _is_list_of(scores, float) and len(scores) == num_distinct
    ):
        raise CheckpointError(
            f"{path} has scores of tokens that are not one number per token. Convert "
            "or download the model again."
        )
    # Some converters mark these as text, and then a message could end its own turn.
    kinds = [
        CONTROL if token in TURN_ENDS else kind
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    return Vocabulary(path, tokens, kinds, scores, merges)


def add_named_tokens(
    backend: tokenizers.Tokenizer, vocabulary: Vocabulary, *, rstrip: bool = False
) -> None:
    """Mark the control tokens of a tokenizer, and the tokens that are never merged.

    Args:
        backend: built from the same vocabulary.
        vocabulary: of the file.
        rstrip: whether control tokens strip the white space after them.
    """
    backend.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False, rstrip=rstrip)
            for t in vocabulary.of_kind(CONTROL, UNKNOWN)
        ]
    )
    backend.add_tokens(
        [
            AddedToken(t, special=False, normalized=False)
            for t in vocabulary.of_kind(USER_DEFINED)
        ]
    )


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
