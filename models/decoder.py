"""The decoder of all families; each family is a configuration of it.

It has RMSNorms, rotary positions, grouped-query attention and a gated feed-forward
layer. All blocks are stored as one stack with a leading axis L and run under
``jax.lax.scan``, so that compile time does not grow with depth. What differs between
layers of one model, the sliding window, is scanned too. A family's file states its
configuration and the tensor names of its checkpoints.

Axes are those of :mod:`tsi.models.layers`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from tsi.models.attention import ByLayer, Segment, View, attend, view_segment
from tsi.models.decoder_config import DecoderConfig
from tsi.models.layers import GatedFeedForward, Linear, RMSNorm, product_in_float32
from tsi.models.rotary import Rope, check_length, inverse_frequencies, rotate


class KeyValues(NamedTuple):
    """New keys and values of one forward pass, in the layout of a Segment."""

    keys: Float[Array, "L R K h Q"]
    values: Float[Array, "L R K Q h"]
    positions: Int[Array, "R Q"]


class Geometry(NamedTuple):
    """The positions, rotary embedding and visible context of one layer.

    Attributes:
        positions: of the chunk's tokens.
        frequencies: rotary, of this layer.
        temperature: multiplies rotated queries and keys of this layer; None if it is 1
            in all layers (see :attr:`tsi.models.rotary.Rope.attention`).
        valid: False at padding of the chunk.
        window: how many positions a query attends to; None for all.
        views: :func:`tsi.models.attention.view_segment` of each segment.
    """

    positions: Int[Array, "R Q"]
    frequencies: Float[Array, " half"]
    temperature: Float[Array, ""] | None
    valid: Bool[Array, "R Q"]
    window: Int[Array, ""] | None
    views: tuple[View, ...]


class Attention(nnx.Module):
    """Projections around :func:`tsi.models.attention.attend`."""

    def __init__(
        self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike
    ) -> None:
        d, h = config.width, config.head_width
        kv_width, bias = config.num_kv_heads * h, config.attention_bias
        self.query = Linear(d, config.num_heads * h, rngs=rngs, dtype=dtype, bias=bias)
        self.key = Linear(d, kv_width, rngs=rngs, dtype=dtype, bias=bias)
        self.value = Linear(d, kv_width, rngs=rngs, dtype=dtype, bias=bias)
        mixed, bias = config.num_heads * h, config.output_bias
        self.out = Linear(mixed, d, rngs=rngs, dtype=dtype, bias=bias)
        has_norm = config.query_key_norm
        self.query_norm = norm_of(config, h, dtype) if has_norm else None
        self.key_norm = norm_of(config, h, dtype) if has_norm else None
        self.config = config
        # See `with_cache_dtype`.
        self.cache_dtype: Any = None

    def __call__(
        self, x: Float[Array, "R Q D"], geometry: Geometry, cached: tuple[Any, ...]
    ) -> tuple[Float[Array, "R Q D"], tuple[Array, Array]]:
        config = self.config

        def split_heads(y: Float[Array, "R Q width"], norm: RMSNorm | None) -> Array:
            y = y.reshape(*y.shape[:2], -1, config.head_width)
            return y if norm is None else norm(y)

        def rotate_heads(y: Float[Array, "R Q heads h"]) -> Float[Array, "R Q heads h"]:
            rope = (geometry.frequencies, geometry.temperature)
            return rotate(y, geometry.positions, *rope)

        scale = config.query_scale
        scale = config.head_width**-0.5 if scale is None else scale
        queries = rotate_heads(split_heads(self.query(x), self.query_norm)) * scale
        keys = rotate_heads(split_heads(self.key(x), self.key_norm))
        keys = jnp.transpose(keys, (0, 2, 3, 1))
        values = jnp.transpose(split_heads(self.value(x), None), (0, 2, 1, 3))
        if self.cache_dtype is not None:
            # Before attention, so that a step that is read here gets the same keys and
            # values as a step that is drawn, which finds its tokens in the cache.
            keys, values = (x.astype(self.cache_dtype) for x in (keys, values))
        context = tuple(zip(cached, geometry.views, strict=True))
        mixed = attend(
            queries,
            keys,
            values,
            geometry.positions,
            geometry.valid,
            context,
            geometry.window,
            config.attention_softcap,
        )
        return self.out(mixed.reshape(*x.shape[:2], -1)), (keys, values)


class Block(nnx.Module):
    """One pre-norm transformer block, with norms after its branches if configured."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        d = config.width
        self.attention_norm = norm_of(config, d, dtype)
        self.attention = Attention(config, rngs=rngs, dtype=dtype)
        self.feed_forward_norm = norm_of(config, d, dtype)
        self.feed_forward = GatedFeedForward(
            d,
            config.hidden,
            config.activation,
            rngs=rngs,
            dtype=dtype,
            bias=config.mlp_bias,
        )
        has_post_norms = config.post_norms
        self.attention_post_norm = norm_of(config, d, dtype) if has_post_norms else None
        self.feed_forward_post_norm = (
            norm_of(config, d, dtype) if has_post_norms else None
        )

    def __call__(
        self, x: Float[Array, "R Q D"], geometry: Geometry, cached: tuple[Any, ...]
    ) -> tuple[Float[Array, "R Q D"], tuple[Array, Array]]:
        mixed, key_values = self.attention(self.attention_norm(x), geometry, cached)
        if self.attention_post_norm is not None:
            mixed = self.attention_post_norm(mixed)
        x = x + mixed
        branch = self.feed_forward(self.feed_forward_norm(x))
        if self.feed_forward_post_norm is not None:
            branch = self.feed_forward_post_norm(branch)
        return x + branch, key_values


