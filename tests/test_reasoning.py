"""The reasoning target: cached equals uncached, densities by enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from long_runs import jit_optimised

from tsi import samplers
from tsi.decoding.token_draws import Temperatures, sample_token
from tsi.reasoning.particles import ReasoningParams
from tsi.rewards.reward import NoReward
from tsi.rewards.self_judge import SelfJudge
from tsi.rewards.text_reward import TextReward
from tsi.run import run, turn
from tsi.twists.learned import LearnedTwist
from tsi.twists.twisted_target import TwistedParams, TwistedTarget

PROMPTS = ("hello", "bad", "gems")


def texts_of(particles):
    rows = zip(np.asarray(particles.tokens), np.asarray(particles.lengths), strict=True)
    return [row[:length].tolist() for row, length in rows]


def test_cached_densities_and_rewards_equal_uncached_ones_after_forks():
    target, params, count = tiny.target(), tiny.params(*PROMPTS), 4
    particles, gather = target.init(None, count, params), jax.jit(target.gather)
    for t in range(target.max_steps):
        keys = jax.random.split(jax.random.key(t), len(PROMPTS))
        if t in (1, 2, 4):
            within = jax.random.randint(
                jax.random.key(50 + t), (len(PROMPTS), count), 0, count
            )
            rows = within + count * jnp.arange(len(PROMPTS))[:, None]
            particles = gather(particles, rows.reshape(-1))
        particles, _ = propose()(keys, t, particles, params)
        rows = [
            (PROMPTS[row // count], tokens)
            for row, tokens in enumerate(texts_of(particles))
        ]
        log_prob, log_odds = tiny.uncached(params, rows)
        np.testing.assert_allclose(particles.log_prob, log_prob, atol=2e-4)
        np.testing.assert_allclose(particles.log_odds, log_odds, atol=2e-4)
    assert bool(particles.finished.all())


@functools.cache
def propose():
    """A step of the plain target, as one program that tests share."""
    return jax.jit(tiny.target().propose)


def first_step(target, params, propose):
    """Four particles after their first step."""
    return propose(jax.random.key(0), 0, target.init(None, 4, params), params)[0]


def test_fork_then_step_equals_step_then_index():
    target, params = tiny.target(), tiny.params("hello")
    particles = first_step(target, params, propose())
    ancestors = jnp.array([2, 2, 2, 2])
    forked = target.gather(particles, ancestors)
    # Slot 2 draws the same numbers either way, so it must write the same step.
    one, _ = propose()(jax.random.key(1), 1, forked, params)
    other, _ = propose()(jax.random.key(1), 1, particles, params)
    assert texts_of(one)[2] == texts_of(other)[2]
    assert float(one.log_odds[2]) == pytest.approx(float(other.log_odds[2]), abs=1e-5)


def test_a_delimiter_across_the_cut_of_a_long_step_ends_the_next(monkeypatch):
    def write_c(keys, logits, temperatures):
        token = jnp.full(len(keys), tiny.encode("c")[0], jnp.int32)
        return token, jnp.zeros(len(keys)), jnp.zeros(len(keys))

    monkeypatch.setattr("tsi.decoding.decode_step.sample_token", write_c)
    params = tiny.params("hello")
    target = tiny.target(boundary=tiny.boundary(delimiter=b"ccc"), max_step_tokens=2)
    particles, step = target.init(None, 2, params), jax.jit(target.propose)
    for t, length in enumerate([2, 3, 5, 6]):
        particles, _ = step(jax.random.key(0), t, particles, params)
        np.testing.assert_array_equal(particles.lengths, [length] * 2)


def test_costs_stay_with_the_slot_that_spent_them():
    target, params = tiny.target(), tiny.params("hello")
    particles = first_step(target, params, propose())
    forked = target.gather(particles, jnp.array([1, 1, 1, 1]))
    np.testing.assert_array_equal(forked.cost.generated, particles.cost.generated)
    np.testing.assert_array_equal(forked.cost.generated, particles.lengths)


VOCABULARY = 3


def enumerate_texts(target, params, vocabulary):
    """Every solution of up to max_tokens tokens: text, log p, log-odds, truncated."""
    texts = []
    for length in range(1, target.max_tokens + 1):
        for body in itertools.product(range(1, vocabulary), repeat=length - 1):
            ends = range(vocabulary) if length == target.max_tokens else [0]
            texts += [[*body, last] for last in ends]
    log_prob, log_odds = tiny.uncached(params, [("ab", text) for text in texts])
    cut = [text[-1] != 0 for text in texts]
    return list(zip(map(tuple, texts), log_prob, log_odds, cut, strict=True))


def enumerable(log_truncation):
    """A target and models whose solutions of up to four tokens can be enumerated."""
    target = tiny.target(
        boundary=tiny.boundary(VOCABULARY, b"a"),
        max_step_tokens=2,
        max_tokens=4,
        max_steps=4,
        log_truncation=log_truncation,
    )
    models = tiny.models(VOCABULARY, sharpness=2.0)
    return target, ReasoningParams(*models, tiny.prompts("ab"), jnp.float32(1.0))


@pytest.mark.long
@pytest.mark.parametrize(
    "log_truncation", [0.0, pytest.param(-np.inf, marks=pytest.mark.slow)]
)
def test_particle_estimates_equal_enumeration_of_a_language_model(log_truncation):
    target, params = enumerable(log_truncation)
    everything = enumerate_texts(target, params, VOCABULARY)
    assert sum(np.exp(p) for _, p, _, _ in everything) == pytest.approx(1.0, abs=1e-4)
    # p(x) r/(1-r) of whole texts: the target of SMC with telescoping weights.
    masses = {
        text: np.exp(p + odds + (log_truncation if cut else 0.0))
        for text, p, odds, cut in everything
    }
    evidence = sum(masses.values())

    sampler = samplers.smc()
    many = jit_optimised(
        jax.vmap(lambda key, params: run(sampler, target, key, 32, params), (0, None))
    )
    runs = many(jax.random.split(jax.random.key(0), 2000), params)
    weights = np.exp(np.asarray(runs.state.log_evidence, np.float64))[:, None] * np.exp(
        np.asarray(runs.state.log_weights, np.float64)
    )
    estimates = weights.mean(axis=1)
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - evidence) < 4 * error
    assert error < 0.02 * evidence
    likely = max(masses, key=lambda text: masses[text])
    rows = np.asarray(runs.particles.tokens)
    padded = np.zeros(target.max_tokens, int)
    padded[: len(likely)] = likely
    hits = (rows == padded).all(-1) & (
        np.asarray(runs.particles.lengths) == len(likely)
    )
    shares = (weights * hits).mean(axis=1)
    assert abs(shares.mean() - masses[likely]) < 4 * shares.std() / np.sqrt(len(shares))


def test_temperature_zero_takes_the_most_likely_token_with_probability_one():
    logits = jax.random.normal(jax.random.key(0), (6, 9))
    keys = jax.random.split(jax.random.key(1), 6)
    token, log_prob, _ = sample_token(keys, logits, Temperatures(jnp.float32(0.0)))
    np.testing.assert_array_equal(token, jnp.argmax(logits, -1))
    np.testing.assert_array_equal(log_prob, 0.0)


def test_tokens_are_drawn_in_proportion_to_tempered_probabilities():
    logits = jnp.array([0.0, 1.0, 2.0])
    keys = jax.random.split(jax.random.key(1), 40_000)
    token, log_prob, _ = sample_token(
        keys, jnp.tile(logits, (40_000, 1)), Temperatures(jnp.float32(2.0))
    )
    expected = np.asarray(jax.nn.softmax(logits / 2.0))
    counts = np.bincount(np.asarray(token), minlength=3)
    chi2 = ((counts - 40_000 * expected) ** 2 / (40_000 * expected)).sum()
    assert chi2 < 13.8  # p = 1e-3 with two degrees of freedom
    np.testing.assert_allclose(np.exp(log_prob), expected[np.asarray(token)], rtol=1e-5)


def test_a_proposal_of_another_temperature_reports_its_correction():
    logits = jax.random.normal(jax.random.key(2), (50, 9))
    keys = jax.random.split(jax.random.key(1), 50)
    both = Temperatures(jnp.float32(1.0), jnp.float32(0.25))
    token, log_p, correction = sample_token(keys, logits, both)
    alone, log_q, _ = sample_token(keys, logits, Temperatures(jnp.float32(0.25)))
    np.testing.assert_array_equal(token, alone)
    expected = jax.nn.log_softmax(logits)[jnp.arange(50), token]
    np.testing.assert_allclose(log_p, expected, atol=1e-5)
    np.testing.assert_allclose(correction, log_p - log_q, atol=1e-5)


def test_a_policy_of_temperature_zero_gives_other_tokens_no_probability():
    logits = jax.random.normal(jax.random.key(2), (50, 9))
    keys = jax.random.split(jax.random.key(1), 50)
    token, log_p, correction = sample_token(
        keys, logits, Temperatures(jnp.float32(0.0), jnp.float32(1.0))
    )
    likely = np.asarray(token) == np.asarray(jnp.argmax(logits, -1))
    assert 0 < likely.sum() < 50
    np.testing.assert_array_equal(np.asarray(log_p), np.where(likely, 0.0, -np.inf))
    assert np.isneginf(np.asarray(correction)[~likely]).all()


def test_the_policys_own_judgement_equals_its_logits_without_a_cache():
    question, yes, no = (3, 7, 1), 4, 5
    target = tiny.target(reward=SelfJudge(question, yes, no))
    params = tiny.params("hello")
    particles = first_step(target, params, jax.jit(target.propose))
    for row, tokens in enumerate(texts_of(particles)):
        sequence = jnp.asarray([tiny.encode("hello") + tokens + list(question)])
        logits = params.policy(sequence)[0, -1]
        expected = float(logits[yes] - logits[no])
        assert float(particles.log_odds[row]) == pytest.approx(expected, abs=1e-4)
    assert particles.cost.reward_read.tolist() == [len(question) + 1] * 4


def test_a_python_function_of_the_text_can_be_the_reward():
    reward = TextReward(
        lambda texts: np.array([len(text) for text in texts]), tiny.decode
    )
    target, params = tiny.target(reward=reward), tiny.params("hello")
    final = jax.jit(lambda key: run(samplers.smc(), target, key, 4, params))(
        jax.random.key(0)
    )
    lengths = [len(tiny.decode(tokens)) for tokens in texts_of(final.particles)]
    np.testing.assert_array_equal(final.particles.log_odds, lengths)


def test_a_reward_that_smc_reads_on_the_way_is_a_twist():
    target, params = tiny.target(), tiny.params("hello")
    twist = LearnedTwist(
        apply=lambda theta, t, features: theta * features[:, 0],
        features=lambda t, rows, params: rows.log_odds[:, None],
    )
    key, sampler = jax.random.key(3), samplers.twisted_smc(ess_fraction=1.0)
    twisted = TwistedTarget(target, twist.log_twist, "last")
    step = jax.jit(functools.partial(turn, sampler, twisted, key))
    both = TwistedParams(params, jnp.float32(1.0))
    half = TwistedParams(params, jnp.float32(0.5))
    state, rows = sampler.init(key, 12), twisted.init(key, 12, both)
    differs = 0
    for t in range(target.max_steps):
        _, _, other = step(t, state, rows, half)
        state, rows, info = step(t, state, rows, both)
        # Told the same after every step, any sampler does the same.
        told = target.log_potential(t, rows.particles, params)
        np.testing.assert_array_equal(info.log_potentials, told)
        unfinished = ~np.asarray(target.finished(rows.particles))
        # Your own choice of a twist counts on the way, and not at the end.
        chosen = np.where(unfinished, 0.5 * told, told)
        np.testing.assert_allclose(other.log_potentials, chosen, rtol=1e-5)
        differs += unfinished.sum()
    assert differs > 10
    assert bool(target.finished(rows.particles).all())


def test_no_reward_reads_nothing():
    target, params = tiny.target(reward=NoReward()), tiny.params("hello")
    particles = first_step(target, params, jax.jit(target.propose))
    assert particles.cost.reward_read.tolist() == [0] * 4
    assert particles.log_odds.tolist() == [0.0] * 4
