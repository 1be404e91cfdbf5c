"""One uniform number a row draws in proportion, and never an impossible entry."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tsi.decoding.categorical import categorical

DRAWS = 200_000


@pytest.mark.long
@pytest.mark.parametrize("size", [1, 3, 20, 256, 257, 1000])
def test_draws_are_in_proportion(size):
    log_p = 2.0 * jax.random.normal(jax.random.key(size), (size,))
    log_p = log_p.at[size // 2].set(-jnp.inf) if size > 2 else log_p
    keys = jax.random.split(jax.random.key(1), DRAWS)
    draw = jax.jit(
        lambda keys: jax.lax.map(
            lambda key: categorical(key[None], log_p[None])[0][0], keys, batch_size=5000
        )
    )
    counts = np.bincount(draw(keys), minlength=size)
    p = np.asarray(jax.nn.softmax(log_p), np.float64)
    assert counts[p == 0].sum() == 0
    order = np.argsort(p)
    # Rare entries are pooled, so that every cell of the test expects at least ten.
    cells = np.searchsorted(
        np.cumsum(p[order]) * DRAWS, np.arange(10, DRAWS, DRAWS / 50)
    )
    edges = np.unique(np.concatenate([[0], cells + 1, [size]]).clip(0, size))
    pooled = [slice(a, b) for a, b in itertools.pairwise(edges)]
    expected = np.array([p[order][s].sum() for s in pooled]) * DRAWS
    observed = np.array([counts[order][s].sum() for s in pooled])
    keep = expected > 0
    if keep.sum() > 1:
        chi2 = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
        assert stats.chi2.sf(chi2, keep.sum() - 1) > 1e-3
    assert observed[~keep].sum() == 0


@pytest.mark.long
def test_an_impossible_entry_is_never_drawn_even_at_the_end():
    log_p = jnp.full((DRAWS, 300), -jnp.inf).at[:, 7].set(0.0).at[:, 290].set(-17.0)
    drawn, told = categorical(jax.random.split(jax.random.key(2), DRAWS), log_p)
    assert set(np.unique(drawn).tolist()) <= {7, 290}
    expected = jax.nn.log_softmax(log_p[0])[drawn]
    np.testing.assert_allclose(told, expected, rtol=1e-6, atol=1e-6)


def test_a_rows_draw_depends_on_its_own_key_alone():
    keys = jax.random.split(jax.random.key(3), 8)
    # More than two blocks of the look-up.
    log_p = jax.random.normal(jax.random.key(4), (8, 600))
    together, told = categorical(keys, log_p)
    expected = jax.nn.log_softmax(log_p)[jnp.arange(8), together]
    np.testing.assert_allclose(told, expected, rtol=1e-6)
    for row in range(8):
        alone, _ = categorical(keys[row : row + 1], log_p[row : row + 1])
        assert int(alone[0]) == int(together[row])
