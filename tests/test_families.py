"""Every family, with all that it does turned on, without another framework.

Logits equal a plain numpy forward; whatever is read in pieces, padded, shared, forked,
cut or stored equals the forward pass of the whole text.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_decoder import numpy_logits
from small_checkpoints import small_model
from small_families import READ, WRITTEN

from tsi.decoding.cache import Suffix, append, cut, empty_suffix, fork, keep, take
from tsi.models.attention import Routes, Segment
from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import DecoderConfig

LENGTH, STEP = 24, 3
CAPACITY = LENGTH - 5 + 2 * STEP
ATOL = 1e-4
WITH_LONGROPE = pytest.mark.parametrize("name", READ)
EVERY = pytest.mark.parametrize("name", WRITTEN)


@functools.cache
def model_of(name: str) -> LanguageModel:
    model = small_model(READ[name], seed=1)
    # Random attention is nearly flat, and a flat one hides what it looks at.
    attention = model.trunk.blocks.attention
    for part in (attention.query, attention.key):
        part.kernel[...] = part.kernel[...] * 2.0
    return model


def texts(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 40, (4, LENGTH))


@jax.jit
def whole(model: LanguageModel, tokens):
    return model(tokens)


@WITH_LONGROPE
def test_logits_equal_a_plain_numpy_forward(name):
    model, tokens = model_of(name), texts(0)
    found = whole(model, tokens)
    for sequence, logits in zip(tokens[:2], found[:2], strict=True):
        np.testing.assert_allclose(logits, numpy_logits(model, sequence), atol=ATOL)


def turned_as(config: DecoderConfig, **changes):
    """Changes to the rotary embedding of all layers."""
    local = config.sliding_window
    if local is not None and local.rope == config.rope:
        local = local._replace(rope=local.rope._replace(**changes))
    return {"rope": config.rope._replace(**changes), "sliding_window": local}


OFF: dict[str, Callable[[DecoderConfig], dict[str, Any]]] = {
    "rope": lambda c: {"rope": c.rope._replace(theta=7.0)},
    "fraction": lambda c: turned_as(c, fraction=1.0),
    "scaling": lambda c: turned_as(c, scaling=None),
    "length": lambda c: {"max_length": 80 - c.max_length},
    "sliding_window": lambda c: {"sliding_window": None},
    "window": lambda c: {
        "sliding_window": c.sliding_window._replace(size=c.sliding_window.size + 1)
    },
    "local rope": lambda c: {"sliding_window": c.sliding_window._replace(rope=c.rope)},
    "query_scale": lambda c: {"query_scale": None},
    "attention_softcap": lambda c: {"attention_softcap": None},
    "logit_softcap": lambda c: {"logit_softcap": None},
    "activation": lambda c: {"activation": "silu"},
    "norm_epsilon": lambda c: {"norm_epsilon": 1e-6},
    "attention_bias": lambda c: {"attention_bias": False},
    "output_bias": lambda c: {"output_bias": False},
    "mlp_bias": lambda c: {"mlp_bias": False},
    "query_key_norm": lambda c: {"query_key_norm": False},
    "post_norms": lambda c: {"post_norms": False},
    "norm_offset": lambda c: {"norm_offset": 0.0},
    "embedding_scale": lambda c: {"embedding_scale": 1.0},
}
BIASES = ("attention_bias", "output_bias", "mlp_bias")
SHOWS = {
    "llama": {"scaling", "norm_epsilon", *BIASES},
    "mistral": {"scaling", "sliding_window", "window"},
    "qwen2": {"scaling", "sliding_window", "window", "attention_bias", "activation"},
    "qwen3": {"scaling", "sliding_window", "window", "query_key_norm", *BIASES[:2]},
    "gemma3": set(OFF) - {"fraction", "norm_epsilon", "mlp_bias", "length"},
    "phi3": {"sliding_window", "window", "fraction", "activation"},
    "phi3 with LongRoPE": {"scaling", "sliding_window", "window", "length"},
    "phi3 beyond its original length": {
        "scaling",
        "sliding_window",
        "window",
        "length",
    },
}


@WITH_LONGROPE
def test_every_feature_shows_in_the_logits(name):
    """Or the comparison above would say nothing of it."""
    model, sequence = model_of(name), texts(0)[0]
    plain = numpy_logits(model, sequence)
    for feature in SHOWS[name]:
        config = dataclasses.replace(model.config, **OFF[feature](model.config))
        changed = numpy_logits(model, sequence, config)
        assert np.abs(changed - plain).max() > 0.01, feature


@EVERY
def test_padding_anywhere_leaves_real_tokens_as_they_are(name):
    model, tokens = model_of(name), texts(1)
    expected = whole(model, tokens)
    # Each row starts in another column, the last one with no room after it.
    starts, width = np.array([0, 1, 5, 8]), LENGTH + 8
    places = starts[:, None] + np.arange(LENGTH)
    padded = np.full((4, width), 7)
    np.put_along_axis(padded, places, tokens, axis=1)
    positions = np.arange(width) - starts[:, None]
    valid = (positions >= 0) & (positions < LENGTH)

    @jax.jit
    def read(model, tokens, positions, valid):
        hidden, _ = model.trunk(tokens, positions, valid)
        return model.logits(hidden)

    found = np.asarray(read(model, padded, positions, valid))
    found = np.take_along_axis(found, places[:, :, None], axis=1)
    np.testing.assert_allclose(found, expected, atol=ATOL)


@jax.jit
def read_prompts(model: LanguageModel, tokens, lengths) -> Segment:
    """Prompts of any lengths, padded on the right."""
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    real = places < lengths[:, None]
    _, new = model.trunk(tokens, places, real)
    return Segment(*new, real)


@jax.jit
def read_step(
    model: LanguageModel, prompt: Segment, suffix: Suffix, tokens, start, counts
):
    """The logits of each row's next few tokens, and the suffix with them."""
    offsets = jnp.arange(STEP)
    hidden, new = model.trunk(
        tokens,
        start[:, None] + offsets,
        offsets < counts[:, None],
        (prompt, suffix.segment),
    )
    return model.logits(hidden), append(suffix, new, counts, LENGTH)


