"""A verifier that needs no answer: are the equations that a text states true?

Every line is searched for chains such as ``2 + 9 = 11``; a chain is right if all its
sides have the same value. One wrong equation makes the text wrong; a text without any
says nothing. The verdict is a reward in (0, 1), given as log-odds.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

# Reward of a text by its verdict: a wrong equation hardly ever leads to a right answer,
# a right one can still be beside the point, and silence is no evidence.
REWARDS = {"right": 0.8, "none": 0.5, "wrong": 0.02}

# Untrusted text: bounded lengths and digits, and no part that can match in two ways.
MAX_LINE = 200
_NUMBER = r"[-+−]?\d{1,9}"
_SIDE = rf"{_NUMBER}(?:[ ]?[-+−*×x·][ ]?{_NUMBER}){{0,8}}"
_CHAIN = re.compile(rf"(?<![\w.]){_SIDE}(?:[ ]?=[ ]?{_SIDE}){{1,8}}(?![\w]|\.\d)")
_TERM = re.compile(r"([-+*]?) ?([-+]?\d+)")
_SIGNS = {"−": "-", "×": "*", "x": "*", "·": "*"}

Verdict = Literal["right", "none", "wrong"]


def judge_equations(text: str) -> Verdict:
    """What the equations of a text, taken together, amount to."""
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
