"""Token ids: which ids a policy may draw, and whether all readers have rows for them.

Models pad their vocabularies: Qwen2.5 with 1.5 billion weights has 151,936 rows and
with 7 billion weights 152,064 rows, for the same tokenizer of 151,665 tokens. Equal
numbers of rows do not mean that two models read the same text, so their tokenizers must
be compared. Rows without a token are never drawn
(:class:`tsi.decoding.boundary.Boundary`). JAX clips an index beyond the end of a table
silently, so a missing row must be found here.
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
    """The boundary of a policy; ids that are not in its tokenizer are never drawn.

    Args:
        tokenizer: the policy's tokenizer.
        vocab_size: number of rows of the policy, including padding.
        delimiter: the bytes that end a step, or a list of such byte strings.
        eos_ids: tokens that end the solution; they can always be drawn.
        stop_strings, min_step_tokens: see :func:`tsi.decoding.boundary.step_boundary`.

    Raises:
        ConfigurationError: the policy cannot write one of the strings; or see
            :func:`tsi.decoding.boundary.step_boundary`.
    """
    token_bytes = [tokenizer.token_bytes(id) for id in range(vocab_size)]
    unknown = [id for id in range(vocab_size) if tokenizer.meaning(id) is None]
    boundary = step_boundary(
        token_bytes,
        delimiter,
        eos_ids,
        padding=sorted({*unknown} - {*eos_ids}),
        stop_strings=stop_strings,
        min_step_tokens=min_step_tokens,
    )
    delimiters = [delimiter] if isinstance(delimiter, bytes) else delimiter
    for string in (*delimiters, *stop_strings):
        check_is_written(string, tokenizer, token_bytes)
    return boundary


def check_is_written(
    string: bytes, tokenizer: Tokenizer, token_bytes: Sequence[bytes]
) -> None:
    """Refuse a delimiter or stop string that the policy's texts cannot contain.

    Raises:
        ConfigurationError: it has the name of a control token, which has no text, or a
            byte that is in no token.
    """
    name = string.decode("utf-8", "replace")
    check_names_no_control(name, tokenizer)
    missing = set(string).difference(*token_bytes)
    if missing:
        raise ConfigurationError(
            f"The policy has no token with the byte {bytes([min(missing)])!r}, so it "
            f"cannot write {name!r}. Choose another delimiter or stop string."
        )


def check_names_no_control(string: str, tokenizer: Tokenizer) -> None:
    """Refuse a delimiter or stop string with the name of a control token.

    Raises:
        ConfigurationError: see above.
    """
    control = next((x for x in tokenizer.special_ids if x and x in string), None)
    if control is not None:
        raise ConfigurationError(
            f"The string {string!r} contains the control token {control}, which has no "
            "text, so that it would never be found. Leave it out: the policy's end "
            "tokens end a solution anyway."
        )


def check_rows(
    boundary: Boundary, policy: DecoderConfig, readers: Iterable[DecoderConfig]
) -> None:
    """Refuse models that lack rows for tokens that the policy may draw.

    Raises:
        ConfigurationError: a reward model has no row for a token that may be drawn, or
            the boundary does not know the token.
    """
    num_known, size = len(boundary.stops), policy.vocab_size
    if num_known < size:
        raise ConfigurationError(
            f"The boundary knows {num_known} token ids and the policy has {size}. Give "
            "step_boundary the bytes of every id, padding included."
        )
    can_be_drawn = np.ones(size, bool)
    if boundary.padding is not None:
        can_be_drawn = ~np.asarray(boundary.padding)[:size]
    last = int(np.flatnonzero(can_be_drawn)[-1])
    for reader in readers:
        if last >= reader.vocab_size:
            raise ConfigurationError(
                f"The policy has {size} token ids and the reward model "
                f"{reader.vocab_size}. The reward model reads the policy's ids, which "
                f"go up to {last}, and lacks rows for the last of them. Choose a "
                "reward model with the policy's tokenizer. If these ids are padding, "
                "give them to step_boundary as padding, so that they are never drawn."
            )


def check_prompt(id: int | str, tokens: Sequence[int], num_rows: int) -> None:
    """Refuse a prompt with token ids for which a model has no row.

    Args:
        id: the problem's id, for the message.
        tokens: token ids of the prompt.
        num_rows: the smallest number of rows among the models that read it.

    Raises:
        ConfigurationError: an id is out of range.
    """
    unknown_ids = sorted({token for token in tokens if not 0 <= token < num_rows})
    if unknown_ids:
        raise ConfigurationError(
            f"The prompt of problem {id!r} has the token ids "
            f"{', '.join(map(str, unknown_ids[:5]))}, and a model that reads it has "
            f"rows for 0 to {num_rows - 1}. Give the models' own tokenizer."
        )


def first_difference(policy: Tokenizer, reader: Tokenizer) -> int | None:
    """The first id that means different tokens for the policy and the reader.

    Further ids of the reader are ignored, since the policy does not draw them.
    """
    for id in range(policy.num_ids):
        meaning = policy.meaning(id)
        if meaning is not None and meaning != reader.meaning(id):
            return id
    return None