class Reader:
    """Rows that read their texts through the caches, compared with whole texts.

    Two prompts are stored once each and shared by two rows each.
    """

    def __init__(self, model: LanguageModel, seed: int):
        self.model, self.draw = model, np.random.default_rng(seed)
        self.prompts = np.array([5, 8])
        self.of = np.array([0, 0, 1, 1])
        self.texts = texts(seed)
        for row in (1, 3):
            length = self.prompts[self.of[row]]
            self.texts[row, :length] = self.texts[row - 1, :length]
        prompt_tokens = self.texts[::2, :9]
        self.prompt = read_prompts(model, prompt_tokens, self.prompts)
        self.suffix = empty_suffix(model.config, 4, CAPACITY)
        self.lengths = self.prompts[self.of]
        self.expected = np.asarray(whole(model, self.texts))
        self.compared = 0

    def rewrite_what_is_to_come(self) -> None:
        fresh = self.draw.integers(0, 40, self.texts.shape)
        known = np.arange(LENGTH) < self.lengths[:, None]
        self.texts = np.where(known, self.texts, fresh)
        self.expected = np.asarray(whole(self.model, self.texts))

    def step(self) -> None:
        counts = self.draw.integers(0, STEP + 1, 4)
        counts = np.minimum(counts, LENGTH - self.lengths)
        places = np.minimum(self.lengths[:, None] + np.arange(STEP), LENGTH - 1)
        tokens = np.take_along_axis(self.texts, places, axis=1)
        logits, self.suffix = read_step(
            self.model, self.prompt, self.suffix, tokens, self.lengths, counts
        )
        for row, (begin, count) in enumerate(zip(self.lengths, counts, strict=True)):
            expected = self.expected[row, begin : begin + count]
            np.testing.assert_allclose(logits[row, :count], expected, atol=ATOL)
        self.compared += int(counts.sum())
        self.lengths = self.lengths + counts

    def move(self, rows: np.ndarray) -> None:
        self.texts, self.lengths = self.texts[rows], self.lengths[rows]
        self.expected = self.expected[rows]


@EVERY
def test_caches_filled_in_uneven_steps_and_forked_equal_whole_texts(name):
    reader = Reader(model_of(name), seed=2)
    for turn in range(14):
        reader.step()
        if turn in (2, 5):
            rows = np.array([[1, 1, 2, 3], [1, 0, 3, 3]][turn == 5])
            reader.suffix = jax.jit(fork)(reader.suffix, rows)
            reader.move(rows)
            reader.rewrite_what_is_to_come()
    assert reader.compared > 30
    assert (reader.lengths == LENGTH).all()


