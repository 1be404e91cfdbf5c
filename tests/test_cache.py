"""The suffix cache holds what a list of lists would hold."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_language import config

from tsi.decoding.cache import append, empty_suffix, fork
from tsi.models.decoder import KeyValues


def test_append_fork_and_squeeze_keep_every_rows_own_tokens():
    rows, width, longest = 5, 4, 12
    shape = config(num_layers=1, num_kv_heads=1, head_width=1)
    suffix = empty_suffix(shape, rows, longest + width)
    truth: list[list[float]] = [[] for _ in range(rows)]
    draw = np.random.default_rng(0)
    squeezed = False
    store = jax.jit(append, static_argnums=3)
    for step in range(12):
        room = [longest - len(row) for row in truth]
        counts = [int(draw.integers(0, min(width, r) + 1)) for r in room]
        marks = draw.normal(size=(rows, width)).astype(np.float32)
        keys = jnp.asarray(marks)[None, :, None, None, :]
        values = jnp.asarray(marks)[None, :, None, :, None]
        places = jnp.asarray([len(row) for row in truth])[:, None] + jnp.arange(width)
        before = int(suffix.used)
        suffix = store(suffix, KeyValues(keys, values, places), jnp.asarray(counts), 12)
        squeezed |= int(suffix.used) < before + max(counts)
        for row, count, mark in zip(truth, counts, marks, strict=True):
            row.extend(mark[:count].tolist())
        if step % 3 == 1:
            ancestors = draw.integers(0, rows, rows)
            suffix = fork(suffix, jnp.asarray(ancestors))
            truth = [list(truth[a]) for a in ancestors]
        for i, row in enumerate(truth):
            mask = np.asarray(suffix.segment.mask[i])
            np.testing.assert_array_equal(suffix.segment.keys[0, i, 0, 0][mask], row)
            places = np.asarray(suffix.segment.positions[i])[mask]
            np.testing.assert_array_equal(places, np.arange(len(row)))
            np.testing.assert_array_equal(
                suffix.segment.values[0, i, 0, :, 0][mask], row
            )
    assert squeezed, "the test never ran out of slots, so squeezing went untested"
