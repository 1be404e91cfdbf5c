"""Prompts, read in chunks, so that memory does not grow with the square of the length.

A prompt of up to `CHUNK` positions is read in one piece. A longer one is read piece by
piece, each attending to the keys and values of those before it, which attention reads
in blocks (:func:`tsi.models.layers.attend_in_blocks`): what is computed at a time is a
chunk, and scores of a chunk against a block. No logits are computed at all, since the
last token of a prompt is read with the first that is drawn. The pieces of a batch end
with its longest prompt, whatever its width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from tsi.models.decoder import KeyValues, Trunk, positions_of
from tsi.models.decoder_config import DecoderConfig
from tsi.models.layers import KEYS_AT_ONCE, Segment

CHUNK = 512
"""Positions of each prompt that are read together."""
BUCKET = 16
"""Chunks have a multiple of so many positions, and are alike within a batch."""


def chunk_size(length: int, most: int = CHUNK) -> int:
    """Positions of a chunk of prompts so wide: they are divided evenly."""
    if length <= most:
        return length
    count = -(-length // most)
    return -(-length // (count * BUCKET)) * BUCKET


def read_prompts(
    trunk: Trunk,
    tokens: Int[Array, "P S"],
    mask: Bool[Array, "P S"],
    most: int = CHUNK,
) -> KeyValues:
    """Keys and values of prompts.

    Args:
        trunk: of the model that reads.
        tokens: ids.
        mask: True at those to be read, which stand in front.
        most: positions read together.
    """
    length = tokens.shape[1]
    if length <= most:
        return trunk(tokens, positions_of(tokens), mask)[1]
    chunk = chunk_size(length, most)
    beyond = -length % chunk
    tokens, mask = (jnp.pad(x, ((0, 0), (0, beyond))) for x in (tokens, mask))
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
    most: int = CHUNK,
) -> int:
    """What reading prompts takes beside the weights, at most, their caches included.

    As compiled for a CPU in float32, where the tests compare it with what XLA plans. In
    bfloat16 a CPU turns the weights into float32 first, which comes on top.

    Args:
        config: of the model that reads.
        prompts: how many are read together.
        length: positions of each, padding included.
        itemsize: bytes of a weight.
        cached: bytes of an entry of keys and values; as of a weight, if None.
        most: positions read together.
    """
    chunk = chunk_size(length, most)
    padded = length + -length % chunk
    heads, kv_heads, h = config.num_heads, config.num_kv_heads, config.head_width
    d, layers = config.width, config.num_layers
    position = 2 * kv_heads * h * (itemsize if cached is None else cached)
    # The whole, what is cut to length, and a layer's slices.
    whole = layers * position
    caches = prompts * (whole * (length + padded * (padded > length)))
    caches += prompts * 2 * position * padded
    # A scan over layers copies the weights of the one that it is at.
    layer = itemsize * d * (2 * h * (heads + kv_heads) + 3 * config.hidden)
    # float32 of the norms among them: input, branches and what they are made of.
    widths = 6 * d + 3 * config.hidden + 6 * heads * h + 4 * kv_heads * h
    tokens = prompts * chunk
    keys = chunk if padded == chunk else max(chunk, KEYS_AT_ONCE)
    scores = 3 * 4 * tokens * heads * keys
    masks = 2 * tokens * padded
    # New keys and values of a chunk, before they are put beside the others.
    new = tokens * whole * (1 if padded > chunk else 0)
    return caches + layer + 4 * tokens * widths + scores + masks + new
