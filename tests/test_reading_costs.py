"""What readings cost, and what the policy's own judgement is shown, token by token.

The policy attends to windows in one of two layers, so that a sum of positions alone
would not do.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from flax import nnx

from tsi.engine.outcome import slot_costs
from tsi.errors import ConfigurationError
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.decoder_config import SlidingWindow
from tsi.models.heads import ValueHead
from tsi.models.rotary import Rope
from tsi.reasoning.particles import ReasoningParams
from tsi.rewards.policy_value import PolicyValue
from tsi.rewards.process_reward import ProcessReward
from tsi.rewards.self_judge import SelfJudge

PROMPT, ROWS, MAX_TOKENS = "hello", 12, 8
END, YES, NO = 0, 4, 5
QUESTION = (END, 7, 3)
CONFIG = tiny.config(sliding_window=SlidingWindow(3, (True, False), Rope(20.0)))
REWARDS = {
    "judge": (SelfJudge(QUESTION, YES, NO), None),
    "value": (PolicyValue(), ValueHead(CONFIG.width, rngs=nnx.Rngs(2))),
    "process": (ProcessReward(), RewardModel(CONFIG, rngs=nnx.Rngs(1))),
}


@functools.cache
def policy() -> LanguageModel:
    model = LanguageModel(CONFIG, rngs=nnx.Rngs(0))
    model.trunk.embedding[...] = model.trunk.embedding[...] * 2.0
    return model


def written(name: str):
    """Particles after each step, with target and params."""
    reward, model = REWARDS[name]
    target = tiny.target(reward=reward, max_tokens=MAX_TOKENS, max_step_tokens=3)
    params = ReasoningParams(policy(), model, tiny.prompts(PROMPT), jnp.float32(1.0))
    step = jax.jit(target.propose)
    particles, turns = target.init(None, ROWS, params), []
    for t in range(4):
        particles, _ = step(jax.random.key(t), t, particles, params)
        turns.append(jax.device_get(particles))
    return turns, target, params


def test_the_policys_own_judgement_is_shown_the_end_of_a_turn_once():
    turns, _, params = written("judge")
    sequences = np.zeros((len(turns) * ROWS, 24), np.int32)
    last, live, kinds, read = [], [], [], []
    before = np.zeros(ROWS, int)
    for t, rows in enumerate(turns):
        for row in range(ROWS):
            solution = rows.tokens[row, : rows.lengths[row]].tolist()
            stopped = solution[-1] == END
            shown = [*tiny.encode(PROMPT), *solution, *QUESTION[stopped:]]
            sequences[t * ROWS + row, : len(shown)] = shown
            last.append(len(shown) - 1)
            live.append(rows.lengths[row] > before[row])
            kinds.append("stopped" if stopped else "cut" if rows.finished[row] else "")
            read.append(len(QUESTION) + 1 - stopped)
        before = rows.lengths
    logits = np.asarray(jax.jit(LanguageModel.__call__)(params.policy, sequences))
    logits = logits[np.arange(len(last)), last]
    found = np.concatenate([rows.log_odds for rows in turns])
    live, expected = np.asarray(live), logits[:, YES] - logits[:, NO]
    np.testing.assert_allclose(found[live], expected[live], atol=2e-4)
    assert {k: np.sum((np.asarray(kinds) == k) & live) > 1 for k in kinds} == {
        "stopped": True,
        "cut": True,
        "": True,
    }
    by_row = np.where(live, read, 0).reshape(len(turns), ROWS).sum(axis=0)
    np.testing.assert_array_equal(turns[-1].cost.reward_read, by_row)


def test_a_judge_without_a_question_is_refused():
    with pytest.raises(ConfigurationError, match="has no tokens"):
        SelfJudge((), YES, NO)


@pytest.mark.parametrize("name", REWARDS)
def test_a_ledger_is_the_sum_of_every_tokens_flops(name):
    turns, target, params = written(name)
    prompt = len(PROMPT)
    found = slot_costs(turns[-1].cost, prompt, prompt, target, params)

    def flops(positions, *, head: bool) -> float:
        # A token attends to itself and to all before it.
        return sum(CONFIG.flops_per_token(p + 1.0, head=head) for p in positions)

    for row in range(ROWS):
        lengths = [0, *(int(rows.lengths[row]) for rows in turns)]
        places = []
        for start, end in itertools.pairwise(lengths):
            if start == end:
                continue
            newest = prompt + end - 1
            stopped = turns[-1].tokens[row, end - 1] == END
            places += {
                "judge": range(newest, newest + len(QUESTION) + 1 - stopped),
                "value": [newest],
                "process": range(prompt + start, prompt + end),
            }[name]
        drawn = range(prompt - 1, prompt - 1 + lengths[-1])
        assert found.flops[row] == pytest.approx(flops(drawn, head=True), rel=1e-6)
        read = flops(places, head=False)
        assert found.reward_flops[row] == pytest.approx(read, rel=1e-6)
    whole = flops(range(prompt), head=False)
    assert found.prompt_flops == pytest.approx(whole)
    assert found.prompt_reward_flops == (whole if name == "process" else 0.0)


@pytest.mark.parametrize("window", [None, 1, 3, 40])
def test_positions_attended_to_are_those_of_each_token(window):
    local = (
        None if window is None else SlidingWindow(window, (True, True, False), Rope())
    )
    config = tiny.config(num_layers=3, sliding_window=local)
    begin, count = np.meshgrid(np.arange(9), np.arange(9))
    expected = [
        np.mean(
            [
                sum(min(p + 1, seen) for p in range(b, b + n))
                for seen in ([window or 99] * 2 + [99])
            ]
        )
        for b, n in zip(begin.ravel(), count.ravel(), strict=True)
    ]
    found = config.count_attended(begin, count).ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert config.count_attended(7, 5) == pytest.approx(expected[5 * 9 + 7])
