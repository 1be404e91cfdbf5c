"""A verifier that needs no answer: are the equations in a text true?

Every line is searched for equations such as ``2 + 9 = 11``; an equation is right if all
its sides have the same value. One wrong equation makes the text wrong; a text without
equations has the verdict "none". Each verdict has a reward in (0, 1), given as
log-odds.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

# Reward by verdict. A wrong equation seldom leads to a right answer. A right equation
# may be irrelevant. A text without equations says nothing.
REWARDS = {"right": 0.8, "none": 0.5, "wrong": 0.02}

# Untrusted text: lengths and digits are bounded, and no part can match in two ways, so
# that matching takes linear time.
MAX_LINE = 200
_NUMBER = r"[-+−]?\d{1,9}"
_SIDE = rf"{_NUMBER}(?:[ ]?[-+−*×x·][ ]?{_NUMBER}){{0,8}}"
_CHAIN = re.compile(rf"(?<![\w.]){_SIDE}(?:[ ]?=[ ]?{_SIDE}){{1,8}}(?![\w]|\.\d)")
_TERM = re.compile(r"([-+*]?) ?([-+]?\d+)")
_SIGNS = {"−": "-", "×": "*", "x": "*", "·": "*"}

Verdict = Literal["right", "none", "wrong"]


def judge_equations(text: str) -> Verdict:
    """The verdict on all equations of a text."""
    result: Verdict = "none"
    for line in text.splitlines():
        for chain in _CHAIN.finditer(line[:MAX_LINE]):
            values = {value_of(side) for side in chain[0].split("=")}
            if len(values) > 1:
                return "wrong"
            result = "right"
    return result


def value_of(side: str) -> int:
    """Value of a sum of products of integers, such as ``6 - 2 * -3``."""
    for sign, operator in _SIGNS.items():
        side = side.replace(sign, operator)
    total, product = 0, 0
    for operation, number in _TERM.findall(side):
        if operation == "*":
            product *= int(number)
        else:
            total += product
            product = -int(number) if operation == "-" else int(number)
    return total + product


def equation_log_odds(texts: Sequence[str]) -> np.ndarray:
    """Log-odds of the reward of each text, ``[R]`` float32."""
    rewards = [REWARDS[judge_equations(text)] for text in texts]
    return np.asarray([math.log(r / (1.0 - r)) for r in rewards], np.float32)
