"""A reward model of another tokenizer has room for what a policy can write."""

import pytest
import reading_rewards as kinds
import tiny_language as tiny

from tsi.loading.language_reward import formatted_reward


@pytest.mark.parametrize("length", [96, 4096])
def test_a_reward_has_room_for_the_solution_within_the_models_context(length):
    reward = formatted_reward(
        "skywork",
        kinds.tokenizer(),
        tiny.config(max_length=length),
        tiny.decode,
        max_steps=4,
        max_tokens=40,
        aggregation="mean",
    )
    assert reward.max_tokens == min(512 + 80 + 128, length)
    assert (reward.aggregation, reward.width) == ("mean", 20)
