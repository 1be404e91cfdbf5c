"""The Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Llama 3.x with its scaled rotary frequencies, TinyLlama, SmolLM2 and the embedded tiny
models are configurations of it. All blocks are stored as one stack with a leading axis
L and run under ``jax.lax.scan``, so that compile time does not grow with depth.

Axes are those of :mod:`tsi.models.layers`.

References:
    Touvron et al. 2023, arXiv 2302.13971; Grattafiori et al. 2024, arXiv 2407.21783.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tsi.models.layers import Linear, RMSNorm, Segment, SwiGLU, attend, rotate


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama-family model, in this project's words.

    ``rope_scaling`` is None or the four numbers of Llama 3's scaled frequencies:
    (factor, low_freq_factor, high_freq_factor, original_max_position_embeddings).
    """

    vocab_size: int
    width: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    max_length: int
    rope_theta: float = 10_000.0
    rope_scaling: tuple[float, float, float, float] | None = None
    norm_epsilon: float = 1e-5
    tied: bool = True
    eos_ids: tuple[int, ...] = ()

    def flops_per_token(self, context: float, *, head: bool = True) -> float:
        """Forward FLOPs of one token that attends to ``context`` positions.

        Two per weight of every matrix product (the embedding's table look-up is none)
        and four per head width, query head and attended position.

        Args:
            context: how many positions are attended to.
            head: whether the language-model head runs, as it does where a next token is
                drawn and not where a prompt or a solution is only read.
        """
        attention = self.head_width * (self.num_heads + self.num_kv_heads) * 2
        block = self.width * (attention + 3 * self.hidden)
        scores = 2 * self.num_heads * self.head_width * context
        logits = self.width * self.vocab_size if head else 0
        return 2.0 * (self.num_layers * (block + scores) + logits)


class KeyValues(NamedTuple):
    """New keys and values of one forward pass, in the layout of a Segment."""

    keys: Float[Array, "L R K h Q"]
    values: Float[Array, "L R K Q h"]


def inverse_frequencies(config: LlamaConfig) -> Float[Array, " half"]:
    """Rotary frequencies, scaled as in Llama 3 where the configuration asks for it.

    Wavelengths longer than ``original / low`` are stretched by ``factor``, those
    shorter than ``original / high`` are kept, and those between are blended linearly
    in ``original / wavelength``.
    """
    exponents = jnp.arange(0, config.head_width, 2, dtype=jnp.float32)
    frequencies = config.rope_theta ** (-exponents / config.head_width)
    if config.rope_scaling is None:
        return frequencies
    factor, low, high, original = config.rope_scaling
    turns = original * frequencies / (2 * math.pi)
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (keep + (1.0 - keep) / factor)


class Attention(nnx.Module):
    """Projections around :func:`tsi.models.layers.attend`."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype):
        d, h = config.width, config.head_width
        kv_width = config.num_kv_heads * h
        self.query = Linear(d, config.num_heads * h, rngs=rngs, dtype=dtype)
        self.key = Linear(d, kv_width, rngs=rngs, dtype=dtype)
        self.value = Linear(d, kv_width, rngs=rngs, dtype=dtype)
        self.out = Linear(config.num_heads * h, d, rngs=rngs, dtype=dtype)
        self.head_width = h

    def __call__(self, x, positions, frequencies, valid, context):
        def heads(y):
            return y.reshape(*y.shape[:2], -1, self.head_width)

        queries = rotate(heads(self.query(x)), positions, frequencies)
        keys = rotate(heads(self.key(x)), positions, frequencies)
        keys = jnp.transpose(keys, (0, 2, 3, 1))
        values = jnp.transpose(heads(self.value(x)), (0, 2, 1, 3))
        mixed = attend(queries, keys, values, valid, context)
        return self.out(mixed.reshape(*x.shape[:2], -1)), KeyValues(keys, values)


class Block(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs, dtype):
        norm = (config.width, config.norm_epsilon)
        self.attention_norm = RMSNorm(*norm, dtype=dtype)
        self.attention = Attention(config, rngs=rngs, dtype=dtype)
        self.feed_forward_norm = RMSNorm(*norm, dtype=dtype)
        self.feed_forward = SwiGLU(config.width, config.hidden, rngs=rngs, dtype=dtype)

    def __call__(self, x, positions, frequencies, valid, context):
        mixed, key_values = self.attention(
            self.attention_norm(x), positions, frequencies, valid, context
        )
        x = x + mixed
        return x + self.feed_forward(self.feed_forward_norm(x)), key_values


class Trunk(nnx.Module):
    """Embedding, the stack of blocks and the final norm: tokens to hidden states."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        shape = (config.vocab_size, config.width)
        embedding = jax.random.normal(rngs.params(), shape, jnp.float32)
        self.embedding = nnx.Param((embedding * config.width**-0.5).astype(dtype))
        keys = jax.random.split(rngs.params(), config.num_layers)
        make = nnx.vmap(lambda key: Block(config, nnx.Rngs(params=key), dtype))
        self.blocks = make(keys)
        self.norm = RMSNorm(config.width, config.norm_epsilon, dtype=dtype)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "R Q"],
        positions: Int[Array, "R Q"],
        valid: Bool[Array, "R Q"] | None = None,
        context: tuple[Segment, ...] = (),
    ) -> tuple[Float[Array, "R Q D"], KeyValues]:
        """Read a chunk of tokens after what the context segments hold.

        Args:
            tokens: token ids; padding may stand anywhere that ``valid`` is False.
            positions: rotary position of each token, counted from the prompt's start.
            valid: True at real tokens; all, if None.
            context: cached segments, in any order (positions are in the keys).

        Returns:
            Hidden states after the final norm, and the chunk's keys and values for the
            caller to store.
        """
        if valid is None:
            valid = jnp.ones(tokens.shape, bool)
        frequencies = inverse_frequencies(self.config)
        masks = tuple(segment.mask for segment in context)
        stacks = tuple((segment.keys, segment.values) for segment in context)

        def layer(x, block_and_cache):
            block, cached = block_and_cache
            segments = tuple((k, v, m) for (k, v), m in zip(cached, masks, strict=True))
            return block(x, positions, frequencies, valid, segments)

        x = self.embedding[...][tokens]
        x, key_values = jax.lax.scan(layer, x, (self.blocks, stacks))
        return self.norm(x), key_values


