"""64 random bits a row draw in proportion, and never an impossible entry."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tsi.decoding.categorical import BLOCK, categorical, draw_by_bits
from tsi.scaled_bits import position_bits

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


def test_a_token_that_is_all_but_impossible_is_not_drawn_at_the_start_of_a_block():
    numbers = np.random.default_rng(0)
    logits = 2.0 * numbers.normal(size=16 * BLOCK)
    hopeless = numbers.random(logits.shape) < 0.3
    hopeless[:: BLOCK // 2] = True
    logits[hopeless] -= 60.0
    mass = np.exp(logits.reshape(16, BLOCK)).sum(1)
    starts = np.concatenate([[0.0], np.cumsum(mass)[:-1]]) / mass.sum()
    # Numbers to both sides of the start of each block, and within 2^-23 of it.
    near = np.arange(-1024, 1024, 2)
    high = (np.round(starts * 2.0**32)[:, None] + near).clip(0).reshape(-1)
    words = np.stack([high, numbers.integers(2**32, size=high.size)], 1)
    words[:, 1] *= numbers.random(len(words)) < 0.9
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (len(words), 16 * BLOCK))
    drawn, _ = jax.jit(draw_by_bits)(jnp.asarray(words, jnp.uint32), rows)
    assert not hopeless[np.asarray(drawn)].any()
    assert len(set((np.asarray(drawn) // BLOCK).tolist())) == 16


def test_the_first_token_is_not_drawn_by_bad_luck(monkeypatch):
    def zeros(key, shape=(), dtype=jnp.float32, **_):
        return jnp.zeros(shape, dtype)

    monkeypatch.setattr(jax.random, "uniform", zeros)
    monkeypatch.setattr(jax.random, "bits", zeros)
    logits = jnp.zeros((1, 300)).at[:, 0].set(-60.0)
    drawn, _ = categorical(jax.random.split(jax.random.key(0), 1), logits)
    assert drawn.tolist() == [1]


def test_a_row_without_a_finite_entry_draws_the_first_and_says_so():
    keys = jax.random.split(jax.random.key(0), 3)
    nothing = jnp.asarray([-jnp.inf, jnp.nan, jnp.inf])
    drawn, told = categorical(keys, jnp.broadcast_to(nothing[:, None], (3, 300)))
    assert drawn.tolist() == [0, 0, 0]
    assert np.isnan(told).all()


def test_all_tokens_of_a_light_block_can_be_drawn():
    # The second block has 4 units of 2^-30, and 256 equal tokens.
    logits = jnp.zeros(2 * BLOCK).at[BLOCK:].set(-28.0 * np.log(2.0))
    numbers = np.random.default_rng(0)
    words = numbers.integers(2**32, size=(4000, 2))
    words[:, 0] = 2**32 - 1 - 4 * (words[:, 0] % 4)
    rows = jnp.broadcast_to(logits, (len(words), 2 * BLOCK))
    drawn, _ = jax.jit(draw_by_bits)(jnp.asarray(words, jnp.uint32), rows)
    counts = np.bincount(np.asarray(drawn) - BLOCK, minlength=BLOCK)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_places_become_bits_exactly():
    numbers = np.random.default_rng(0)
    bound = np.concatenate(
        [[1, 2, 3, 2**31, 2**30 + 7], numbers.integers(1, 2**31, 99)]
    )
    position = np.minimum(numbers.random(104) * bound, bound - 1).astype(np.int64)
    bits = numbers.integers(2**32, size=104)
    exact = [
        (int(p) * 2**32 + int(b)) // int(n)
        for p, b, n in zip(position, bits, bound, strict=True)
    ]
    found = position_bits(
        *(jnp.asarray(x, jnp.uint32) for x in (position, bits, bound))
    )
    assert found.tolist() == exact
