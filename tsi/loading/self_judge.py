"""A policy as its own judge: one question, answered by one token."""

from tsi.decoding.step_texts import num_common
from tsi.errors import ConfigurationError
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.rewards.reward import SelfJudge

JUDGE_QUESTION = "Is every line above right? Answer Yes or No."
ANSWERS = ("Yes", "No")


def self_judge(tokenizer: Tokenizer, question: str = JUDGE_QUESTION) -> SelfJudge:
    """The policy's one-token judgement of its own text, asked in its own format.

    The ids are those of a solution, the question and an answer, encoded together, since
    a space before the answer is part of its token for most tokenizers, and not for all.
    What the two answers have in common belongs to the question.

    Args:
        tokenizer: of the policy.
        question: to be answered by Yes or No.

    Raises:
        ConfigurationError: the chat template drops what was said or answered.
    """
    said = "7 plus 8 is 15"
    if tokenizer.chat_template is None:
        rests = [f"\n{question}\nAnswer: {answer}" for answer in ANSWERS]
    else:
        turns = [
            {"role": "user", "content": "7+8"},
            {"role": "assistant", "content": said},
            {"role": "user", "content": question},
        ]
        rests = []
        for answer in ANSWERS:
            answered = [*turns, {"role": "assistant", "content": answer}]
            text = tokenizer.render(answered, add_generation_prompt=False)
            _, found, rest = text.rpartition(said)
            if not found:
                raise ConfigurationError(
                    f"The chat template of {tokenizer.name} drops what the assistant "
                    "has said, so that the model cannot judge it; name a reward model."
                )
            rests.append(rest)
    yes, no = (tokenizer.encode(said + rest, allow_special=True) for rest in rests)
    begin, end = num_common(tokenizer.encode(said), yes), num_common(yes, no)
    if end == min(len(yes), len(no)):
        raise ConfigurationError(
            f"The tokenizer of {tokenizer.name} or its chat template makes no "
            "difference between the answers Yes and No, so that the model cannot judge "
            "itself; name a reward model."
        )
    return SelfJudge(tuple(yes[begin:end]), yes[end], no[end])
