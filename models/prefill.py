"""Reads prompts in chunks, so that memory does not grow quadratically with the length.

A prompt of up to `CHUNK` positions is read in one chunk. A longer one is read chunk by
chunk. Each chunk attends to the keys and values of those before it block by block
(:func:`tsi.models.attention.attend_in_blocks`), so memory holds the scores of one chunk
against one block. No logits are computed, because the last token of a prompt is read
together with the first token that is drawn. The loop ends with the longest prompt of
the batch, not with the width of the array.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from tsi.models.attention import KEYS_AT_ONCE, Segment
from tsi.models.decoder import KeyValues, Trunk, positions_of
from tsi.models.decoder_config import DecoderConfig

CHUNK = 512
"""Positions of each prompt that are read at a time."""
BUCKET = 16
"""The length of a chunk is a multiple of this, and equal for all chunks of a batch."""


def chunk_size(length: int, max_chunk: int = CHUNK) -> int:
    """The length of the chunks into which prompts of a length are divided evenly."""
    if length <= max_chunk:
        return length
    count = -(-length // max_chunk)
    return -(-length // (count * BUCKET)) * BUCKET


def read_prompts(
    trunk: Trunk,
    tokens: Int[Array, "P S"],
    mask: Bool[Array, "P S"],
    max_chunk: int = CHUNK,
) -> KeyValues:
    """Keys and values of prompts.

    Args:
        trunk: of the model that reads.
        tokens: ids.
        mask: True at tokens of the prompt, which come before all padding.
        max_chunk: positions read at a time.
    """
    length = tokens.shape[1]
    if length <= max_chunk:
        return trunk(tokens, positions_of(tokens), mask)[1]
    chunk = chunk_size(length, max_chunk)
    num_padded = -length % chunk
    tokens, mask = (jnp.pad(x, ((0, 0), (0, num_padded))) for x in (tokens, mask))
    places = positions_of(tokens).astype(jnp.int32)

    def piece(x: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=-1)

    def read(i: Array, before: KeyValues) -> KeyValues:
        start = i * chunk
        context = Segment(*before, mask & (places < start))
        pieces = [piece(x, start) for x in (tokens, places, mask)]
        _, new = trunk(pieces[0], pieces[1], pieces[2], (context,))
        update = jax.lax.dynamic_update_slice_in_dim
        return before._replace(
            keys=update(before.keys, new.keys, start, axis=-1),
            values=update(before.values, new.values, start, axis=-2),
        )

    _, like = jax.eval_shape(lambda: trunk(tokens[:, :1], places[:, :1]))
    empty = KeyValues(
        jnp.zeros((*like.keys.shape[:-1], tokens.shape[1]), like.keys.dtype),
        jnp.zeros(
            (*like.values.shape[:3], tokens.shape[1], like.values.shape[-1]),
            like.values.dtype,
        ),
        places,
    )
    last = jnp.max(jnp.where(mask, places + 1, 0))
    keys, values, _ = jax.lax.fori_loop(0, -(-last // chunk), read, empty)
    return KeyValues(keys[..., :length], values[..., :length, :], places[:, :length])


def prefill_bytes(
    config: DecoderConfig,
    prompts: int,
    length: int,
    itemsize: int,
    *,
    cached: int | None = None,
    max_chunk: int = CHUNK,
) -> int:
    """An upper bound on the memory for reading prompts, without the weights.

    The caches of the prompts are included. The bound is for a CPU in float32, where the
    tests compare it with XLA's plan. In bfloat16 a CPU also converts the weights to
    float32, which is not included.

    Args:
        config: of the model that reads.
        prompts: number of prompts read together.
        length: positions of each, padding included.
        itemsize: bytes of a weight.
        cached: bytes of an entry of keys and values; those of a weight, if None.
        max_chunk: positions read at a time.
    """
    chunk = chunk_size(length, max_chunk)
    padded = length + -length % chunk
    heads, kv_heads, h = config.num_heads, config.num_kv_heads, config.head_width
    d, layers = config.width, config.num_layers
    position = 2 * kv_heads * h * (itemsize if cached is None else cached)
    # All layers, once more without padding, and the slices of one layer.
    all_layers = layers * position
    caches = prompts * (all_layers * (length + padded * (padded > length)))
    caches += prompts * 2 * position * padded
    # A scan over layers copies the weights of the current layer.
    layer = itemsize * d * (2 * h * (heads + kv_heads) + 3 * config.hidden)
    # Activations, those of norms in float32: input, branches and their factors.
    widths = 6 * d + 3 * config.hidden + 6 * heads * h + 4 * kv_heads * h
    tokens = prompts * chunk
    keys = chunk if padded == chunk else max(chunk, KEYS_AT_ONCE)
    scores = 3 * 4 * tokens * heads * keys
    masks = 2 * tokens * padded
    # New keys and values of a chunk, before they are written to the cache.
    new = tokens * all_layers * (1 if padded > chunk else 0)
    return caches + layer + 4 * tokens * widths + scores + masks + new
