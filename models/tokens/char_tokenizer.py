"""Tokenizers of the tiny models: one token per character."""

import tokenizers
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers
from tokenizers import models as token_models

from tsi.errors import ConfigurationError
from tsi.models.tokens.tokenizer import Tokenizer

EOS, PAD = "<eos>", "<pad>"


def char_tokenizer(alphabet: str) -> Tokenizer:
    """A tokenizer with one token per character, for tiny models.

    Id 0 pads, id 1 ends a solution, and the characters have the ids from 2 on.

    Raises:
        ConfigurationError: a character occurs twice.
    """
    names = [PAD, EOS, *alphabet]
    if len(set(names)) < len(names):
        raise ConfigurationError("A character occurs twice in the alphabet.")
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = tokenizers.Tokenizer(token_models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([_control(PAD), _control(EOS)])
    return Tokenizer(backend, eos_ids=[1], pad_id=0)


def _control(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)