@EVERY
def test_stored_caches_cut_taken_and_kept_equal_whole_texts(name):
    reader = Reader(model_of(name), seed=3)
    for _ in range(5):
        reader.step()
    prompt_lengths = reader.prompts[reader.of]

    @jax.jit
    def back_and_forth(suffix, rows, lengths, slots):
        return keep(suffix, slots, cut(take(suffix, rows), lengths))

    # Each problem's second row goes back to a cut of its first one, then the first.
    for rows, slots in (([0, 2], [1, 3]), ([1, 3], [0, 2])):
        lengths = np.maximum(reader.lengths[rows] - 4, prompt_lengths[rows])
        suffix_lengths = lengths - prompt_lengths[rows]
        reader.suffix = back_and_forth(
            reader.suffix, np.array(rows), suffix_lengths, np.array(slots)
        )
        moved = np.arange(4)
        moved[slots] = rows
        reader.move(moved)
        reader.lengths[slots] = lengths
        reader.rewrite_what_is_to_come()
        for _ in range(2):
            reader.step()
    assert reader.compared > 20


def test_a_window_goes_by_positions_and_not_by_slots():
    """Slots in any order, with holes, beside a prompt in any order."""
    model, tokens = model_of("gemma3"), jnp.asarray(texts(4))
    width = LENGTH + 5
    order = np.random.default_rng(0).permutation(width)
    even = jnp.arange(width) % 2 == 0

    @jax.jit
    def last_logits(model, tokens):
        places = jnp.broadcast_to(jnp.arange(LENGTH - 1), (4, LENGTH - 1))
        _, new = model.trunk(tokens[:, :-1], places)

        def shuffled(x, axis):
            holes = [(0, 0)] * x.ndim
            holes[axis] = (0, 6)
            return jnp.take(jnp.pad(x, holes), order, axis=axis)

        moved = (
            shuffled(new.keys, -1),
            shuffled(new.values, -2),
            shuffled(new.positions, -1),
        )
        real = jnp.broadcast_to(order < LENGTH - 1, (4, width))
        halves = (Segment(*moved, real & even), Segment(*moved, real & ~even))
        last = jnp.full((4, 1), LENGTH - 1)
        hidden, _ = model.trunk(tokens[:, -1:], last, None, halves)
        return model.logits(hidden)[:, 0]

    expected = whole(model, tokens)[:, -1]
    np.testing.assert_allclose(last_logits(model, tokens), expected, atol=ATOL)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_rows_in_any_order_read_a_past_that_others_read_too(family):
    """Two pasts, five readers of them in no order, one that may not read all of it."""
    model = model_of(family)
    tokens = jnp.asarray(np.concatenate([texts(5), texts(6)])[:5])
    owner, known = np.asarray([1, 0, 1, 1, 0]), np.asarray([9, 11, 11, 11, 11])
    pasts = tokens[:2, :11]
    tokens = jnp.concatenate([pasts[owner], tokens[:, 11:]], axis=1)
    expected = whole(model, tokens)[:, 11:]
    readers, places = np.zeros((2, 4), np.int32), np.zeros(5, np.int32)
    for row, place in enumerate([2, 3, 0, 1, 1]):
        readers[owner[row], place] = row
        places[row] = owner[row] * 4 + place

    @jax.jit
    def last_logits(model, tokens):
        whole = jnp.broadcast_to(jnp.arange(11), (2, 11))
        _, new = model.trunk(pasts, whole)
        common = Segment(
            *new, whole[0] < known[:, None], Routes(jnp.asarray(readers), places)
        )
        # The first row has the last of its past by itself.
        ends = tokens[:, 9:]
        at = jnp.broadcast_to(jnp.arange(9, LENGTH), ends.shape)
        valid = (at >= 11) | (jnp.arange(5) == 0)[:, None]
        hidden, _ = model.trunk(ends, at, valid, (common,))
        return model.logits(hidden)[:, 2:]

    np.testing.assert_allclose(last_logits(model, tokens), expected, atol=ATOL)
