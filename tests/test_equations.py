"""The equation checker: true, false, or nothing stated."""

import random

import numpy as np
import pytest

from tsi.experiments.tasks.equations import equation_log_odds, judge_equations, value_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "none"),
        ("I think the answer is 7.", "none"),
        ("2 + 9 = 11\n11 - 4 = 7\nAnswer: 7", "right"),
        ("2 + 9 = 12\n12 - 5 = 7", "wrong"),
        ("2 + 9 = 11\n11 - 4 = 8", "wrong"),
        ("3 - 8 = -5", "right"),
        ("0 - 4 - 8 = -12.", "right"),
        ("2+9=11-4=7", "wrong"),
        ("2*3=6=3+3", "right"),
        ("3 × 4 = 12", "right"),
        ("x = 5", "none"),
        ("1 + 1 = 2.5", "none"),
        ("5 - 9 = ", "none"),
        ("2 + 2 = 4\nbut 2 + 2 = 5", "wrong"),
    ],
)
def test_verdicts(text, expected):
    assert judge_equations(text) == expected


def test_values_agree_with_python_on_random_sums_of_products():
    draw = random.Random(0)
    for _ in range(2000):
        terms = [str(draw.randint(-20, 20)) for _ in range(draw.randint(1, 6))]
        side = terms[0] + "".join(f" {draw.choice('+-*')} {t}" for t in terms[1:])
        assert value_of(side) == eval(side)


def test_log_odds_order_wrong_below_none_below_right():
    wrong, none, right = equation_log_odds(["1 + 1 = 3", "hm", "1 + 1 = 2"])
    assert wrong < none == 0.0 < right


def test_hostile_text_is_read_in_linear_time():
    for text in ("1+" * 100_000, "1 = " * 100_000, "9" * 100_000, "- " * 100_000):
        assert np.isfinite(equation_log_odds([text])).all()
