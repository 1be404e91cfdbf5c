"""The decoder once more, in float64 and plain numpy, one sequence, one head at a time.

Written from the papers and sharing no line with the port, so that a mistake has to be
made twice to go unseen: rotary frequencies pair by pair, attention query by query over
the positions that it may see.
"""

import math

import jax
import numpy as np
from flax import nnx

from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import DecoderConfig
from tsi.models.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    YarnScaling,
)


def frequency(rope: Rope, pair: int, turned: int, context: int) -> float:
    """The angle by which one position turns a pair of entries."""
    plain = rope.theta ** (-2 * pair / turned)
    wavelength = 2 * math.pi / plain
    match rope.scaling:
        case None | DynamicScaling():
            return plain
        case LinearScaling(factor):
            return plain / factor
        case Llama3Scaling(factor, low, high, original):
            if wavelength < original / high:
                return plain
            if wavelength > original / low:
                return plain / factor
            smooth = (original / wavelength - low) / (high - low)
            return (1 - smooth) * plain / factor + smooth * plain
        case YarnScaling(factor, original, fast, slow, _, truncate):
            ends = [
                turned
                * math.log(original / (turns * 2 * math.pi))
                / (2 * math.log(rope.theta))
                for turns in (fast, slow)
            ]
            low, high = ends
            if truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, turned - 1)
            ramp = min(max((pair - low) / (high - low), 0.0), 1.0)
            return ramp * plain / factor + (1 - ramp) * plain
        case LongRopeScaling(short, long, original):
            return plain / (short if context <= original else long)[pair]
    raise AssertionError(rope)


def turn(vector: np.ndarray, position: int, rope: Rope, context: int) -> np.ndarray:
    """A head's leading entries turned, pair (i, i + half) by pair."""
    turned = round(len(vector) * rope.fraction)
    half = turned // 2
    scale = getattr(rope.scaling, "attention", 1.0)
    out = vector.copy()
    for i in range(half):
        angle = position * frequency(rope, i, turned, context)
        a, b = vector[i], vector[i + half]
        out[i] = scale * (a * math.cos(angle) - b * math.sin(angle))
        out[i + half] = scale * (a * math.sin(angle) + b * math.cos(angle))
    return out


def activated(x: np.ndarray, name: str) -> np.ndarray:
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "relu":
        return np.maximum(x, 0)
    if name == "gelu":
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


def numpy_logits(
    model: LanguageModel, sequence: np.ndarray, config: DecoderConfig | None = None
) -> np.ndarray:
    """``[T, V]`` of a sequence ``[T]``; under another configuration if given."""
    c = model.config if config is None else config
    weights = jax.tree.map(
        lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(model))
    )

    def norm(x, scale):
        size = np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon)
        return x / size * (scale + c.norm_offset)

    def heads(x, w, name):
        y = x @ w[name]["kernel"]
        if c.attention_bias:
            y = y + w[name]["bias"]
        y = y.reshape(len(x), -1, c.head_width)
        if c.query_key_norm and name != "value":
            y = norm(y, w[f"{name}_norm"]["scale"])
        return y

    def attention(x, w, layer):
        local = c.sliding_window is not None and c.sliding_window.layers[layer]
        rope = c.sliding_window.rope if local else c.rope
        q, k, v = (heads(x, w, name) for name in ("query", "key", "value"))
        for t in range(len(x)):
            q[t] = [turn(head, t, rope, c.max_length) for head in q[t]]
            k[t] = [turn(head, t, rope, c.max_length) for head in k[t]]
        scale = c.head_width**-0.5 if c.query_scale is None else c.query_scale
        mixed = np.zeros_like(q)
        for t in range(len(x)):
            seen = range(max(0, t - c.sliding_window.size + 1) if local else 0, t + 1)
            for head in range(c.num_heads):
                group = head // (c.num_heads // c.num_kv_heads)
                scores = np.array([q[t, head] @ k[s, group] for s in seen]) * scale
                if c.attention_softcap is not None:
                    cap = c.attention_softcap
                    scores = cap * np.tanh(scores / cap)
                p = np.exp(scores - scores.max())
                mixed[t, head] = p / p.sum() @ v[seen, group]
        mixed = mixed.reshape(len(x), -1) @ w["out"]["kernel"]
        return mixed + w["out"]["bias"] if c.output_bias else mixed

    def feed_forward(x, w):
        def product(x, name):
            y = x @ w[name]["kernel"]
            return y + w[name]["bias"] if c.mlp_bias else y

        gate = activated(product(x, "gate"), c.activation)
        return product(gate * product(x, "up"), "down")

    x = weights["trunk"]["embedding"][sequence] * c.embedding_scale
    for layer in range(c.num_layers):
        w = jax.tree.map(lambda a, i=layer: a[i], weights["trunk"]["blocks"])
        y = attention(norm(x, w["attention_norm"]["scale"]), w["attention"], layer)
        x = x + (norm(y, w["attention_post_norm"]["scale"]) if c.post_norms else y)
        y = feed_forward(norm(x, w["feed_forward_norm"]["scale"]), w["feed_forward"])
        x = x + (norm(y, w["feed_forward_post_norm"]["scale"]) if c.post_norms else y)
    x = norm(x, weights["trunk"]["norm"]["scale"])
    head = weights["trunk"]["embedding"].T if c.tied else weights["head"]["kernel"]
    logits = x @ head
    cap = c.logit_softcap
    return logits if cap is None else cap * np.tanh(logits / cap)
