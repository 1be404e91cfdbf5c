"""Rewards from the policy's own distributions equal those of a plain forward pass."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_families
import tiny_language as tiny
from numpy_decoder import numpy_logits
from small_checkpoints import small_model

from tsi import samplers
from tsi.decoding.boundary import step_boundary
from tsi.decoding.forced_end import ForcedEnd
from tsi.decoding.token_confidence import MEASURES, TokenConfidence
from tsi.decoding.truncation import Truncation
from tsi.engine.engine import Engine
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.problem import Problem
from tsi.reasoning.particles import ReasoningParams
from tsi.rewards.policy_confidence import PolicyConfidence, window_sums
from tsi.rewards.reward import NoReward
from tsi.run import run

PROMPTS = ("hello", "bad", "gems")
PROBLEMS = [Problem(i, text, "") for i, text in enumerate(PROMPTS)]
MAX_TOKENS = 24
REAL = 17
TEXTS = [b"", *(letter.encode() for letter in tiny.ALPHABET)]
PADDED = step_boundary(TEXTS, b"c", [0], padding=range(REAL, len(TEXTS)))


def confidence_by_hand(measure: str, k: int, logits: np.ndarray, token: int) -> float:
    """The textbook formula, on probabilities of the tokens that may be drawn."""
    p = np.exp(logits - logits.max())
    p = p / p.sum()
    if measure == "log-prob":
        return math.log(p[token])
    if measure == "negative-entropy":
        return sum(x * math.log(x) for x in p)
    if measure == "self-certainty":
        uniform = 1 / len(p)
        return sum(uniform * math.log(uniform / x) for x in p)
    return -np.log(np.sort(p)[::-1][:k]).mean()


def score_by_hand(reward: PolicyConfidence, values: list[float]) -> float:
    size = reward.size
    if reward.window == "last":
        return float(np.mean(values[-size:]))
    if reward.window == "worst" and len(values) >= size:
        ends = range(size, len(values) + 1)
        return float(min(np.mean(values[end - size : end]) for end in ends))
    return float(np.mean(values))


def log_odds_by_hand(reward: PolicyConfidence, score: float) -> float:
    if reward.scale == "probability":
        negative = reward.confidence.measure in ("log-prob", "negative-entropy")
        r = math.exp(score) if negative else score / (1 + score)
        score = math.log(r / (1 - r))
    return reward.slope * score + reward.offset


def log_odds_at_once(
    reward: PolicyConfidence, policy, prompt: str, tokens: list[int], real: int
) -> float:
    """From one pass of the numpy decoder over prompt and text."""
    sequence = np.asarray(tiny.encode(prompt) + tokens)
    logits = numpy_logits(policy, sequence)[:, :real]
    begin, measure = len(sequence) - len(tokens), reward.confidence
    values = [
        confidence_by_hand(
            measure.measure, measure.k, logits[place - 1], sequence[place]
        )
        for place in range(begin, len(sequence))
    ]
    return log_odds_by_hand(reward, score_by_hand(reward, values))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_confidence_is_the_textbook_formula(measure):
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((5, 4, 30)).astype(np.float32)
    logits[..., 25:] = -np.inf
    tokens = rng.integers(0, 25, (5, 4))
    confidence = TokenConfidence(measure, k=7)
    found = confidence(jnp.asarray(logits), jnp.asarray(tokens))
    for place in np.ndindex(5, 4):
        by_hand = confidence_by_hand(
            measure, 7, logits[place][:25].astype(np.float64), tokens[place]
        )
        assert float(found[place]) == pytest.approx(by_hand, abs=1e-5)
    # Logits are the same up to a constant.
    shifted = confidence(jnp.asarray(logits) + 1000.0, jnp.asarray(tokens))
    np.testing.assert_allclose(shifted, found, atol=2e-3)


def test_a_uniform_and_a_certain_distribution_are_the_ends():
    uniform, certain = jnp.zeros(8), jnp.zeros(8).at[3].set(200.0)
    expected = {
        "log-prob": (-math.log(8), 0.0),
        "negative-entropy": (-math.log(8), 0.0),
        "self-certainty": (0.0, 175.0 - math.log(8)),
        "top-k": (math.log(8), 100.0),
    }
    for measure, values in expected.items():
        confidence = TokenConfidence(measure, k=2)
        found = [float(confidence(x, jnp.int32(3))) for x in (uniform, certain)]
        assert found == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 13, 40])
def test_sums_of_windows_are_those_of_slices(size):
    values = np.random.default_rng(size).standard_normal((3, 13)).astype(np.float32)
    found = np.asarray(window_sums(jnp.asarray(values), size))
    for start in range(13):
        expected = values[:, start : start + size].sum(axis=1)
        np.testing.assert_allclose(found[:, start], expected, atol=1e-5)


@pytest.mark.parametrize("shift", [-3, 3])
@pytest.mark.parametrize("window", ["all", "last", "worst"])
def test_a_score_reads_only_the_tokens_of_its_row(window, shift):
    values = np.random.default_rng(1).standard_normal((6, 12)).astype(np.float32)
    values += shift
    lengths = np.array([0, 1, 3, 4, 9, 12])
    reward = PolicyConfidence(TokenConfidence("log-prob"), 12, window, 4)
    found = reward.score(jnp.asarray(values), jnp.asarray(lengths))
    assert float(found[0]) == 0.0
    for row, length in enumerate(lengths[1:], 1):
        expected = score_by_hand(reward, values[row, :length].tolist())
        assert float(found[row]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_log_odds_rise_with_the_score_and_are_finite(measure):
    reward = PolicyConfidence(TokenConfidence(measure), 8, slope=2.0, offset=0.5)
    sign = -1 if measure in ("log-prob", "negative-entropy") else 1
    scores = np.sort(sign * np.array([0.0, 1e-30, 1e-3, 0.1, 1.0, 5.0, 90.0, 3e4]))
    found = np.asarray(reward.log_odds(jnp.asarray(scores, jnp.float32)))
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()
    assert found[0] < found[-1]
    for score, value in zip(scores, found, strict=True):
        if 1e-3 <= abs(score) <= 5:
            expected = log_odds_by_hand(reward, float(score))
            assert value == pytest.approx(expected, rel=1e-4)
    raw = dataclasses.replace(reward, scale="raw").log_odds(jnp.asarray(scores))
    np.testing.assert_allclose(raw, 2 * scores + 0.5, rtol=1e-6)


def test_invalid_settings_are_refused_in_a_sentence():
    confidence = TokenConfidence("top-k")
    with pytest.raises(UnknownNameError, match="no measure of confidence named 'x'"):
        TokenConfidence("x")
    with pytest.raises(ConfigurationError, match="at least 1"):
        TokenConfidence("top-k", k=0)
    for changes, sentence in (
        ({"window": "best"}, "no window of confidence named 'best'"),
        ({"scale": "odds"}, "no scale of confidence named 'odds'"),
        ({"size": 0}, "window of 0 tokens"),
        ({"slope": 0.0}, "slope of confidence is 0.0"),
        ({"slope": math.nan}, "slope of confidence is nan"),
        ({"offset": math.inf}, "offset of confidence is inf"),
    ):
        with pytest.raises((UnknownNameError, ConfigurationError), match=sentence):
            PolicyConfidence(confidence, 8, **changes)


SLOW = ("mistral", "qwen2", "qwen3", "phi3")


@pytest.mark.long
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in small_families.WRITTEN
    ],
)
def test_numbers_of_every_family_are_those_of_a_forward_pass_after_forks(family):
    config = dataclasses.replace(
        small_families.WRITTEN[family], vocab_size=len(TEXTS), eos_ids=(0,)
    )
    policy, count = small_model(config), 4
    measure = MEASURES[len(family) % len(MEASURES)]
    reward = PolicyConfidence(TokenConfidence(measure, 5), MAX_TOKENS, "worst", 5)
    target = tiny.target(reward=reward, boundary=PADDED)
    params = ReasoningParams(policy, None, tiny.prompts(*PROMPTS), jnp.float32(0.8))
    particles = target.init(None, count, params)
    propose, gather = jax.jit(target.propose), jax.jit(target.gather)
    for t in range(3):
        within = jax.random.randint(jax.random.key(t), (len(PROMPTS), count), 0, count)
        rows = within + count * jnp.arange(len(PROMPTS))[:, None]
        particles = gather(particles, rows.reshape(-1))
        keys = jax.random.split(jax.random.key(10 + t), len(PROMPTS))
        particles, _ = propose(keys, t, particles, params)
    lengths, tokens = np.asarray(particles.lengths), np.asarray(particles.tokens)
    assert lengths.max() > reward.size
    for row, length in enumerate(lengths):
        expected = log_odds_at_once(
            reward, policy, PROMPTS[row // count], tokens[row, :length].tolist(), REAL
        )
        assert float(particles.log_odds[row]) == pytest.approx(expected, abs=2e-3)
    assert int(particles.cost.reward_read.sum()) == 0


def engine(reward, *, forced_end=None, log_truncation=0.0, **settings) -> Engine:
    policy, _ = tiny.models(sharpness=2.0)
    target = tiny.target(
        reward=reward, forced_end=forced_end, log_truncation=log_truncation
    )
    return Engine(
        target, policy, None, encode=tiny.encode, decode=tiny.decode, **settings
    )


def solve(made: Engine, sampler, num_particles=6, problems=PROBLEMS):
    return made.run(
        sampler, jax.random.key(0), problems, num_particles, extract=lambda t: t or None
    )


CASES = {
    "forks": (samplers.particle_filter, "log-prob", "all", {"temperature": 0.7}),
    "repeats": (
        lambda: samplers.particle_gibbs(num_sweeps=2, backward_sampling=True),
        "self-certainty",
        "last",
        {
            "temperature": 1.3,
            "truncation": Truncation(top_k=6),
            "repetition_penalty": 1.7,
        },
    ),
    "cuts": (
        lambda: samplers.suffix_metropolis(samplers.product()),
        "negative-entropy",
        "worst",
        {"forced_end": ForcedEnd(tuple(tiny.encode("ab")), 2)},
    ),
    "a tree": (samplers.mcts, "top-k", "worst", {}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_the_engines_numbers_are_those_of_a_forward_pass(name):
    make, measure, window, settings = CASES[name]
    reward = PolicyConfidence(TokenConfidence(measure, 5), MAX_TOKENS, window, 4)
    made = engine(reward, **settings)
    policy, _ = tiny.models(sharpness=2.0)
    distinct = set()
    for result in solve(made, make()):
        prompt = PROBLEMS[result.problem_id].prompt
        ended = ~result.particles.truncated
        log_odds = [
            log_odds_at_once(
                reward, policy, prompt, tiny.encode(text) + [0] * int(end), len(TEXTS)
            )
            for text, end in zip(result.texts, ended, strict=True)
        ]
        expected = 1 / (1 + np.exp(-np.asarray(log_odds)))
        np.testing.assert_allclose(result.rewards, expected, atol=2e-4)
        assert result.ledger.reward_tokens == 0
        distinct.update(np.round(expected, 2))
    assert len(distinct) > 3


@pytest.mark.long
def test_numbers_do_not_depend_on_the_batch_and_cost_nothing():
    reward = PolicyConfidence(TokenConfidence("self-certainty"), MAX_TOKENS)
    sampler = samplers.particle_filter()
    together = solve(engine(reward), sampler)
    alone = solve(engine(reward, max_rows=6), sampler, problems=PROBLEMS[1:2])[0]
    assert together[1].texts == alone.texts
    np.testing.assert_allclose(together[1].rewards, alone.rewards, rtol=1e-5)
    # The same texts without any reward take as many FLOPs.
    plain = samplers.self_consistency()
    measured = solve(engine(reward), plain)
    free = solve(engine(NoReward()), plain)
    for one, other in zip(measured, free, strict=True):
        assert one.texts == other.texts
        assert one.ledger.flops == other.ledger.flops > 0
        assert one.ledger.reward_tokens == 0


STORED = {
    "a filter": samplers.smc,
    "stored prefixes that are cut": lambda: samplers.suffix_metropolis(
        samplers.product()
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", STORED)
def test_a_compiled_run_has_the_numbers_of_a_forward_pass(name):
    reward = PolicyConfidence(TokenConfidence("log-prob"), MAX_TOKENS, "last", 12)
    made, sampler = engine(reward), STORED[name]()
    params = ReasoningParams(made.policy, None, tiny.prompts("hello"), jnp.float32(1.0))
    final = run(sampler, made.target, jax.random.key(3), 6, params)
    rows = final.particles
    for row, length in enumerate(np.asarray(rows.lengths)):
        tokens = np.asarray(rows.tokens)[row, :length].tolist()
        expected = log_odds_at_once(reward, made.policy, "hello", tokens, len(TEXTS))
        assert float(rows.log_odds[row]) == pytest.approx(expected, abs=1e-3)
