"""Rewards of another tokenizer, with room for what a policy can write.

Published reward models in their formats, and a larger language model's likelihood.
"""

import dataclasses
from collections.abc import Callable, Sequence

from tsi.errors import UnknownNameError
from tsi.models.decoder_config import DecoderConfig
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.rewards.formats import FORMATS, ContinuationFormat, Rendering
from tsi.rewards.formatted import FormattedReward
from tsi.rewards.likelihood_ratio import LikelihoodRatio

TOKENS_A_STEP = 32
"""Tokens that a format may add to a step: a tag, a turn of a chat."""
QUESTION_TOKENS = 512
"""Room for a question, where nothing is known of its length."""


def formatted_reward(
    name: str,
    tokenizer: Tokenizer,
    config: DecoderConfig,
    decode: Callable[[list[int]], str],
    *,
    max_steps: int,
    max_tokens: int,
    prompt_tokens: int = QUESTION_TOKENS,
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


@dataclasses.dataclass(frozen=True)
class ShownContinuation(ContinuationFormat):
    """A continuation of the prompt that a policy is shown, worked examples included.

    Attributes:
        encode: a problem to the prompt's token ids.
    """

    encode: Callable[[str], list[int]] = dataclasses.field(kw_only=True)

    def render(self, question: str, steps: Sequence[str], ended: bool) -> Rendering:
        """See :class:`tsi.rewards.formats.Format`."""
        bare = super().render(question, steps, ended)
        prompt, start = self.encode(question), bare.marks[0] + 1
        marks = [mark + len(prompt) - start for mark in bare.marks]
        return Rendering([*prompt, *bare.tokens[start:]], marks)


def likelihood_reward(
    tokenizer: Tokenizer,
    config: DecoderConfig,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    *,
    max_steps: int,
    max_tokens: int,
    prompt_tokens: int,
) -> LikelihoodRatio:
    """A larger language model's likelihood against the policy's.

    Args:
        tokenizer, config: of the larger model, whose context bounds what is read.
        encode: a problem to the larger model's prompt.
        decode: the policy's token ids to text.
        max_steps, max_tokens: the target's, in the policy's tokens; the larger model
            may need twice as many for the same text.
        prompt_tokens: of the longest prompt.
    """
    return LikelihoodRatio(
        ShownContinuation(tokenizer, encode=encode),
        decode,
        max_steps=max_steps,
        max_tokens=min(prompt_tokens + 2 * max_tokens, config.max_length),
        width=max(2 * max_tokens // max_steps, 16),
    )
