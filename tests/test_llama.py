"""The Llama port against a plain numpy forward pass, and cached against uncached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_language import config

from tsi.errors import CheckpointError
from tsi.models.attention import Segment
from tsi.models.decoder import LanguageModel, RewardModel, positions_of
from tsi.models.families.llama import config_from_hf, config_to_hf
from tsi.models.rotary import Llama3Scaling, Rope, inverse_frequencies

LLAMA3 = Llama3Scaling(8.0, 1.0, 4.0, 8192.0)


def tokens(rows: int, length: int):
    return jax.random.randint(jax.random.key(3), (rows, length), 0, 20)


def numpy_logits(model: LanguageModel, sequence: np.ndarray) -> np.ndarray:
    """One sequence, written out position by position from the papers."""
    c = model.config
    frequencies = np.asarray(inverse_frequencies(c.rope, c.head_width), np.float64)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon) * scale

    def turn(vector, position):
        half = c.head_width // 2
        a, b = vector[:half], vector[half:]
        cos, sin = np.cos(position * frequencies), np.sin(position * frequencies)
        return np.concatenate([a * cos - b * sin, a * sin + b * cos])

    weights = jax.tree.map(
        lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(model))
    )
    x = weights["trunk"]["embedding"][sequence]
    blocks = weights["trunk"]["blocks"]
    for layer in range(c.num_layers):
        w = jax.tree.map(lambda leaf, i=layer: leaf[i], blocks)
        y = norm(x, w["attention_norm"]["scale"])
        q = (y @ w["attention"]["query"]["kernel"]).reshape(len(y), c.num_heads, -1)
        k = (y @ w["attention"]["key"]["kernel"]).reshape(len(y), c.num_kv_heads, -1)
        v = (y @ w["attention"]["value"]["kernel"]).reshape(len(y), c.num_kv_heads, -1)
        mixed = np.zeros_like(q)
        for t in range(len(y)):
            for head in range(c.num_heads):
                group = head * c.num_kv_heads // c.num_heads
                scores = np.array(
                    [turn(q[t, head], t) @ turn(k[s, group], s) for s in range(t + 1)]
                ) / np.sqrt(c.head_width)
                p = np.exp(scores - scores.max())
                mixed[t, head] = (p / p.sum()) @ v[: t + 1, group]
        x = x + mixed.reshape(len(y), -1) @ w["attention"]["out"]["kernel"]
        y = norm(x, w["feed_forward_norm"]["scale"])
        gate = y @ w["feed_forward"]["gate"]["kernel"]
        up = y @ w["feed_forward"]["up"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w["feed_forward"]["down"]["kernel"]
    x = norm(x, weights["trunk"]["norm"]["scale"])
    head = weights["trunk"]["embedding"].T if c.tied else weights["head"]["kernel"]
    return x @ head


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": False},
        {"num_kv_heads": 1},
        {"num_kv_heads": 4},
        {"rope": Rope(scaling=LLAMA3)},
    ],
)
def test_logits_equal_a_plain_numpy_forward(changes):
    model = LanguageModel(config(**changes), rngs=nnx.Rngs(0))
    sequence = tokens(1, 9)
    expected = numpy_logits(model, np.asarray(sequence[0]))
    np.testing.assert_allclose(model(sequence)[0], expected, atol=2e-5)


def test_scaled_frequencies_equal_the_published_piecewise_rule():
    rope = Rope(theta=500_000.0)
    plain = inverse_frequencies(rope, 64).astype(np.float64)
    scaled = inverse_frequencies(rope._replace(scaling=LLAMA3), 64)
    factor, low, high, original = LLAMA3
    for frequency, found in zip(plain, scaled, strict=True):
        wavelength = 2 * np.pi / frequency
        if wavelength < original / high:
            expected = frequency
        elif wavelength > original / low:
            expected = frequency / factor
        else:
            smooth = (original / wavelength - low) / (high - low)
            expected = (1 - smooth) * frequency / factor + smooth * frequency
        assert found == pytest.approx(expected, rel=1e-5)


def test_reading_in_pieces_equals_reading_at_once():
    model = LanguageModel(config(), rngs=nnx.Rngs(0))
    sequence = tokens(4, 12)
    # Rows 0, 1 and rows 2, 3 share a prompt of six tokens, stored once for each pair.
    sequence = sequence.at[1, :6].set(sequence[0, :6]).at[3, :6].set(sequence[2, :6])
    positions = positions_of(sequence)
    whole = model(sequence)
    _, prompt = model.trunk(sequence[::2, :6], positions[::2, :6])
    context = [Segment(*prompt, jnp.ones((2, 6), bool))]
    for start, stop in ((6, 9), (9, 10), (10, 12)):
        chunk = slice(start, stop)
        hidden, new = model.trunk(
            sequence[:, chunk], positions[:, chunk], None, tuple(context)
        )
        np.testing.assert_allclose(model.logits(hidden), whole[:, chunk], atol=1e-5)
        context.append(Segment(*new, jnp.ones((4, stop - start), bool)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_the_real_tokens(side):
    model = RewardModel(config(), rngs=nnx.Rngs(0))
    sequence = tokens(2, 7)
    pad = jnp.full((2, 3), 5)
    parts = (pad, sequence) if side == "left" else (sequence, pad)
    padded = jnp.concatenate(parts, axis=1)
    valid = jnp.concatenate(
        [jnp.broadcast_to(p is sequence, p.shape) for p in parts], axis=1
    )
    offset = 3 if side == "left" else 0
    hidden, _ = model.trunk(padded, positions_of(padded) - offset, valid)
    real = hidden[:, 3:] if side == "left" else hidden[:, :7]
    np.testing.assert_allclose(model.log_odds(real), model(sequence), atol=1e-5)


def test_configuration_survives_the_round_trip_to_hugging_face():
    for changes in (
        {},
        {"tied": False},
        {"rope": Rope(scaling=LLAMA3), "eos_ids": (2, 3)},
    ):
        shape = config(**changes)
        assert config_from_hf(config_to_hf(shape)) == shape


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("clip_qkv", 8.0, "clip_qkv=8.0"),
        ("hidden_act", "relu2", "hidden_act='relu2'"),
        ("rope_scaling", {"type": "ntk"}, "rotary scaling 'ntk'"),
    ],
)
def test_features_the_port_lacks_are_refused_by_name(field, value, named):
    fields = config_to_hf(config()) | {"rope_parameters": None}
    with pytest.raises(CheckpointError, match=named):
        config_from_hf(fields | {field: value})


def test_flops_count_every_matrix_product():
    c = config()
    model = LanguageModel(c, rngs=nnx.Rngs(0))
    kernels = [
        x
        for path, x in jax.tree_util.tree_leaves_with_path(nnx.state(model))
        if "kernel" in str(path) or "embedding" in str(path)
    ]
    weights = sum(x.size for x in kernels)
    assert c.flops_per_token(0.0) == 2 * weights
    read = c.flops_per_token(0.0, head=False)
    assert read == 2 * (weights - c.width * c.vocab_size)
    per_position = 4 * c.num_layers * c.num_heads * c.head_width
    assert c.flops_per_token(10.0) - c.flops_per_token(0.0) == 10 * per_position
