"""Keys and values of a reward model on this machine, in slots of one length.

A slot contains the keys and values of one text. A text that continues another begins
with a copy of that text's slot, cut to their common prefix, so that forks need no
bookkeeping. The caller decides which slots are overwritten.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tsi.models.attention import Segment

WIDTHS = (16, 64, 256)
"""Numbers of ids that are read in one pass; a longer text takes several passes."""

Values = Callable[[Any, Array, Array], Array]


class SlotReading(NamedTuple):
    """A text to be read.

    Attributes:
        tokens: all ids of the text.
        common: number of first ids that the parent shares.
        parent: slot of the parent; any slot if `common` is 0.
        slot: the slot that is written.
    """

    tokens: Int[np.ndarray, " L"]
    common: int
    parent: int
    slot: int


class ReadingSlots:
    """Slots of one reward model.

    Args:
        model: the reward model, which has a trunk.
        values: the model's output at each id, from hidden states and following ids.
        length: ids of the longest text.
        num_slots: how many texts are stored.
    """

    def __init__(self, model: Any, values: Values, length: int, num_slots: int) -> None:
        self.model, self.num_slots = model, num_slots
        config, room = model.config, length + WIDTHS[-1]
        shape = (config.num_layers, num_slots, config.num_kv_heads)
        dtype = model.trunk.cache_dtype
        self._keys: Any = jnp.zeros((*shape, config.head_width, room), dtype)
        self._values: Any = jnp.zeros((*shape, room, config.head_width), dtype)
        self._read = jax.jit(
            functools.partial(read_rows, values), donate_argnums=(1, 2)
        )

    def read(self, readings: Sequence[SlotReading]) -> list[Float[np.ndarray, " new"]]:
        """The model's output at the new ids of each text.

        Args:
            readings: texts with distinct slots, each with at least one new id.
        """
        size = 1
        while size < len(readings):
            size *= 4
        parents = [reading.parent for reading in readings]
        done = [reading.common for reading in readings]
        pieces_by_reading: list[list[Any]] = [[] for _ in readings]
        while any(d < len(r.tokens) for d, r in zip(done, readings, strict=True)):
            left = max(len(r.tokens) - d for d, r in zip(done, readings, strict=True))
            width = next((w for w in WIDTHS if w >= left), WIDTHS[-1])
            tokens: Any = np.zeros((size, width + 1), np.int32)
            num_kept, counts = np.zeros(size, np.int32), np.zeros(size, np.int32)
            # Slots out of range are not written.
            rows, slots = np.zeros(size, np.int32), np.full(size, self.num_slots)
            for i, (begin, reading) in enumerate(zip(done, readings, strict=True)):
                new = reading.tokens[begin : begin + width + 1]
                tokens[i, : len(new)] = new
                num_kept[i], counts[i] = begin, min(len(new), width)
                rows[i], slots[i] = parents[i], reading.slot
            output, self._keys, self._values = self._read(
                self.model,
                self._keys,
                self._values,
                rows,
                slots.astype(np.int32),
                num_kept,
                tokens,
                counts,
            )
            output = np.asarray(output)
            for i, reading in enumerate(readings):
                pieces_by_reading[i].append(output[i, : counts[i]])
                done[i] += int(counts[i])
                parents[i] = reading.slot
        return [np.concatenate(pieces) for pieces in pieces_by_reading]


def bytes_per_slot(model: Any, length: int) -> int:
    """Bytes of keys and values of a slot for texts of a length."""
    config = model.config
    itemsize = jnp.dtype(model.trunk.cache_dtype).itemsize
    per_id = 2 * config.num_layers * config.num_kv_heads * config.head_width * itemsize
    return per_id * (length + WIDTHS[-1])


def read_rows(
    values_of: Values,
    model: Any,
    keys: Float[Array, "L S K h T"],
    values: Float[Array, "L S K T h"],
    parents: Int[Array, " W"],
    slots: Int[Array, " W"],
    num_kept: Int[Array, " W"],
    tokens: Int[Array, "W C1"],
    counts: Int[Array, " W"],
) -> tuple[Float[Array, "W C"], Array, Array]:
    """Read the next ids of rows.

    Args:
        values_of: see :class:`ReadingSlots`.
        model: the reward model.
        keys, values: keys and values of all slots.
        parents: slot with the ids that each row has already read.
        slots: slot to which each row is written; indices out of range are dropped.
        num_kept: number of ids that each row has already read.
        tokens: the next C ids of each row and the id after them.
        counts: number of the C ids that are not padding.

    Returns:
        The model's output at each id, and all slots.
    """
    width = tokens.shape[1] - 1
    places = num_kept[:, None] + jnp.arange(width)
    own_keys, own_values = keys[:, parents], values[:, parents]
    room = jnp.arange(keys.shape[-1])
    past = Segment(
        own_keys,
        own_values,
        jnp.broadcast_to(room, (len(parents), len(room))),
        room < num_kept[:, None],
    )
    valid = jnp.arange(width) < counts[:, None]
    hidden, new = model.trunk(tokens[:, :-1], places, valid, (past,))
    output = values_of(model, hidden, tokens[:, 1:])

    def write(axis: int) -> Callable[[Array, Array, Array], Array]:
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis)
        return jax.vmap(update, in_axes=(1, 1, 0), out_axes=1)

    # Positions beyond a row's count are padding, which `num_kept` masks.
    own_keys = write(-1)(own_keys, new.keys, num_kept)
    own_values = write(-2)(own_values, new.values, num_kept)
    return (
        output,
        keys.at[:, slots].set(own_keys, mode="drop"),
        values.at[:, slots].set(own_values, mode="drop"),
    )
