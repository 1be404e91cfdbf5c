"""A reward model named by its format and its path."""

import pytest
import reading_rewards as kinds
import tiny_language as tiny

from tsi.errors import UnknownNameError
from tsi.experiments.language_reward import format_and_path, formatted_reward


def test_a_name_before_a_colon_is_a_format():
    assert format_and_path("qwen:some/folder") == ("qwen", "some/folder")
    assert format_and_path("chain-reward") is None
    assert format_and_path("/models/a:b") is None
    with pytest.raises(UnknownNameError, match="math-shepherd, outcome, qwen, rlhflow"):
        format_and_path("gpt:folder")


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
