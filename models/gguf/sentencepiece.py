"""SentencePiece BPE from a GGUF file (the tokenizer model ``llama``).

Llama 2, Mistral, Phi-3 and Gemma 3 have it. Such a file has a score for each token and
no merges: two neighbouring tokens are merged if the vocabulary has their joined text,
the one with the best score first. The ``tokenizers`` package needs the merges in order,
which follow from the scores.

References: Kudo & Richardson 2018, arXiv 1808.06226; llama.cpp's src/llama-vocab.cpp.
"""

import tokenizers
from tokenizers import decoders, normalizers
from tokenizers import models as token_models

from tsi.errors import CheckpointError
from tsi.models.gguf.vocabulary import (
    BYTE,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    add_named_tokens,
)

SPACE = "▁"
NUM_BYTES = 256


def sentencepiece_bpe(
    vocabulary: Vocabulary, *, space_prefix: bool, rstrip: bool = False
) -> tokenizers.Tokenizer:
    """Build the tokenizer.

    Args:
        vocabulary: of the file.
        space_prefix: whether a space is put before the text, and before the text that
            follows a control token (``tokenizer.ggml.add_space_prefix``).
        rstrip: whether control tokens strip the white space after them.

    Raises:
        CheckpointError: there are no scores, or neither a token for each byte nor one
            for unknown text.
    """
    if vocabulary.scores is None:
        raise CheckpointError(
            f"{vocabulary.path} has no scores of tokens (tokenizer.ggml.scores), which "
            "a SentencePiece tokenizer needs to merge. Convert the model again."
        )
    num_bytes = len(vocabulary.of_kind(BYTE))
    unknown = next(iter(vocabulary.of_kind(UNKNOWN)), None)
    if num_bytes != NUM_BYTES and (num_bytes or unknown is None):
        raise CheckpointError(
            f"{vocabulary.path} has {num_bytes} tokens of single bytes; it must have "
            "256, or none and a token for unknown text. Convert the model again."
        )
    backend = tokenizers.Tokenizer(
        token_models.BPE(
            vocabulary.ids,
            merges_by_score(vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=num_bytes == NUM_BYTES,
        )
    )
    prefix = [normalizers.Prepend(SPACE)] if space_prefix else []
    backend.normalizer = normalizers.Sequence(
        [*prefix, normalizers.Replace(" ", SPACE)]
    )
    strip = [decoders.Strip(" ", left=1)] if space_prefix else []
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *strip,
        ]
    )
    add_named_tokens(backend, vocabulary, rstrip=rstrip)
    return backend


def gemma_vocabulary(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary of a Gemma model as transformers has it.

    The converter writes runs of spaces as tokens that are never merged. In transformers
    they are merged like other tokens. The order of merges is that of the ids, not that
    of the scores.
    """
    runs = {
        id
        for id, (token, kind) in enumerate(
            zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        )
        if kind == USER_DEFINED and token and not token.strip(" ")
    }
    tokens = [
        token.replace(" ", SPACE) if id in runs else token
        for id, token in enumerate(vocabulary.tokens)
    ]
    if len(set(tokens)) < len(tokens):
        raise CheckpointError(
            f"{vocabulary.path} has runs of spaces twice in its vocabulary. Convert "
            "the model again."
        )
    kinds = [NORMAL if id in runs else k for id, k in enumerate(vocabulary.kinds)]
    scores = [-float(id) for id in range(len(tokens))]
    return vocabulary._replace(tokens=tokens, kinds=kinds, scores=scores)


def merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges that follow from the scores, first to last.

    Each split of a token into two tokens is a merge with the token's score. Only normal
    tokens take part: if characters could be merged to a control token, a text could
    write it. Among equal scores the smaller id comes first, because some converters
    write a constant score. Among the merges of one token the one with the longer left
    part comes first, as in the merges that transformers extracts.
    """
    scores = vocabulary.scores or []
    normal = {
        token: id
        for id, (token, kind) in enumerate(
            zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        )
        if kind == NORMAL
    }
    merges = [
        ((-scores[id], id, -cut), (token[:cut], token[cut:]))
        for token, id in normal.items()
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    return [pair for _, pair in sorted(merges)]
