"""Token ids: which a policy may write, and whether its readers have rows for them.

Models pad their vocabularies: Qwen2.5 of 1.5 billion weights has 151,936 rows and that
of 7 billion 152,064, for one tokenizer of 151,665 tokens. So neither number says
whether two models read the same text; their tokenizers do, and the rows that no token
has are never drawn (:class:`tsi.decoding.boundary.Boundary`). JAX reads beyond the end
of a table without a word, so a missing row must be found here.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from tsi.decoding.boundary import Boundary, step_boundary
from tsi.errors import ConfigurationError
from tsi.models.decoder_config import DecoderConfig
from tsi.models.tokens.tokenizer import Tokenizer


def boundary_of(
    tokenizer: Tokenizer,
    vocab_size: int,
    delimiter: bytes | Sequence[bytes],
    eos_ids: Sequence[int],
    *,
    stop_strings: Sequence[bytes] = (),
    min_step_tokens: int = 1,
) -> Boundary:
    """Where steps of a policy end; what its tokenizer does not know is never drawn.

    Args:
        tokenizer: of the policy.
        vocab_size: its rows, padding included.
        delimiter: the bytes that end a step, or several, each of which does.
        eos_ids: tokens that end the solution; may be drawn in any case.
        stop_strings, min_step_tokens: see :func:`tsi.decoding.boundary.step_boundary`.

    Raises:
        ConfigurationError: see :func:`tsi.decoding.boundary.step_boundary`.
    """
    unknown = [id for id in range(vocab_size) if tokenizer.meaning(id) is None]
    return step_boundary(
        [tokenizer.token_bytes(id) for id in range(vocab_size)],
        delimiter,
        eos_ids,
        padding=sorted({*unknown} - {*eos_ids}),
        stop_strings=stop_strings,
        min_step_tokens=min_step_tokens,
    )


def check_rows(
    boundary: Boundary, policy: DecoderConfig, readers: Iterable[DecoderConfig]
) -> None:
    """Refuse models that lack rows for what the policy may write.

    Raises:
        ConfigurationError: a reward model has no row for a token that may be drawn, or
            the boundary does not know one.
    """
    known, size = len(boundary.stops), policy.vocab_size
    if known < size:
        raise ConfigurationError(
            f"The boundary knows {known} token ids and the policy has {size}; give "
            "step_boundary the bytes of every id, padding included."
        )
    drawn = np.ones(size, bool)
    if boundary.padding is not None:
        drawn = ~np.asarray(boundary.padding)[:size]
    last = int(np.flatnonzero(drawn)[-1])
    for reader in readers:
        if last >= reader.vocab_size:
            raise ConfigurationError(
                f"The policy has {size} token ids and the reward model "
                f"{reader.vocab_size}; it reads the policy's ids, which go up to "
                f"{last}, and lacks rows for the last of them. Choose a reward model "
                "of the policy's tokenizer; if the ids beyond are padding, name them "
                "to step_boundary, so that they are never drawn."
            )


def check_prompt(id: int | str, tokens: Sequence[int], num_rows: int) -> None:
    """Refuse a prompt with token ids that a model has no row for.

    Args:
        id: the problem's, for the message.
        tokens: of the prompt.
        num_rows: the fewest of the models that read it.

    Raises:
        ConfigurationError: an id is out of range.
    """
    beyond = sorted({token for token in tokens if not 0 <= token < num_rows})
    if beyond:
        raise ConfigurationError(
            f"The prompt of problem {id!r} has the token ids "
            f"{', '.join(map(str, beyond[:5]))}, and a model that reads it has rows "
            f"for 0 to {num_rows - 1}. Give the models' own tokenizer."
        )


def first_difference(policy: Tokenizer, reader: Tokenizer) -> int | None:
    """The first id of the policy's tokenizer that another takes for something else.

    What the other knows besides does not matter: the policy does not write it.
    """
    for id in range(policy.num_ids):
        meaning = policy.meaning(id)
        if meaning is not None and meaning != reader.meaning(id):
            return id
    return None