def norm_of(config: DecoderConfig, width: int, dtype: DTypeLike) -> RMSNorm:
    """An RMSNorm with the epsilon and the offset of a configuration."""
    return RMSNorm(width, config.norm_epsilon, offset=config.norm_offset, dtype=dtype)


class Trunk(nnx.Module):
    """Embedding, the stack of blocks and the final norm: tokens to hidden states."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        shape = (config.vocab_size, config.width)
        embedding = jax.random.normal(rngs.params(), shape, jnp.float32)
        self.embedding = nnx.Param((embedding * config.width**-0.5).astype(dtype))
        # Scales of a quantised embedding, see `tsi.models.quantized`.
        self.embedding_scale: Any = None
        keys = jax.random.split(rngs.params(), config.num_layers)
        make = nnx.vmap(lambda key: Block(config, nnx.Rngs(params=key), dtype))
        self.blocks = make(keys)
        self.norm = norm_of(config, config.width, dtype)
        self.config = config

    @property
    def scale(self) -> Array | None:
        """Scales of the embedding if it is quantised, else None."""
        return None if self.embedding_scale is None else self.embedding_scale[...]

    def embed(self, tokens: Int[Array, "*b"]) -> Float[Array, "*b D"]:
        """Rows of the embedding."""
        rows, scale = self.embedding[...][tokens], self.scale
        if scale is None:
            return rows
        return (rows * scale[tokens][..., None]).astype(self.dtype)

    @property
    def dtype(self) -> Any:
        """Type of the activations."""
        return self.norm.scale.get_value().dtype

    @property
    def cache_dtype(self) -> Any:
        """Type of keys and values."""
        dtype = self.blocks.attention.cache_dtype
        return self.dtype if dtype is None else dtype

    def __call__(
        self,
        tokens: Int[Array, "R Q"],
        positions: Int[Array, "R Q"],
        valid: Bool[Array, "R Q"] | None = None,
        context: tuple[Segment, ...] = (),
    ) -> tuple[Float[Array, "R Q D"], KeyValues]:
        """Read a chunk of tokens that follows the context segments.

        Args:
            tokens: token ids, with padding wherever ``valid`` is False.
            positions: rotary position of each token, counted from the prompt's start.
            valid: False at padding; None if there is no padding.
            context: cached segments, in any order.

        Returns:
            Hidden states after the final norm, and the chunk's keys and values for the
            caller to store.
        """
        if valid is None:
            valid = jnp.ones(tokens.shape, bool)
        # Under x64 positions may be int64, and caches hold int32.
        positions = positions.astype(jnp.int32)
        # Stacked caches are scanned with the blocks; caches with an array per layer
        # are indexed by the number of the layer.
        has_arrays = [isinstance(segment.keys, tuple) for segment in context]
        stacks = tuple(
            None if by_layer else (segment.keys, segment.values)
            for segment, by_layer in zip(context, has_arrays, strict=True)
        )

        config, windows = self.config, self.config.sliding_window
        ropes = (config.rope,) if windows is None else (config.rope, windows.rope)
        no_temperature = all(rope.attention == 1.0 for rope in ropes)

        def geometry(rope: Rope, window: int | None) -> Geometry:
            return Geometry(
                positions,
                jnp.asarray(
                    inverse_frequencies(rope, config.head_width, config.max_length)
                ),
                None if no_temperature else jnp.asarray(rope.attention, jnp.float32),
                valid,
                None if window is None else jnp.asarray(window),
                tuple(view_segment(segment, positions, window) for segment in context),
            )

        without_window = geometry(config.rope, None)
        if windows is not None:
            # A window of 2^30 positions is none, in the same pytree.
            full_geometry = geometry(config.rope, 2**30)
            window_geometry = geometry(windows.rope, windows.size)

        def layer(
            x: Float[Array, "R Q D"], block_and_cache: tuple[Block, Any, Any, Array]
        ) -> tuple[Float[Array, "R Q D"], tuple[Array, Array]]:
            block, stacked, has_window, number = block_and_cache
            cached = tuple(
                ByLayer(segment.keys, segment.values, number) if by_layer else layers
                for segment, layers, by_layer in zip(
                    context, stacked, has_arrays, strict=True
                )
            )
            tables = without_window
            if windows is not None:
                tables = jax.tree.map(
                    lambda a, b: jnp.where(has_window, a, b),
                    window_geometry,
                    full_geometry,
                )
            return block(x, tables, cached)

        x = self.embed(tokens)
        if config.embedding_scale != 1.0:
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        flags = jnp.asarray(windows.layers) if windows is not None else None
        numbers = jnp.arange(config.num_layers, dtype=jnp.int32)
        scanned = (self.blocks, stacks, flags, numbers)
        x, (keys, values) = jax.lax.scan(layer, x, scanned)
        return self.norm(x), KeyValues(keys, values, positions)


class LanguageModel(nnx.Module):
    """A causal language model: trunk and vocabulary head.

    Args:
        config: the model's shape.
        rngs: NNX random streams for the initial weights.
        dtype: of the weights and the matrix products; norms and softmax are float32.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
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
            trunk = self.trunk
            out = product_in_float32(hidden, trunk.embedding[...].T, trunk.scale)
        else:
            out = self.head.in_float32(hidden)
        cap = self.config.logit_softcap
        return out if cap is None else cap * jnp.tanh(out / cap)

    def __call__(self, tokens: Int[Array, "R Q"]) -> Float[Array, "R Q V"]:
        """Logits at every position of whole sequences, without a cache.

        Raises:
            PromptTooLongError: see :func:`tsi.models.rotary.check_length`.
        """
        check_length(self.config.rope, tokens.shape[1], self.config.max_length)
        hidden, _ = self.trunk(tokens, positions_of(tokens))
        return self.logits(hidden)