class Llama(nnx.Module):
    """A causal language model: trunk and vocabulary head.

    Args:
        config: the model's shape.
        rngs: NNX random streams for the initial weights.
        dtype: of the weights and the matrix products; norms and softmax are float32.
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.trunk = Trunk(config, rngs=rngs, dtype=dtype)
        self.head = (
            None
            if config.tied
            else Linear(config.width, config.vocab_size, rngs=rngs, dtype=dtype)
        )
        self.config = config

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Next-token logits, float32, of the trunk's hidden states."""
        if self.head is None:
            out = hidden @ self.trunk.embedding[...].T
        else:
            out = self.head(hidden)
        return out.astype(jnp.float32)

    def __call__(self, tokens: Int[Array, "R Q"]) -> Float[Array, "R Q V"]:
        """Logits at every position of whole sequences, without a cache."""
        hidden, _ = self.trunk(tokens, positions_of(tokens))
        return self.logits(hidden)


class RewardModel(nnx.Module):
    """A process reward model: trunk and a scalar head on every token.

    The head's output at a step's last token is the log-odds that the solution, so far,
    leads to a right answer.
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.trunk = Trunk(config, rngs=rngs, dtype=dtype)
        self.score = Linear(config.width, 1, rngs=rngs, dtype=dtype)
        self.bias = nnx.Param(jnp.zeros((1,), dtype))
        self.config = config

    def log_odds(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b"]:
        """Log-odds, float32, at each of the trunk's hidden states."""
        return (self.score(hidden) + self.bias[...])[..., 0].astype(jnp.float32)

    def __call__(self, tokens: Int[Array, "R Q"]) -> Float[Array, "R Q"]:
        """Log-odds at every position of whole sequences, without a cache."""
        hidden, _ = self.trunk(tokens, positions_of(tokens))
        return self.log_odds(hidden)


def positions_of(tokens: Int[Array, "R Q"]) -> Int[Array, "R Q"]:
    """Positions 0, 1, … of sequences that start at their row's first token."""
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "LlamaForTokenClassification")


def config_from_hf(fields: dict[str, Any]) -> LlamaConfig:
    """Read a Hugging Face ``config.json``, refusing by name what this port lacks.

    Raises:
        CheckpointError: a field asks for a feature that the port does not have.
    """
    from tsi.errors import CheckpointError

    for name, allowed in (
        ("attention_bias", (False, None)),
        ("mlp_bias", (False, None)),
        ("hidden_act", ("silu", None)),
        ("pretraining_tp", (1, None)),
    ):
        if fields.get(name) not in allowed:
            raise CheckpointError(
                f"config.json asks for {name}={fields[name]!r}, which the Llama port "
                f"does not do (it does {allowed[0]!r}); choose another checkpoint."
            )
    # transformers 5 writes rope_parameters; earlier releases rope_theta, rope_scaling.
    rope = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise CheckpointError(
            f"config.json asks for rotary scaling {kind!r}, which the Llama port does "
            "not do (it does 'default' and 'llama3'); choose another checkpoint."
        )
    scaling = None
    if kind == "llama3":
        scaling = (
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            float(rope["original_max_position_embeddings"]),
        )
    heads = fields["num_attention_heads"]
    eos = fields.get("eos_token_id")
    eos_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    return LlamaConfig(
        vocab_size=fields["vocab_size"],
        width=fields["hidden_size"],
        hidden=fields["intermediate_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads") or heads,
        head_width=fields.get("head_dim") or fields["hidden_size"] // heads,
        max_length=fields.get("max_position_embeddings", 2048),
        rope_theta=float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0))),
        rope_scaling=scaling,
        norm_epsilon=float(fields.get("rms_norm_eps", 1e-6)),
        tied=bool(fields.get("tie_word_embeddings", False)),
        eos_ids=eos_ids,
    )


def config_to_hf(config: LlamaConfig, architecture: str) -> dict[str, Any]:
    """Write the fields of a Hugging Face ``config.json`` (read by transformers too)."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        factor, low, high, original = config.rope_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": int(original),
        }
    fields = {
        "architectures": [architecture],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.max_length,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "eos_token_id": list(config.eos_ids) or None,
    }
    if architecture == "LlamaForTokenClassification":
        fields["num_labels"] = 1
    return fields
