"""Rewards that use another tokenizer than the policy.

These are published reward models in their formats, and the likelihood ratio of a larger
language model.
"""

import dataclasses
from collections.abc import Callable, Sequence

from tsi.errors import UnknownNameError
from tsi.models.decoder_config import DecoderConfig
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.rewards.formats import FORMATS, ContinuationFormat, Rendering
from tsi.rewards.formatted import FormattedReward
from tsi.rewards.likelihood_ratio import LikelihoodRatio

TOKENS_PER_STEP = 32
"""Most tokens that a format adds per step: a tag, or a turn of a chat."""
QUESTION_TOKENS = 512
"""Maximum length of a question, if its length is not known."""


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
    """A reward in a named format, for solutions of a given length.

    Args:
        name: name of the format.
        tokenizer, config: of the reward model, whose context limits the length.
        decode: maps token ids of the policy to text.
        max_steps, max_tokens: limits of the target, in tokens of the policy; the reward
            model may need twice as many tokens for the same text.
        prompt_tokens: maximum length of the question.
        aggregation: how step scores are aggregated.

    Raises:
        UnknownNameError: for an unknown format or aggregation.
    """
    if name not in FORMATS:
        raise UnknownNameError("format of a reward model", name, FORMATS)
    length = prompt_tokens + 2 * max_tokens + TOKENS_PER_STEP * max_steps
    return FormattedReward(
        FORMATS[name](tokenizer),
        decode,
        max_steps=max_steps,
        max_tokens=min(length, config.max_length),
        width=max(2 * max_tokens // max_steps, 16),
        aggregation=aggregation,
    )


@dataclasses.dataclass(frozen=True)
class PromptContinuation(ContinuationFormat):
    """A continuation of the prompt of the policy, including its worked examples.

    Attributes:
        encode: maps a problem to the token ids of its prompt.
    """

    encode: Callable[[str], list[int]] = dataclasses.field(kw_only=True)

    def render(self, question: str, steps: Sequence[str], ended: bool) -> Rendering:
        """See :class:`tsi.rewards.formats.Format`."""
        continuation = super().render(question, steps, ended)
        prompt, start = self.encode(question), continuation.marks[0] + 1
        marks = [mark + len(prompt) - start for mark in continuation.marks]
        return Rendering([*prompt, *continuation.tokens[start:]], marks)


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
    """The likelihood ratio of a larger language model and the policy.

    Args:
        tokenizer, config: of the larger model, whose context limits the length.
        encode: maps a problem to the prompt of the larger model.
        decode: maps token ids of the policy to text.
        max_steps, max_tokens: limits of the target, in tokens of the policy; the larger
            model may need twice as many tokens for the same text.
        prompt_tokens: length of the longest prompt.
    """
    return LikelihoodRatio(
        PromptContinuation(tokenizer, encode=encode),
        decode,
        max_steps=max_steps,
        max_tokens=min(prompt_tokens + 2 * max_tokens, config.max_length),
        width=max(2 * max_tokens // max_steps, 16),
    )