class RewardModel(nnx.Module):
    """A process reward model: trunk and a head of one or two labels on every token.

    At the last token of a step it gives the log-odds that the solution so far leads to
    a right answer. The other heads, in :mod:`tsi.models.heads`, differ in ``labels``.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.trunk = Trunk(config, rngs=rngs, dtype=dtype)
        self.score = Linear(config.width, config.num_labels, rngs=rngs, dtype=dtype)
        self.bias = nnx.Param(jnp.zeros((config.num_labels,), dtype))
        self.config = config

    def labels(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b labels"]:
        """One output, or the logits of two classes, bad and good; float32."""
        return self.score.in_float32(hidden) + self.bias[...].astype(jnp.float32)

    def log_odds(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b"]:
        """Log-odds, float32, at each of the trunk's hidden states."""
        labels = self.labels(hidden)
        if labels.shape[-1] == 1:
            return labels[..., 0]
        return labels[..., 1] - labels[..., 0]

    def __call__(self, tokens: Int[Array, "R Q"]) -> Float[Array, "R Q"]:
        """Log-odds at every position of whole sequences, without a cache.

        Raises:
            PromptTooLongError: see :func:`tsi.models.rotary.check_length`.
        """
        check_length(self.config.rope, tokens.shape[1], self.config.max_length)
        hidden, _ = self.trunk(tokens, positions_of(tokens))
        return self.log_odds(hidden)


def with_cache_dtype(model: Any, dtype: Any) -> Any:
    """The model with another type of keys and values; the weights are shared.

    Args:
        model: a model without a trunk is returned unchanged.
        dtype: of keys and values.
    """
    if not hasattr(model, "trunk"):
        return model
    model = nnx.merge(*nnx.split(model))
    model.trunk.blocks.attention.cache_dtype = jnp.dtype(dtype)
    return model


def positions_of(tokens: Int[Array, "R Q"]) -> Int[Array, "R Q"]:
    """Positions 0, 1, … of sequences without padding before them."""
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
