"""Policies that attend to windows, as samplers use them: forked, cut, stored, repeated.

Windows are shorter than prompts and than steps, so that every segment of the cache is
partly out of sight; log-probabilities equal those of the uncached models.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from flax import nnx

from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.decoder_config import SlidingWindow
from tsi.models.rotary import Rope
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.rewards.reward import NoReward

PROMPTS = ("hello", "bad", "gems")
COUNT = 4
WINDOWED = tiny.config(
    sliding_window=SlidingWindow(3, (True, False), Rope(20.0)),
    rope=Rope(100.0),
    query_key_norm=True,
    attention_softcap=4.0,
)


def windowed_params() -> ReasoningParams:
    policy = LanguageModel(WINDOWED, rngs=nnx.Rngs(0))
    policy.trunk.embedding[...] = policy.trunk.embedding[...] * 2.0
    reward = RewardModel(WINDOWED, rngs=nnx.Rngs(1))
    return ReasoningParams(policy, reward, tiny.prompts(*PROMPTS), jnp.float32(1.0))


def assert_as_uncached(params, particles, *, read: bool = True) -> int:
    """Compare all rows, as read by the reward too; how many tokens they have in all."""
    lengths = np.asarray(particles.lengths)
    rows = [
        (PROMPTS[row // COUNT], np.asarray(particles.tokens)[row, :length].tolist())
        for row, length in enumerate(lengths)
    ]
    log_prob, log_odds = tiny.uncached(params, rows)
    written = lengths > 0
    np.testing.assert_allclose(
        particles.log_prob[written], log_prob[written], atol=2e-4
    )
    if read:
        np.testing.assert_allclose(
            particles.log_odds[written], log_odds[written], atol=2e-4
        )
    return int(lengths.sum())


def within(key):
    """One row of each row's own problem."""
    rows = jax.random.randint(key, (len(PROMPTS), COUNT), 0, COUNT)
    return (rows + COUNT * jnp.arange(len(PROMPTS))[:, None]).reshape(-1)


@pytest.mark.long
def test_forked_rows_of_a_windowed_policy_equal_uncached_models():
    target, params = tiny.target(), windowed_params()

    @jax.jit
    def step(key, t, particles, params):
        key_rows, key_step = jax.random.split(key)
        particles = target.gather(particles, within(key_rows))
        keys = jax.random.split(key_step, len(PROMPTS))
        return target.propose(keys, t, particles, params)[0]

    particles = jax.jit(lambda p: target.init(None, COUNT, p))(params)
    for t in range(target.max_steps):
        particles = step(jax.random.key(t), t, particles, params)
        tokens = assert_as_uncached(params, particles)
    assert bool(particles.finished.all())
    assert tokens > 8 * len(PROMPTS) * COUNT, "the texts are no longer than a window"


@pytest.mark.long
def test_cut_stored_and_repeated_rows_of_a_windowed_policy_equal_uncached_models():
    store, params = ReasoningStore(tiny.target(reward=NoReward())), windowed_params()
    everyone = jnp.arange(len(PROMPTS) * COUNT)
    slots = everyone.reshape(-1, COUNT)[:, ::-1].reshape(-1)

    @jax.jit
    def turn(key, stored, params):
        key_rows, key_cut, key_sources, key_step = jax.random.split(key, 4)
        rows = store.gather(stored, within(key_rows))
        depths = jax.random.randint(key_cut, everyone.shape, 0, 9)
        rows = store.truncate(rows, depths, params)
        sources = store.gather(stored, within(key_sources))
        rows, _ = store.replay(jnp.sum(rows.step_ends > 0, 1), rows, sources, params)
        keys = jax.random.split(key_step, len(PROMPTS))
        rows, _ = store.propose(keys, jnp.sum(rows.step_ends > 0, 1), rows, params)
        return store.put(stored, slots, rows), rows

    stored = jax.jit(lambda p: store.init(None, COUNT, p))(params)
    for t in range(12):
        stored, rows = turn(jax.random.key(t), stored, params)
    assert_as_uncached(params, rows, read=False)
    assert int(jnp.sum(stored.history.log_prob != 0)) > 30
