"""A published reward model by its format's name and its path: ``rlhflow:PATH``."""

from collections.abc import Callable

from tsi.errors import UnknownNameError
from tsi.formats import FORMATS
from tsi.formatted_reward import FormattedReward
from tsi.models.decoder import DecoderConfig
from tsi.models.tokenizer import Tokenizer

TOKENS_A_STEP = 32
"""Tokens that a format may add to a step: a tag, a turn of a chat."""


def format_and_path(reward: str) -> tuple[str, str] | None:
    """The parts of ``FORMAT:PATH``; None for a name or path without a format.

    Raises:
        UnknownNameError: there is no such format.
    """
    name, colon, path = reward.partition(":")
    if not colon or "/" in name:
        return None
    if name not in FORMATS:
        raise UnknownNameError("format of a reward model", name, FORMATS)
    return name, path


def formatted_reward(
    name: str,
    tokenizer: Tokenizer,
    config: DecoderConfig,
    decode: Callable[[list[int]], str],
    *,
    max_steps: int,
    max_tokens: int,
    prompt_tokens: int = 512,
    aggregation: str = "last",
) -> FormattedReward:
    """A reward in a named format, with room for what a policy can write.

    Args:
        name: of the format.
        tokenizer, config: of the reward model, whose context bounds what is read.
        decode: the policy's token ids to text.
        max_steps, max_tokens: the target's, in the policy's tokens; the reward model
            may need twice as many for the same text.
        prompt_tokens: room for the question.
        aggregation: of step scores.

    Raises:
        UnknownNameError: there is no such format or way to aggregate.
    """
    if name not in FORMATS:
        raise UnknownNameError("format of a reward model", name, FORMATS)
    room = prompt_tokens + 2 * max_tokens + TOKENS_A_STEP * max_steps
    return FormattedReward(
        FORMATS[name](tokenizer),
        decode,
        max_steps=max_steps,
        max_tokens=min(room, config.max_length),
        width=max(2 * max_tokens // max_steps, 16),
        aggregation=aggregation,
    )
