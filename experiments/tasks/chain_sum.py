"""reasoning-gym's chain_sum for chat models: short sums, one equation a line.

The dataset (Apache-2.0, package ``reasoning-gym``, extra ``tasks``) gives expressions
of one-digit terms with + and −; the prompt here shows three worked examples as earlier
turns of the chat, for a small model follows a form better than an instruction.
"""

import re
from collections.abc import Callable

from tsi.errors import ConfigurationError
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.problem import Problem

SYSTEM = "Work from left to right, one equation per line. Then give the answer."
EXAMPLES = (
    ("2 + 9 - 4", "2 + 9 = 11\n11 - 4 = 7\nAnswer: 7"),
    ("3 - 8", "3 - 8 = -5\nAnswer: -5"),
    ("6 - 1 + 7 + 5", "6 - 1 = 5\n5 + 7 = 12\n12 + 5 = 17\nAnswer: 17"),
)
MAX_STEPS, MAX_STEP_TOKENS, MAX_TOKENS = 6, 16, 48

_ANSWER = re.compile(r"Answer: ?([-−]?\d{1,9})(?!\d)")
_NUMBER = re.compile(r"(?<!\d)[-−]?\d{1,9}(?!\d)")


def problems(count: int, seed: int) -> list[Problem]:
    """Problems of two to four one-digit terms, numbered from 0.

    Raises:
        ConfigurationError: the package ``reasoning-gym`` is not installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigurationError(
            "The task chain_sum needs the package reasoning-gym; install it with "
            "`pip install 'tsi[tasks]'`."
        ) from error
    dataset = reasoning_gym.create_dataset(
        "chain_sum",
        min_terms=2,
        max_terms=4,
        min_digits=1,
        max_digits=1,
        size=count,
        seed=seed,
    )
    return [
        Problem(i, entry["metadata"]["expression"], entry["answer"])
        for i, entry in enumerate(dataset)
    ]


def encoder(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Token ids of the chat in which a problem is asked after the examples."""

    def encode(prompt: str) -> list[int]:
        messages = [{"role": "system", "content": SYSTEM}]
        for question, answer in EXAMPLES:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": prompt})
        return tokenizer.encode_chat(messages)

    return encode


def extract(text: str) -> str | None:
    """The number after the last "Answer:", else the last number of the text."""
    found = _ANSWER.findall(text) or _NUMBER.findall(text)
    return str(int(found[-1].replace("−", "-"))) if found else None


def correct(problem: Problem, answer: str | None) -> bool:
    """Whether an extracted answer is the right number."""
    return answer is not None and answer == problem.answer
