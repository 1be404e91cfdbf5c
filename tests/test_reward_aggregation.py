"""Aggregation by enumeration, and as a wrapper of any reward."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from flax import nnx

from tsi import samplers
from tsi.errors import UnknownNameError
from tsi.models.heads import ValueHead
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.rewards.aggregation import AGGREGATIONS, Aggregated, aggregate
from tsi.rewards.policy_value import PolicyValue
from tsi.rewards.text_reward import TextReward
from tsi.run import run

LOG_ODDS = (-30.0, -2.0, -0.1, 0.0, 0.7, 3.0, 25.0)


def by_hand(log_odds, how: str) -> float:
    """In 128-bit floats, where nothing cancels."""
    x = np.asarray(log_odds, np.longdouble)
    good, bad = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
    if how == "last":
        return float(x[-1])
    if how == "min":
        return float(x.min())
    if how == "mean":
        return float(np.log(good.mean()) - np.log(bad.mean()))
    before = np.concatenate([[1], np.cumprod(good)[:-1]])
    return float(np.log(np.prod(good)) - np.log((before * bad).sum()))


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_every_row_of_up_to_three_scores_is_aggregated_exactly(how):
    rows = [r for n in (1, 2, 3) for r in itertools.product(LOG_ODDS, repeat=n)]
    # What lies beyond a row's steps must not count, whatever it is.
    padded = [[*row, *[np.nan] * (4 - len(row))] for row in rows]
    counts = jnp.asarray([len(row) for row in rows])
    found = aggregate(jnp.asarray(padded, jnp.float32), counts, how)
    expected = [by_hand(row, how) for row in rows]
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-6)
    none = aggregate(jnp.full((1, 4), jnp.nan), jnp.zeros(1, jnp.int32), how)
    assert none.tolist() == [0.0]


def test_an_unknown_way_lists_the_known():
    with pytest.raises(UnknownNameError, match="last, mean, min, product"):
        aggregate(jnp.zeros((1, 1)), jnp.ones(1, jnp.int32), "median")


def score(texts) -> np.ndarray:
    """Log-odds of the newest letters, so that no two steps score alike."""
    return np.array([sum(map(ord, text[-2:])) % 13 - 6.0 for text in texts])


def test_a_store_knows_the_scores_of_the_steps_that_are_left():
    reward = Aggregated(TextReward(score, tiny.decode), "product", 8)
    store = ReasoningStore(tiny.target(reward=reward))
    params, size = tiny.params("hello", "bad", sharpness=2.0), 4
    rows = store.init(None, size, params)
    depths = jnp.zeros(2 * size, jnp.int32)

    @jax.jit
    def turn(key, stored, depths):
        parents = jax.random.randint(key, (2, size), 0, size)
        parents = (parents + jnp.array([[0], [size]])).reshape(-1)
        taken = store.gather(stored, parents)
        cut = jax.random.randint(jax.random.fold_in(key, 1), (2 * size,), 0, 12)
        depths = jnp.minimum(depths[parents], cut)
        taken = store.truncate(taken, depths, params)
        keys = jax.random.split(key, 2)
        after, _ = store.propose(keys, depths, taken, params)
        depths = jnp.sum(after.step_ends > 0, axis=1)
        return store.put(stored, jnp.arange(2 * size), after), depths

    deepest = 0
    for t in range(12):
        rows, depths = turn(jax.random.key(t), rows, depths)
        ends = np.asarray(rows.step_ends)
        for row, tokens in enumerate(np.asarray(rows.tokens)):
            texts = [tiny.decode(tokens[:end].tolist()) for end in ends[row] if end]
            expected = by_hand(score(texts), "product")
            assert float(rows.log_odds[row]) == pytest.approx(expected, abs=1e-4)
            deepest = max(deepest, len(texts))
    assert deepest > 3


@pytest.mark.long
def test_a_value_head_reads_the_policys_hidden_state_at_the_last_token():
    policy, _ = tiny.models(sharpness=2.0)
    head = ValueHead(32, rngs=nnx.Rngs(5))
    params = ReasoningParams(policy, head, tiny.prompts("hello"), jnp.float32(1.0))
    target = tiny.target(reward=PolicyValue())
    final = jax.jit(lambda key: run(samplers.smc(), target, key, 4, params))(
        jax.random.key(0)
    )
    particles = final.particles
    for row in range(4):
        tokens = particles.tokens[row][: int(particles.lengths[row])].tolist()
        sequence = jnp.asarray([tiny.encode("hello") + tokens])
        places = jnp.arange(sequence.shape[1])[None]
        hidden, _ = policy.trunk(sequence, places)
        expected = hidden[0, -1] @ head.summary.kernel[...] + head.summary.bias[...]
        assert float(particles.log_odds[row]) == pytest.approx(
            float(expected[0]), abs=1e-4
        )
    steps = (np.asarray(particles.step_ends) > 0).sum(axis=1)
    assert np.asarray(particles.cost.reward_read).max() <= steps.max()
    assert np.ptp(np.asarray(particles.log_odds)) > 0.01
