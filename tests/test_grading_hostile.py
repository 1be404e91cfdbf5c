"""No answer stops the grader of mathematics, and the answers after it are graded."""

import pytest

from tsi.experiments.grading.grade import Grade
from tsi.experiments.grading.grader import get_grader
from tsi.experiments.grading.pool import GradingPool
from tsi.problem import Problem

pytest.importorskip("math_verify")

GOLD = Problem("gold", "", "(x+1)^2")

HANGING = ["9^{9^{9^{9^9}}}", "(" * 250 + "x" + ")" * 250]
MORE_HANGING = [
    "{" * 500,
    "(10^9)! + x",
    "x^{10^{10^{10}}} - 1",
    "((10^6)!)! / x",
    "\\binom{10^9}{10^8} + x",
    "(x+1)^{100000} - (x+y+z+w)^{1000}",
    "(a+b+c+d+e+f+g)^{60} - 1",
    "\\int_0^1 x^{x^{x^x}} \\sin(x^{x}) e^{x^{9}} dx",
    "\\sum_{n=1}^{10^{12}} \\frac{1}{n^n} + x",
    "\\prod_{n=1}^{10^{9}} (n^n + x)",
    "\\sqrt{2+\\sqrt{3+\\sqrt{5+\\sqrt{7+\\sqrt{11+\\sqrt{13+\\sqrt{17+x}}}}}}}",
    "\\sin(\\cos(\\tan(\\sin(\\cos(\\tan(\\sin(x)^{99})))))^{99})",
]
MALFORMED = [
    "9^9^9^9",
    "10**10**10 + x",
    "\\frac{" * 80,
    "{" * 40,
    "(" * 30 + "x" + ")" * 30,
    "\\sqrt{" * 80 + "x" + "}" * 80,
    "x" * 512,
    "x+" * 255,
    "\\left(x",
    "x}",
    "$$$$",
    "\\begin{pmatrix} 1 & 2",
    "\\end{document}",
    "\\input{/etc/passwd}",
    "\\def\\x{\\x\\x}\\x",
    "x\x00+1",
    "\x00",
    "\ud800+x",
    "\udfff",
    "x\x1b[2J\x07+\x7f",
    "x\u202e+1",
    "\u0661 + x",
    "__import__('os').system('touch /tmp/tsi-was-here')",
    "lambda: x",
    "x.__class__",
    "\\\\" * 200,
    "^" * 400,
    "-" * 511 + "x",
    "1/0 + x",
    "0^{-1}x",
    "\\infty - \\infty + x",
    "\\frac{x}{0}",
]
LONG = ["9" * 2**20, "x+" * 2**19, "{" * 2**20, "\ud800" * 1000]


@pytest.mark.long
@pytest.mark.parametrize(
    "hanging", [HANGING, pytest.param(MORE_HANGING, marks=pytest.mark.slow)]
)
def test_nothing_that_a_model_writes_stops_the_grading(hanging):
    answers = [*hanging, *MALFORMED, *LONG]
    pairs = []
    for answer in answers:
        # A right and a wrong answer after each.
        pairs += [(GOLD, answer), (GOLD._replace(id=f"{len(pairs)}"), "x^2+2x+1")]
        pairs += [(GOLD._replace(id=f"{len(pairs)}"), "x^2+2x")]
    with GradingPool(
        get_grader("math"), seconds=0.7, wall_seconds=20.0, num_workers=2
    ) as pool:
        grades = pool.grade(pairs)
        assert grades[1::3] == [Grade(True)] * len(answers)
        assert grades[2::3] == [Grade(False)] * len(answers)
        bad = dict(zip(answers, grades[::3], strict=True))
        assert not any(grade.correct for grade in bad.values())
        failed = {answer for answer, grade in bad.items() if grade.failure}
        assert pool.failures.total() == len(failed)
        assert {bad[answer] for answer in LONG} == {Grade(False, "too long")}
        assert len(failed & set(hanging)) > len(hanging) / 2
        assert pool.failures["timeout"] >= len(hanging) / 2
