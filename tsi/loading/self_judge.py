"""A policy as its own reward: a question that it answers by one token."""

from tsi.decoding.step_texts import num_common
from tsi.errors import ConfigurationError
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.rewards.self_judge import SelfJudge

JUDGE_QUESTION = "Is every line above right? Answer Yes or No."
ANSWERS = ("Yes", "No")


def self_judge(tokenizer: Tokenizer, question: str = JUDGE_QUESTION) -> SelfJudge:
    """A reward from the policy's answer, Yes or No, to a question about its text.

    A solution, the question and an answer are encoded together, because in most
    tokenizers a space before the answer is part of its token. The common prefix of the
    two answers is part of the question.

    Args:
        tokenizer: of the policy.
        question: to be answered by Yes or No.

    Raises:
        ConfigurationError: if the chat template drops the solution or the answer.
    """
    solution = "7 plus 8 is 15"
    if tokenizer.chat_template is None:
        endings = [f"\n{question}\nAnswer: {answer}" for answer in ANSWERS]
    else:
        turns = [
            {"role": "user", "content": "7+8"},
            {"role": "assistant", "content": solution},
            {"role": "user", "content": question},
        ]
        endings = []
        for answer in ANSWERS:
            conversation = [*turns, {"role": "assistant", "content": answer}]
            text = tokenizer.render(conversation, add_generation_prompt=False)
            _, separator, ending = text.rpartition(solution)
            if not separator:
                raise ConfigurationError(
                    f"The chat template of {tokenizer.name} drops what the assistant "
                    "has said, so the model cannot judge it. Use a reward model."
                )
            endings.append(ending)
    yes, no = (
        tokenizer.encode(solution + ending, allow_special=True) for ending in endings
    )
    start, end = num_common(tokenizer.encode(solution), yes), num_common(yes, no)
    if end == min(len(yes), len(no)):
        raise ConfigurationError(
            f"The tokenizer of {tokenizer.name} or its chat template does not "
            "distinguish the answers Yes and No, so the model cannot judge itself. Use "
            "a reward model."
        )
    return SelfJudge(tuple(yes[start:end]), yes[end], no[end])
