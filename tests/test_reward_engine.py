"""The engine with rewards that have a tokenizer of their own, filters and explorers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reading_rewards as kinds
import tiny_language as tiny

from tsi import samplers
from tsi.engine.engine import Engine
from tsi.errors import ConfigurationError, PromptTooLongError
from tsi.problem import Problem
from tsi.rewards.aggregation import Aggregated
from tsi.rewards.self_judge import SelfJudge

# Flat enough that texts differ.
SHARPNESS = 2.0
PROBLEMS = [Problem(i, text, "") for i, text in enumerate(kinds.QUESTIONS)]


def engine(name: str, sharpness: float = SHARPNESS, **changes) -> Engine:
    policy, _ = tiny.models(sharpness=sharpness)
    target = tiny.target(
        reward=kinds.reward_of(name, **({"width": 32} | changes)),
        max_step_tokens=kinds.STEP_TOKENS,
        max_tokens=kinds.MAX_TOKENS,
        max_steps=kinds.MAX_STEPS,
        log_truncation=0.0,
    )
    return Engine(
        target,
        policy,
        kinds.model_of(name),
        encode=tiny.encode,
        decode=tiny.decode,
        max_rows=16,
    )


@functools.cache
def shared_engine(name: str) -> Engine:
    """One that tests share."""
    return engine(name)


def solve(name: str, sampler):
    return shared_engine(name).run(
        sampler, jax.random.key(0), PROBLEMS, 4, extract=lambda text: text or None
    )


def rewards_at_once(name: str, result) -> np.ndarray:
    question = PROBLEMS[result.problem_id].prompt
    ended = ~result.particles.truncated
    rows = [
        (question, steps, bool(end), 0.0)
        for steps, end in zip(result.particles.step_texts, ended, strict=True)
    ]
    return 1 / (1 + np.exp(-kinds.at_once(name, rows)))


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in kinds.KINDS if n != "likelihood"])
def test_a_filters_rewards_are_those_of_its_texts_read_at_once(name):
    for result in solve(name, samplers.particle_filter()):
        expected = rewards_at_once(name, result)
        np.testing.assert_allclose(result.rewards, expected, atol=2e-4)
        assert result.ledger.reward_tokens > 0
        assert np.isfinite(result.ledger.flops)


@pytest.mark.long
def test_an_explorers_rewards_are_those_of_its_texts_read_at_once():
    for result in solve("rlhflow", samplers.mcts()):
        expected = rewards_at_once("rlhflow", result)
        np.testing.assert_allclose(result.rewards, expected, atol=2e-4)


def test_a_likelihood_ratio_is_that_of_two_uncached_models():
    params = tiny.params(*kinds.QUESTIONS, sharpness=SHARPNESS)
    for result in solve("likelihood", samplers.self_consistency()):
        question = PROBLEMS[result.problem_id].prompt
        ended = [bool(end) for end in ~result.particles.truncated]
        written = [
            (question, tiny.encode(text) + [0] * end)
            for text, end in zip(result.texts, ended, strict=True)
        ]
        log_p, _ = tiny.uncached(params, written)
        rows = [
            (question, steps, *rest)
            for steps, *rest in zip(
                result.particles.step_texts, ended, log_p, strict=True
            )
        ]
        log_odds = kinds.at_once("likelihood", rows)
        found = np.log(result.rewards) - np.log1p(-result.rewards)
        np.testing.assert_allclose(found, log_odds, rtol=1e-3, atol=1e-3)
        assert np.ptp(found) > 0.1


def test_the_ledger_charges_the_rewards_own_prompt():
    name = "qwen"
    result = solve(name, samplers.self_consistency())[0]
    reward = kinds.reward_of(name)
    head = int(reward.prepare(["hello"]).lengths[0])
    assert head > 3 * len("hello")
    # Without resampling or merging at separators each token is read once.
    sizes = [
        len(reward.format.render("hello", steps, False).tokens) - head
        for steps in result.particles.step_texts
    ]
    assert result.slots.prompt_reward_tokens == head
    np.testing.assert_array_equal(result.slots.reward_tokens, sizes)


def test_a_question_too_long_for_the_reward_is_refused_before_anything_runs():
    tight = engine("qwen", max_tokens=70)
    long = Problem(0, "abcdefghij" * 3, "")
    with pytest.raises(PromptTooLongError, match="tokens of the reward model"):
        tight.run(samplers.particle_filter(), jax.random.key(0), [long], 2, extract=str)


def test_step_scores_of_the_policys_own_judgement_can_be_aggregated():
    reward = Aggregated(SelfJudge((3, 7), 4, 5), "min", 8)
    policy, _ = tiny.models()
    arguments = {"encode": tiny.encode, "decode": tiny.decode}
    run = Engine(
        tiny.target(reward=reward, log_truncation=0.0), policy, None, **arguments
    )
    result = run.run(
        samplers.self_consistency(), jax.random.key(0), PROBLEMS[:1], 4, extract=str
    )[0]
    # A minimum over more steps is no larger.
    assert (np.diff(result.steps.rewards, axis=0) <= 1e-6).all()
    assert result.ledger.reward_tokens % 3 == 0


def test_a_format_refuses_a_head_that_was_trained_on_another():
    reward = kinds.reward_of("qwen")
    hidden, ids = jnp.zeros((1, 2, 32)), jnp.zeros((1, 2), jnp.int32)
    for other in ("outcome", "skywork", "rlhflow"):
        with pytest.raises(ConfigurationError, match="QwenFormat reads a ProcessSco"):
            reward.values(kinds.model_of(other), hidden, ids)
