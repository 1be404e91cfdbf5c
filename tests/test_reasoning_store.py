"""Stored prefixes: what is cut, repeated and continued equals the uncached models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny

import tsi
from tsi import samplers
from tsi.decoding.boundary import step_boundary
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.rewards.self_judge import SelfJudge

PROMPTS = ("hello", "bad")
STORED = 6


def texts_of(particles):
    rows = zip(np.asarray(particles.tokens), np.asarray(particles.lengths), strict=True)
    return [row[:length].tolist() for row, length in rows]


def assert_as_uncached(params, particles, rows_per_problem):
    rows = [
        (PROMPTS[row // rows_per_problem], tokens)
        for row, tokens in enumerate(texts_of(particles))
    ]
    written = np.asarray(particles.lengths) > 0
    log_prob, log_odds = tiny.uncached(params, rows)
    np.testing.assert_allclose(
        np.asarray(particles.log_prob)[written], log_prob[written], atol=2e-4
    )
    np.testing.assert_allclose(
        np.asarray(particles.log_odds)[written], log_odds[written], atol=2e-4
    )
    assert not np.asarray(particles.log_prob)[~written].any()


@pytest.fixture(scope="module")
def grown():
    """A store whose rows have been written, cut and continued for 20 turns."""
    store = ReasoningStore(tiny.target())
    # Flat enough that texts are no repetition of one letter, where mistakes hide.
    params = tiny.params(*PROMPTS, sharpness=2.0)
    stored = store.init(None, STORED, params)
    depths = jnp.zeros(2 * STORED, jnp.int32)

    @jax.jit
    def turn(key, stored, depths):
        key_parents, key_cut, key_slots, key_propose = jax.random.split(key, 4)
        offsets = jnp.repeat(jnp.arange(2) * STORED, 3)
        parents = offsets + jax.random.randint(key_parents, (6,), 0, STORED)
        order = jax.random.permutation(key_slots, STORED)[:3]
        rows = store.gather(stored, parents)
        # Half of the rows are cut somewhere, the others go on from where they are.
        cut = jax.random.randint(key_cut, (6,), 0, 9)
        depths_of = jnp.minimum(depths[parents], jnp.where(cut % 2 == 0, cut, 99))
        rows = store.truncate(rows, depths_of, params)
        keys = jax.random.split(key_propose, 2)
        extended, _ = store.propose(keys, depths_of, rows, params)
        depths_of = depths_of + ~rows.finished
        slots = offsets + jnp.tile(order, 2)
        depths = depths.at[slots].set(depths_of)
        return rows, extended, store.put(stored, slots, extended), depths

    for t in range(20):
        rows, extended, stored, depths = turn(jax.random.key(t), stored, depths)
    return store, params, rows, extended, stored, depths


@pytest.mark.long
def test_rows_cut_and_continued_many_times_equal_uncached_models(grown):
    _, params, _, extended, stored, depths = grown
    assert_as_uncached(params, extended, 3)
    assert_as_uncached(params, stored, STORED)
    steps = np.asarray(stored.step_ends > 0).sum(1)
    np.testing.assert_array_equal(steps, depths)
    assert steps.max() > 3


def test_a_cut_row_is_the_prefix_it_once_was(grown):
    store, params, *_, stored, depths = grown
    at = jnp.maximum(depths - 2, 0)
    rows = store.truncate(stored, at, params)
    ends = np.asarray(stored.step_ends)
    for row, (before, after) in enumerate(
        zip(texts_of(stored), texts_of(rows), strict=True)
    ):
        end = ends[row, at[row] - 1] if at[row] else 0
        assert after == before[:end]
        if at[row] < depths[row]:
            assert not rows.finished[row]
    assert_as_uncached(params, rows, STORED)
    untouched = store.truncate(stored, depths, params)
    np.testing.assert_array_equal(untouched.lengths, stored.lengths)
    np.testing.assert_array_equal(untouched.finished, stored.finished)


def test_a_repeated_step_is_scored_under_its_new_prefix(grown):
    store, params, *_, stored, depths = grown
    # Each row takes the steps of the next one, from step 1 on.
    size = 2 * STORED
    following = np.arange(size).reshape(2, STORED)
    following = jnp.asarray(np.roll(following, -1, axis=1).reshape(-1))
    start = jnp.minimum(depths, 1)
    rows = store.truncate(store.gather(stored, jnp.arange(size)), start, params)
    sources = store.gather(stored, following)
    replay = jax.jit(store.replay)
    before = texts_of(rows)
    total = rows.log_prob
    for _ in range(1, 4):
        depth = jnp.sum(rows.step_ends > 0, axis=1)
        rows, log_probs = replay(depth, rows, sources, params)
        total = total + log_probs
    assert_as_uncached(params, rows, STORED)
    np.testing.assert_allclose(total, rows.log_prob, atol=1e-4)
    ends = np.asarray(sources.step_ends)
    tokens = np.asarray(sources.tokens)
    grew = 0
    for row, text in enumerate(texts_of(rows)):
        assert text[: len(before[row])] == before[row]
        added = text[len(before[row]) :]
        begin = ends[row, 0] if start[row] else 0
        if not stored.finished[row] or start[row] < depths[row]:
            assert added == tokens[row, begin : begin + len(added)].tolist()
            grew += len(added) > 0
    assert grew > 4


@pytest.mark.long
def test_rows_that_do_not_take_part_cost_nothing_and_stay():
    store, params = ReasoningStore(tiny.target()), tiny.params("hello")
    rows = store.gather(store.init(None, 4, params), jnp.arange(4))
    active = jnp.array([True, False, True, False])
    zeros = jnp.zeros(4, jnp.int32)
    after, _ = store.propose_some(jax.random.key(0), zeros, rows, params, active)
    assert (np.asarray(after.lengths) > 0).tolist() == active.tolist()
    assert (np.asarray(after.cost.generated) > 0).tolist() == active.tolist()
    assert not np.asarray(after.finished)[1::2].any()


@pytest.mark.long
def test_markov_chains_run_on_a_language_model():
    sampler = samplers.quest(0.5)
    result = jax.jit(lambda key: tsi.run(sampler, tiny.target(), key, 5, params))
    params = tiny.params("hello")
    run = result(jax.random.key(0))
    assert bool(run.state.done)
    assert bool(run.particles.finished.all())
    rows = [("hello", tokens) for tokens in texts_of(run.particles)]
    log_prob, log_odds = tiny.uncached(params, rows)
    np.testing.assert_allclose(run.particles.log_prob, log_prob, atol=2e-4)
    np.testing.assert_allclose(run.particles.log_odds, log_odds, atol=2e-4)
    kept = np.asarray(run.state.log_potentials)
    truncated = np.asarray(run.particles.truncated)
    np.testing.assert_allclose(kept[~truncated], log_odds[~truncated], atol=2e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    "explorer",
    [
        samplers.auxiliary_particle_filter(),
        samplers.finished_branch_smc(),
        samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True),
    ],
    ids=["auxiliary", "finished branches", "particle Gibbs"],
)
def test_stores_of_every_size_keep_both_caches_whole(explorer):
    # Room for one pass only, so that a cache with holes would overflow.
    target = tiny.target(max_steps=4, max_tokens=24, log_truncation=0.0)
    params = tiny.params("hello", sharpness=2.0)
    run = jax.jit(lambda key: tsi.run(explorer, target, key, 4, params))(
        jax.random.key(5)
    )
    texts = texts_of(run.particles)
    written = [row for row, text in enumerate(texts) if text]
    log_prob, log_odds = tiny.uncached(params, [("hello", t) for t in texts])
    assert len(written) >= 4
    np.testing.assert_allclose(
        np.asarray(run.particles.log_prob)[written], log_prob[written], atol=3e-4
    )
    np.testing.assert_allclose(
        np.asarray(run.particles.log_odds)[written], log_odds[written], atol=3e-4
    )


@pytest.mark.long
def test_a_reward_without_a_cache_follows_cuts_too():
    target = tiny.target(reward=SelfJudge((3, 7, 1), 4, 5))
    params = tiny.params("hello")
    run = tsi.run(samplers.quest(0.5), target, jax.random.key(0), 4, params)
    for row, tokens in enumerate(texts_of(run.particles)):
        sequence = jnp.asarray([tiny.encode("hello") + tokens + [3, 7, 1]])
        logits = params.policy(sequence)[0, -1]
        expected = float(logits[4] - logits[5])
        assert float(run.particles.log_odds[row]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
def test_a_step_cannot_follow_a_past_where_it_would_have_ended_elsewhere(monkeypatch):
    def write_c(keys, logits, temperatures):
        token = jnp.full(len(keys), tiny.encode("c")[0], jnp.int32)
        return token, jnp.zeros(len(keys)), jnp.zeros(len(keys))

    monkeypatch.setattr("tsi.decoding.decode_step.sample_token", write_c)
    # Steps of "ccc…": cc, cut for its length; c, which completes the delimiter; cc; c.
    boundary = tiny.boundary(delimiter=b"ccc")
    store = ReasoningStore(tiny.target(boundary=boundary, max_step_tokens=2))
    params = tiny.params("hello")
    empty = store.gather(store.init(None, 2, params), jnp.arange(2))
    written = [empty]
    for t in range(4):
        rows, _ = store.propose(jax.random.key(0), jnp.full(2, t), written[-1], params)
        written.append(rows)
    source = written[4]
    lengths = [int(rows.lengths[0]) for rows in written]
    assert lengths == [0, 2, 3, 5, 6]

    def replayed(step, past):
        rows, log_prob = store.replay(jnp.full(2, step), written[past], source, params)
        return rows, float(log_prob[0]), int(rows.lengths[0]) - lengths[past]

    for step, past in ((0, 0), (1, 1), (2, 2), (3, 3), (2, 0), (3, 1)):
        rows, log_prob, added = replayed(step, past)
        assert np.isfinite(log_prob)
        assert added == (2 if step % 2 == 0 else 1)
        assert int(rows.boundary_state[0]) == (2 if step % 2 == 0 else 0)
    # cc after cc would have ended at its first c; c after nothing would have gone on.
    for step, past in ((0, 1), (2, 3), (1, 0), (3, 2)):
        rows, log_prob, added = replayed(step, past)
        assert (log_prob, added) == (-np.inf, 0)
        assert int(rows.boundary_state[0]) == int(written[past].boundary_state[0])


@pytest.mark.long
def test_steps_that_strings_end_are_repeated_as_they_were_written():
    """Every row's own steps, from the beginning, with a least number of tokens."""
    letters = [b"", *(letter.encode() for letter in tiny.ALPHABET[:5])]
    boundary = step_boundary(
        letters,
        [b"cc", b"a"],
        [0],
        stop_strings=[b"dd", b"ccb", b"ae"],
        min_step_tokens=3,
    )
    store = ReasoningStore(tiny.target(boundary=boundary))
    policy, reward = tiny.models(6, sharpness=0.5)
    params = ReasoningParams(policy, reward, tiny.prompts("abc"), jnp.float32(1.0))
    size = 64
    empty = store.gather(store.init(None, size, params), jnp.arange(size))
    propose, replay = jax.jit(store.propose), jax.jit(store.replay)
    rows, again = empty, empty
    for t in range(store.max_steps):
        depths = jnp.full(size, t)
        rows, _ = propose(jax.random.key(t), depths, rows, params)
    for t in range(store.max_steps):
        again, log_probs = replay(jnp.full(size, t), again, rows, params)
        assert np.isfinite(log_probs).all()
    for name in ("tokens", "step_ends", "finished", "truncated", "boundary_state"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rows, name))
    np.testing.assert_allclose(again.log_prob, rows.log_prob, atol=1e-4)
    texts = [tiny.decode(tokens) for tokens in texts_of(rows)]
    assert sum(text.endswith(("dd", "ccb", "ae")) for text in texts) > 20
