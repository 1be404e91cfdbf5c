"""vLLM's endpoints of scoring models: ``/pooling`` for tokens, ``/classify`` for texts.

A request has the field ``input``, a list of token ids, and ``use_activation``: whether
the server applies a softmax (a sigmoid if there is one output). Versions that do not
know the field ignore it, so :func:`tsi.serving.served_prm.is_probability` measures what
comes back.

References:
    docs/models/pooling_models (reward.md, token_classify.md, classify.md) and
    vllm/entrypoints/pooling/{base,pooling,classify}/protocol.py of vllm-project/vllm.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tsi.errors import ServerError
from tsi.serving.dialect import Call
from tsi.serving.reading import count, field, integer, number

MAX_LABELS = 2


def pooling_call(
    tokens: Sequence[int], model: str | None, *, activation: bool = False
) -> Call:
    """A request for a score at each token.

    Args:
        tokens: token ids.
        model: name of the server's model, or None.
        activation: True requests probabilities, False logits.
    """
    body = _body(tokens, model, activation)
    return Call(
        "/pooling", body | {"task": "token_classify", "encoding_format": "float"}
    )


def classify_call(
    tokens: Sequence[int], model: str | None, *, activation: bool = False
) -> Call:
    """A request for one score at the last token; arguments as of `pooling_call`."""
    return Call("/classify", _body(tokens, model, activation))


def read_pooling(reply: Any, max_scores: int) -> tuple[Float[np.ndarray, "T K"], int]:
    """The scores of a reply to `pooling_call`, and the number of tokens that were read.

    Args:
        reply: JSON.
        max_scores: the maximum number of tokens that may have a score.

    Raises:
        ServerError: the reply is malformed.
    """
    rows = field(reply, "data", 0, "data")
    if not isinstance(rows, list) or not 0 < len(rows) <= max_scores:
        size = len(rows) if isinstance(rows, list) else type(rows).__name__
        raise ServerError(
            f"The reward server's scores are {size}; they must be a list of at most "
            f"{max_scores} numbers, one per token. Does the model score tokens (vLLM: "
            "--runner pooling)?"
        )
    return _table([r if isinstance(r, list) else [r] for r in rows]), _read(reply)


def read_classify(reply: Any) -> tuple[Float[np.ndarray, "T K"], int]:
    """As `read_pooling`, for a reply to `classify_call`; one row of scores."""
    values = field(reply, "data", 0, "probs")
    if not isinstance(values, list):
        raise ServerError(
            f"The reward server's classes are {type(values).__name__}, and must be a "
            "list of numbers."
        )
    return _table([values]), _read(reply)


def _body(tokens: Sequence[int], model: str | None, activation: bool) -> dict[str, Any]:
    body = {
        "input": list(tokens),
        "use_activation": activation,
        "add_special_tokens": False,
    }
    return body if model is None else {"model": model, **body}


def _table(rows: list[list[Any]]) -> Float[np.ndarray, "T K"]:
    labels = len(rows[0])
    if not 1 <= labels <= MAX_LABELS or any(len(row) != labels for row in rows):
        raise ServerError(
            f"The reward server gives {labels} numbers per token, and a reward has "
            "one, or two for bad and good. It serves a model of another kind, such as "
            "one of embeddings."
        )
    return np.asarray([[number(x, "score") for x in row] for row in rows], np.float64)


def _read(reply: Any) -> int:
    read = integer(field(reply, "usage", "prompt_tokens"), "count")
    cached = count(reply, "usage", "prompt_tokens_details", "cached_tokens")
    return max(read - cached, 0)
