"""One turn of the driver: who steps, and what is told of those who do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsi import samplers
from tsi.errors import CapabilityError
from tsi.explore import put, start, step_rows
from tsi.explorer import Request
from tsi.targets.examples import smooth

KEY = jax.random.key(0)
PLACES = jnp.arange(4, dtype=jnp.int32)


def grown(target, num_steps):
    rows = target.init(KEY, 4)
    for t in range(num_steps):
        rows, _ = target.propose(jax.random.fold_in(KEY, t), t, rows)
    return rows


def requested(extend=True, **changes):
    return Request(PLACES, PLACES, jnp.full(4, extend), **changes)


def stepped(rows, depth, request, limit=4, sources=None):
    depths = jnp.full(4, depth, jnp.int32)
    return step_rows(smooth(), KEY, rows, depths, request, sources, None, limit)


def test_a_row_steps_once_and_is_told_of_that_step_alone():
    rows = grown(smooth(), 2)
    after = stepped(rows, 2, requested())
    np.testing.assert_array_equal(after.rows.length, 3)
    np.testing.assert_array_equal(after.depths, 3)
    symbols = np.asarray(after.rows.symbols)
    expected = np.log(smooth().transition[symbols[:, 1], symbols[:, 2]])
    np.testing.assert_allclose(after.reply.log_probs, expected, rtol=1e-5)


def test_who_is_not_asked_has_finished_or_is_at_the_limit_stays():
    for rows, depth, request, limit in (
        (grown(smooth(), 2), 2, requested(extend=False), 4),
        (grown(smooth(), 4), 4, requested(), 4),
        (grown(smooth(), 2), 2, requested(), 2),
    ):
        after = stepped(rows, depth, request, limit)
        np.testing.assert_array_equal(after.rows.symbols, rows.symbols)
        np.testing.assert_array_equal(after.depths, depth)
        np.testing.assert_array_equal(after.reply.log_probs, 0.0)
        np.testing.assert_array_equal(after.reply.finished, depth >= limit)


def test_rows_are_cut_before_they_step():
    rows = grown(smooth(), 4)
    depths = jnp.array([0, 1, 3, 9], jnp.int32)
    after = stepped(rows, 4, requested(depths=depths))
    np.testing.assert_array_equal(after.rows.length, [1, 2, 4, 4])
    kept = np.asarray(rows.symbols)
    for row, depth in enumerate((0, 1, 3)):
        np.testing.assert_array_equal(
            np.asarray(after.rows.symbols)[row, :depth], kept[row, :depth]
        )


def test_a_source_gives_its_step_and_others_draw_their_own():
    rows, whole = grown(smooth(), 1), grown(smooth(), 4)
    sources = jnp.array([2, -1, 0, -1], jnp.int32)
    gathered = smooth().gather(whole, jnp.maximum(sources, 0))
    after = stepped(rows, 1, requested(sources=sources), sources=gathered)
    now = np.asarray(after.rows.symbols)[:, 1]
    then = np.asarray(whole.symbols)[:, 1]
    assert (now[0], now[2]) == (then[2], then[0])
    fresh = stepped(rows, 1, requested())
    drawn = np.asarray(fresh.rows.symbols)[:, 1]
    assert (now[1], now[3]) == (drawn[1], drawn[3])


def test_what_is_put_beyond_the_store_is_lost():
    stored, rows = grown(smooth(), 1), grown(smooth(), 3)
    after = put(smooth(), stored, jnp.array([3, 4, 9, 0]), rows)
    np.testing.assert_array_equal(after.length, [3, 1, 1, 3])
    np.testing.assert_array_equal(after.symbols[3], rows.symbols[0])


def test_a_target_that_lacks_what_is_needed_is_named():
    class Bare:
        max_steps = 4

    with pytest.raises(CapabilityError, match="Bare has none"):
        start(samplers.quest(0.5), Bare(), KEY, 4)
