"""The token ids of the question to a served policy that judges a text."""

from tsi.decoding.step_texts import num_common
from tsi.errors import ConfigurationError
from tsi.loading.self_judge import ANSWERS, JUDGE_QUESTION, self_judge
from tsi.models.tokens.spelling import Spelling
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.rewards.self_judge import SelfJudge

EXAMPLE = ("7+8", "7 plus 8 is 15")
"""A question and its solution; the part of the rendered text after them is the judge's
question."""


def judge_question(spelling: Spelling, question: str = JUDGE_QUESTION) -> SelfJudge:
    """The question after a solution, and the answers, Yes and No.

    With a tokenizer on this machine, the question is that of
    :func:`tsi.loading.self_judge`. A server's tokenizer renders chats only up to the
    answer, so the answer is compared as the first token of a turn.

    Args:
        spelling: of the policy that judges.
        question: text of a question with the answers Yes and No.

    Raises:
        ConfigurationError: the chat template drops the solution, or the tokenizer does
            not distinguish the answers.
        ServerError: the server cannot encode the question.
    """
    if isinstance(spelling, Tokenizer):
        return self_judge(spelling, question)
    problem, solution = EXAMPLE
    text = spelling.encode(solution)
    if spelling.chat_template is None:
        endings = [f"\n{question}\nAnswer: {answer}" for answer in ANSWERS]
        yes, no = (spelling.encode(solution + ending) for ending in endings)
        start, end = num_common(text, yes), num_common(yes, no)
        question_ids, answers = yes[start:end], [yes[end : end + 1], no[end : end + 1]]
    else:
        turns = [
            {"role": "user", "content": problem},
            {"role": "assistant", "content": solution},
            {"role": "user", "content": question},
        ]
        whole = spelling.encode_chat(turns)
        places = range(len(whole) - len(text), -1, -1)
        place = next((i for i in places if whole[i : i + len(text)] == text), None)
        if place is None:
            raise ConfigurationError(
                f"The chat template of {spelling.name} drops or changes what the "
                "assistant has said, so the model cannot judge it. Give the tokenizer "
                "of the model, or use a reward model."
            )
        question_ids = whole[place + len(text) :]
        answers = [spelling.encode(answer)[:1] for answer in ANSWERS]
    if not all(answers) or answers[0] == answers[1]:
        raise ConfigurationError(
            f"The tokenizer of {spelling.name} does not distinguish the answers Yes "
            "and No, so the model cannot judge. Use a reward model."
        )
    return SelfJudge(tuple(question_ids), answers[0][0], answers[1][0])
