"""Texts of steps: differences of whole texts, the same for rewards and results."""

import itertools

import jax
import numpy as np
import pytest
import tiny_language as tiny
import tokenizers
from small_checkpoints import NASTY, bpe_tokenizer
from tokenizers import decoders, normalizers
from tokenizers import models as token_models

from tsi import samplers
from tsi.decoding.step_texts import (
    NO_TEXT,
    text_after,
    text_so_far,
    texts_of_more_steps,
    texts_of_steps,
)
from tsi.engine.engine import Engine
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.problem import Problem
from tsi.results.answers import extract_answer
from tsi.rewards.formats import OutcomeFormat
from tsi.rewards.formatted import FormattedReward
from tsi.rewards.text_reward import TextReward
from tsi.rewards.verifier import Verifier


def sentencepiece_tokenizer() -> Tokenizer:
    """Words with the space before them, bytes, and a space before every text."""
    words = ["▁", *"abcdefghijklmnopqrstuvwxyz.0123456789", "▁12", "▁34"]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    model = token_models.BPE(
        {name: i for i, name in enumerate(names)},
        [],
        byte_fallback=True,
        unk_token="<unk>",
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return Tokenizer(backend)


SPACED = sentencepiece_tokenizer()


def cut_into(tokenizer, ids, size):
    """Step texts, and the text so far after each step, of steps of so many tokens."""
    ends = [*range(size, len(ids), size), len(ids)]
    steps = texts_of_steps(tokenizer.decode, ids, ends, finished=True)
    seen = [
        text_so_far(tokenizer.decode, ids[:end], finished=end == len(ids))
        for end in ends
    ]
    return steps, seen


@pytest.mark.parametrize(
    "text", [*filter(None, NASTY), "12 34", "e\u0301e 👩\u200d👧 é"]
)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_steps_cut_anywhere_join_to_the_whole_text(text, size):
    for tokenizer in (bpe_tokenizer(), SPACED):
        ids = tokenizer.encode(text)
        steps, seen = cut_into(tokenizer, ids, size)
        assert "".join(steps) == text
        assert "\ufffd" not in "".join(seen)
        assert seen == list(itertools.accumulate(steps))


def fickle(tokens: list[int]) -> str:
    """A decoder that changes what it gave before, at every third token."""
    return "x" * (len(tokens) % 3) + tiny.decode(tokens)


@pytest.mark.parametrize(
    "decode", [SPACED.decode, bpe_tokenizer().decode, tiny.decode, fickle]
)
def test_steps_decoded_once_have_the_texts_of_steps_decoded_anew(decode):
    """Rows grow, part from each other and are cut back, as explorers have them."""
    # Of two letters, so that other tokens often have the same text.
    rng, least, most = np.random.default_rng(2), 1, 290
    if decode in (tiny.decode, fickle):
        least, most = 0, 2
    rows = [(NO_TEXT, np.zeros(40, np.int32), [])] * 4
    calls = []

    def watch(tokens):
        calls.append(len(tokens))
        return decode(tokens)

    whole = 0
    for _ in range(120):
        before, tokens, ends = rows[rng.integers(4)]
        before = rows[rng.integers(4)][0] if rng.random() < 0.2 else before
        ends = ends[: rng.integers(0, len(ends) + 1)] if rng.random() < 0.4 else ends
        start = ends[-1] if ends else 0
        if start >= 36:
            ends, start = [], 0
        ends = [*ends, start + int(rng.integers(1, 5))]
        tokens = tokens.copy()
        tokens[start : ends[-1]] = rng.integers(least, most, ends[-1] - start)
        finished = bool(rng.random() < 0.2)
        arguments = tokens, ends
        steps, now = texts_of_more_steps(watch, before, *arguments, finished=finished)
        anew = texts_of_steps(decode, tokens.tolist(), ends, finished=finished)
        assert steps == anew
        whole += len(ends)
        rows[rng.integers(4)] = (now, tokens, ends)
    if decode is not fickle:
        assert len(calls) < whole / 2


def test_a_step_keeps_the_space_before_its_first_word():
    vocabulary = SPACED.backend.get_vocab()
    ids = [vocabulary[piece] for piece in ("▁12", "▁34")]
    steps = texts_of_steps(SPACED.decode, ids, [1, 2], finished=True)
    assert steps == ["12", " 34"]
    assert extract_answer("".join(steps)) == "34"
    # Apart, both words would have lost their space, and the answer would be 1234.
    assert "".join(SPACED.decode([id]) for id in ids) == "1234"
    assert text_after(SPACED.decode, ids[:1], ids[1:]) == " 34"


def test_half_a_character_counts_once_nothing_follows():
    ids = SPACED.encode("a😀")[:-1]
    for finished, whole in ((False, "a"), (True, "a\ufffd")):
        steps = texts_of_steps(SPACED.decode, ids, [3, len(ids)], finished=finished)
        assert "".join(steps) == whole
    assert texts_of_steps(SPACED.decode, [], [], finished=True) == []


# One piece for each of the tiny model's tokens: words with spaces, and bytes of an
# accent, an emoji and a combining mark that no step of two tokens keeps together.
PIECES = (
    *(b" 12", b" 34", b"5", b" the", b" answer is", b"."),
    *(b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98", b"\x80", b"e", b"\xcc", b"\x81"),
    *(b"\xc3\xa9", b"\n", b" ", b"\xe2\x80", b"\x8d"),
)


def decode(tokens):
    text = b"".join(PIECES[token - 1] for token in tokens if token)
    return text.decode("utf-8", errors="replace").removeprefix(" ")


def run_with(reward, sampler, num_particles=24):
    policy, _ = tiny.models(sharpness=3.0)
    target = tiny.target(reward=reward, max_step_tokens=2, max_tokens=15)
    engine = Engine(target, policy, None, encode=tiny.encode, decode=decode)
    (result,) = engine.run(
        sampler,
        jax.random.key(1),
        [Problem(0, "hello", "")],
        num_particles,
        extract=extract_answer,
    )
    return result


def test_the_reward_reads_at_every_step_what_the_result_says():
    readings = []

    def score(texts):
        readings.append(texts)
        return np.zeros(len(texts))

    result = run_with(TextReward(score, decode), samplers.self_consistency())
    held_back = 0
    for n, (text, steps) in enumerate(
        zip(result.texts, result.particles.step_texts, strict=True)
    ):
        assert "".join(steps) == text == readings[-1][n]
        for t, written in enumerate(itertools.accumulate(steps)):
            assert readings[t][n] == written
        held_back += "" in steps[:-1]
    # Half a character alone makes a step without text.
    assert held_back > 0
    assert result.particles.truncated.any()
    assert any("é" in text for text in result.texts)
    answers = [
        None if cut else extract_answer(text)
        for text, cut in zip(readings[-1], result.particles.truncated, strict=True)
    ]
    assert answers == result.answers


@pytest.mark.long
@pytest.mark.parametrize("explores", [False, True])
def test_a_verifier_reads_prefixes_of_what_the_result_says(explores):
    seen = set()

    def check(question, text, ended):
        seen.add(text)
        return 0.1 * len(text)

    sampler = samplers.particle_gibbs() if explores else samplers.smc()
    result = run_with(Verifier(check, decode), sampler)
    for text, steps in zip(result.texts, result.particles.step_texts, strict=True):
        assert "".join(steps) == text
        assert seen.issuperset(filter(None, itertools.accumulate(steps)))


def test_a_model_that_reads_text_is_shown_what_the_result_says():
    format = OutcomeFormat(bpe_tokenizer())
    reward = FormattedReward(format, decode, max_steps=8, max_tokens=60)
    solution = np.asarray([1, 7, 8, 2, 9, 10, 11, 0])
    ends = np.asarray([2, 4, 5, 8])
    for depth in range(1, 5):
        so_far = np.where(np.arange(4) < depth, ends, 0)
        steps, _ = reward.steps(solution, so_far, depth == 4)
        assert steps == ["12", "é 34", "", "😀"][:depth]
