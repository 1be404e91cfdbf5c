"""Texts that grow are encoded from a word's end on, and get the ids of the whole."""

import itertools

import numpy as np
import pytest
import tokenizers
from small_checkpoints import CORPUS, bpe_tokenizer
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as token_models

from tsi.models.tokens.char_tokenizer import char_tokenizer
from tsi.models.tokens.recall import use_recall
from tsi.models.tokens.split_patterns import GPT4O, LLAMA3, QWEN2
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.models.tokens.word_ends import is_word_end

RNG = np.random.default_rng(0)
SENTENCE = "the sum of 12 and 30 is 42, so x = 7/3 (mod 5). don't I'M 1,234 a"
ODD = ("naïve", "cafe\u0301", "日本語", "👩\u200d👧", "\\frac{1}{2}", "$$", "'s", "!")
WORDS = [*SENTENCE.split(" "), *ODD]
GAPS = [" ", " ", " ", " ", " ", "  ", "\n", "\n\n", " \n", "\t ", "", "\u00a0"]


def text_of(rng, count: int) -> str:
    words, gaps = rng.choice(WORDS, count), rng.choice(GAPS, count)
    return "".join(itertools.chain(*zip(words, gaps, strict=True)))


TEXTS = [*CORPUS, *(text_of(RNG, 30) for _ in range(60))]


def split_by(pattern: str) -> Tokenizer:
    backend = tokenizers.Tokenizer(token_models.BPE(ignore_merges=pattern == LLAMA3))
    backend.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    return trained(backend, decoders.ByteLevel())


def without_regex() -> Tokenizer:
    backend = tokenizers.Tokenizer(token_models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    return trained(backend, decoders.ByteLevel())


def sentencepiece(prepends: bool) -> Tokenizer:
    backend = tokenizers.Tokenizer(token_models.BPE())
    before = [normalizers.Prepend("▁")] if prepends else []
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([*before, spaces])
    # As they were trained: no token has a space behind a letter.
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return trained(backend, decoders.Sequence(parts), letters="".join(TEXTS))


def metaspace() -> Tokenizer:
    backend = tokenizers.Tokenizer(token_models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return trained(backend, decoder, letters="".join(TEXTS))


def trained(backend, decoder, letters: str = "") -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        initial_alphabet=sorted(set(letters)) or pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.decoder = decoder
    return Tokenizer(backend)


TOKENIZERS = {
    "digits": lambda: bpe_tokenizer(),
    "llama 3": lambda: split_by(LLAMA3),
    "qwen 2": lambda: split_by(QWEN2),
    "gpt-4o": lambda: split_by(GPT4O),
    "metaspace": metaspace,
    "space first": lambda: sentencepiece(True),
    "no space first": lambda: sentencepiece(False),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def grow(tokenizer, prefixes):
    """The ids of texts one after another, and how many characters were encoded."""
    past, found, count = (), [], 0
    encode = tokenizer.encode_text

    def watch(text, at_start, *, cut=False):
        nonlocal count
        count += len(text)
        return encode(text, at_start, cut=cut)

    tokenizer.encode_text = watch
    try:
        for text in prefixes:
            with use_recall(past) as recall:
                found.append(tokenizer.encode(text))
            past = tuple(recall.pieces)
    finally:
        del tokenizer.encode_text
    return found, count


@pytest.mark.long
def test_a_text_that_grows_and_is_cut_back_gets_the_ids_of_the_whole(tokenizer):
    assert tokenizer.has_word_ends
    rng, shorter = np.random.default_rng(1), 0
    for text in TEXTS[-60:]:
        ends = [int(rng.integers(1, len(text) + 1)) for _ in range(12)]
        prefixes = [text[:end] for end in ends]
        prefixes += [prefix.strip() for prefix in prefixes]
        found, count = grow(tokenizer, prefixes)
        assert found == [tokenizer.encode(prefix) for prefix in prefixes]
        shorter += count < sum(map(len, prefixes))
    assert shorter > 50


def test_what_is_encoded_grows_with_the_text_and_not_with_its_square():
    tokenizer = split_by(QWEN2)
    words = [text_of(np.random.default_rng(i), 20) for i in range(40)]
    prefixes = list(itertools.accumulate(words))
    found, count = grow(tokenizer, prefixes)
    assert found[-1] == tokenizer.encode(prefixes[-1])
    assert count < 2 * len(prefixes[-1])
    assert sum(map(len, prefixes)) > 15 * len(prefixes[-1])


def test_a_tokenizer_whose_tokens_reach_over_words_is_never_cut():
    tokenizer = without_regex()
    assert not tokenizer.has_word_ends
    prefixes = ["the sum of", "the sum of 12", "the sum of 12 and 30"]
    found, count = grow(tokenizer, [*prefixes, prefixes[-1]])
    assert found == [tokenizer.encode(text) for text in [*prefixes, prefixes[-1]]]
    # An equal text is not encoded again.
    assert count == sum(map(len, prefixes))


@pytest.mark.parametrize("field", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_swallow_spaces_forbid_cuts(field):
    tokenizer = split_by(QWEN2)
    backend = tokenizer.backend
    backend.add_tokens([tokenizers.AddedToken("qed", normalized=False)])
    assert Tokenizer(backend).has_word_ends
    odd = tokenizers.AddedToken("odd", normalized=False, **{field: True})
    backend.add_tokens([odd])
    assert not Tokenizer(backend).has_word_ends


def test_a_space_between_words_is_the_only_place():
    text = "a b  c\nd e\u0301 \u0301f 日 本 ."
    places = [i for i in range(len(text)) if is_word_end(text, i)]
    words = ["a b", "d e", "f 日", "日 本", "本 ."]
    assert [text[i - 1 : i + 2] for i in places] == words


def test_characters_are_cut_at_words_too():
    tokenizer = char_tokenizer("abc 123+=")
    found, count = grow(tokenizer, ["1+1 = a", "1+1 = a + b", "1+1 = a + b 12"])
    assert found[-1] == tokenizer.encode("1+1 = a + b 12")
    assert count < len("1+1 = a" + "1+1 = a + b")


def test_nothing_is_recalled_outside():
    tokenizer = bpe_tokenizer()
    with use_recall(()) as recall:
        tokenizer.encode("the sum")
    tokenizer.encode("the sum of")
    assert len(recall.pieces) == 1
