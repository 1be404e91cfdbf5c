"""The grader of mathematics: equal answers, and traps where they only look equal."""

import importlib.util
import sys

import pytest

from tsi.errors import ConfigurationError
from tsi.experiments.grading import mathematics
from tsi.experiments.grading.grader import get_grader
from tsi.experiments.grading.mathematics import decide, shortcut, verify
from tsi.experiments.grading.pool import GradingPool
from tsi.problem import Problem
from tsi.results.answers import extract_answer
from tsi.results.canonical import canonical, equivalent

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is missing"
)

EQUAL = {
    "numbers": [("1/2", "0.5"), ("\\frac{3}{2}", "1\\frac{1}{2}"), ("1,000", "1000")],
    "decimals": [("1/3", "0.333333"), ("2/3", "0.6666667"), ("0.\\overline{3}", "1/3")],
    "percent": [("50\\%", "50"), ("50%", "0.5")],
    "currency": [("\\$5", "5"), ("3.50", "$3.50"), ("5 dollars", "\\$5.00")],
    "units": [("5", "5\\text{ cm}"), ("10\\text{ m}^2", "10"), ("90^\\circ", "90")],
    "names": [("x=1", "1"), ("1", "y=1"), ("y = 2x", "2x"), ("f(x) = x+1", "1+x")],
    "lists": [("1,2", "2,1"), ("1, 2", "1 \\text{ and } 2"), ("x=1 or x=2", "2, 1")],
    "tuples": [
        ("(1,2)", "1, 2"),
        ("(1,\\frac12)", "(1, 0.5)"),
        ("(x,y)=(1,2)", "(1,2)"),
    ],
    "sets": [("\\{1,2\\}", "{2, 1}"), ("\\{1,2\\}", "1,2"), ("\\{5\\}", "5")],
    "intervals": [("[0,1]", "[0, 1.0]"), ("(-\\infty, 1]", "(-infinity, 1]")],
    "signs": [("\\pm 2", "2, -2"), ("x=\\pm\\sqrt2", "-\\sqrt{2}, \\sqrt{2}")],
    "roots": [("\\sqrt{12}", "2\\sqrt3"), ("sqrt(3)/3", "\\frac{1}{\\sqrt{3}}")],
    "powers": [("2^{10}", "1024"), ("2^(n-1)", "\\frac{2^n}{2}"), ("10**2", "100")],
    "algebra": [("(x+1)^2", "x^2+2x+1"), ("\\frac{n(n+1)}2", "(n^2+n)/2")],
    "ratios": [("3:4", "3/4"), ("\\frac12\\pi", "\\frac{\\pi}{2}")],
    "complex": [("3+4i", "4i+3"), ("\\frac{6+8i}{2}", "3+4i")],
    "functions": [("\\cos^2 x", "1-\\sin^2 x"), ("\\log_2 8", "3"), ("5!", "120")],
    "matrices": [
        (
            "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
            "\\begin{bmatrix}1&2\\\\3&\\frac{8}{2}\\end{bmatrix}",
        )
    ],
    "inequalities": [("x > 1", "1 < x"), ("x \\ge 2", "2 \\le x")],
    "equations": [("x^2+y^2=1", "x^2+y^2-1=0")],
    "words": [
        ("Yes", "\\text{yes}"),
        ("\\text{(A)}", "A"),
        ("No solution", "no solution"),
    ],
    "bases": [("101_2", "101_{2}"), ("101_2", "101")],
}
DIFFERENT = {
    "numbers": [("12", "1 2"), ("1/3", "0.333"), ("\\pi", "3.14"), ("1", "1.0000001")],
    "small numbers": [("0.0000001", "0.0000002"), ("10^{-8}", "0")],
    "percent": [("50\\%", "5"), ("1/2", "5%")],
    "names": [("x=1", "y=1"), ("x=1,y=2", "x=2,y=1"), ("y=2x", "z=2x")],
    "lists": [("1,2", "1"), ("1,2", "1,2,2"), ("1, 200", "1200"), ("1,2", "1,3")],
    "tuples": [("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("(1,2)", "\\{1,2\\}")],
    "sets": [("\\{1,2\\}", "(1,2)"), ("\\{1,2\\}", "[1,2]"), ("\\{1\\}", "\\{1,2\\}")],
    "intervals": [("[0,1]", "[0,1)"), ("[0,1]", "0,1"), ("(0,1)", "(0,2)")],
    "signs": [("\\pm 2", "2"), ("-3", "3")],
    "roots": [("\\sqrt{2}", "1.414"), ("\\sqrt{2}", "2")],
    "letters": [("R^2-r^2", "0"), ("\\Delta", "\\delta"), ("2X", "2x"), ("5m", "5")],
    "powers": [
        ("2^{n}-1", "2^{n-1}"),
        ("2^{100}", "2^{101}"),
        ("10^{20}", "10^{20}+1"),
    ],
    "factors": [
        ("\\frac{1}{2}\\pi", "\\frac{1}{2\\pi}"),
        ("2^\\frac12", "\\frac{2^1}{2}"),
    ],
    "angles": [("\\frac{\\pi}{2}", "90")],
    "functions": [("\\gcd(a,b)", "\\gcd(b,c)"), ("\\log_2 8", "\\log_3 8")],
    "matrices": [
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}")
    ],
    "inequalities": [("x>1", "x\\ge1"), ("x>1", "x<1"), ("n>1", "k>1")],
    "words": [
        ("no", "on"),
        ("even", "odd"),
        ("yes", "no"),
        ("Evelyn", "e"),
        ("B", "C"),
    ],
    "bases": [("101_2", "101_3"), ("101_2", "5")],
    "times": [("6:30", "1:5"), ("10 a.m.", "10 p.m."), ("10 a.m.", "10")],
    "zero": [("0", "1/0"), ("\\infty", "-\\infty"), ("\\emptyset", "0")],
    "series": [("1+2+\\cdots+n", "1+2+\\cdots+m"), ("0.333...", "0.333")],
    "conditions": [
        ("3 if n is even", "3"),
        ("0", "xis0"),
        ("0", "y at 0"),
        ("1\\pmod 4", "1"),
    ],
}


"""Kinds of answers that a reader takes for equal, or not."""


def pairs(table):
    return [
        pytest.param(*pair, id=f"{kind}: {pair[0]} | {pair[1]}")
        for kind, members in table.items()
        for pair in members
    ]


@needs_math_verify
@pytest.mark.parametrize(("gold", "answer"), pairs(EQUAL))
def test_equal_answers(gold, answer):
    assert decide(gold, answer, verify) is True
    # The answer as a run extracts it.
    assert decide(gold, extract_answer(f"\\boxed{{{answer}}}"), verify) is True


@needs_math_verify
@pytest.mark.parametrize(("gold", "answer"), pairs(DIFFERENT))
def test_different_answers(gold, answer):
    assert decide(gold, answer, verify) is False
    assert decide(answer, gold, verify) is False


@pytest.mark.parametrize(("gold", "answer"), pairs(EQUAL) + pairs(DIFFERENT))
def test_the_shortcut_decides_as_the_grader_or_not_at_all(gold, answer):
    quick = shortcut(Problem(0, "", gold), answer)
    is_equal = (gold, answer) in [pair for kind in EQUAL.values() for pair in kind]
    assert quick in (None, is_equal)


@pytest.mark.parametrize(("gold", "answer"), pairs(DIFFERENT))
def test_particles_with_different_answers_do_not_vote_together(gold, answer):
    # A name is dropped from the answer, and a grader alone could compare it.
    if "=" not in gold or "," in gold:
        assert not equivalent(gold, answer)


def test_a_percent_sign_makes_two_numbers():
    for gold, answer in [("1/2", "50\\%"), ("0.5", "50%"), ("50\\%", "50")]:
        assert shortcut(Problem(0, "", gold), answer) is True
    assert shortcut(Problem(0, "", "1/2"), "5%") is False


@needs_math_verify
def test_a_pool_of_processes_decides_about_formulas():
    problems = [Problem(0, "", "(x+1)^2"), Problem(1, "", "\\frac{\\pi}{2}")]
    answers = ["x^2+2x+1", "\\pi/2", "x^2+1", None]
    with GradingPool(get_grader("math"), num_workers=1) as pool:
        grades = [
            [grade.correct for grade in pool.grade([(p, a) for a in answers])]
            for p in problems
        ]
        assert grades == [[True, False, False, False], [False, True, False, False]]
        assert not pool.failures


def test_without_math_verify_a_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    mathematics._math_verify.cache_clear()
    with pytest.raises(mathematics.MissingPackageError, match="pip install"):
        mathematics.is_correct(Problem(0, "", "(x+1)^2"), "x^2+2x+1")
    mathematics._math_verify.cache_clear()
    # What needs no formula is graded all the same.
    assert mathematics.is_correct(Problem(0, "", "1/2"), "0.5")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    get_grader("math").check([Problem(0, "", "12"), Problem(1, "", "Yes")])
    with pytest.raises(ConfigurationError, match=r"problem 'f' is a formula.*install"):
        get_grader("math").check([Problem("f", "", "(x+1)^2")])


def test_a_gold_answer_without_an_answer_is_refused():
    with pytest.raises(ConfigurationError, match="problem 3"):
        get_grader("math").check([Problem(3, "", "\\text{ }")])
    with pytest.raises(ConfigurationError, match="512 characters"):
        get_grader("math").check([Problem(3, "", "9" * 600)])


def test_a_canonical_answer_grades_as_the_answer_itself():
    for kind in EQUAL.values():
        for gold, answer in kind:
            form = canonical(answer)
            quick = shortcut(Problem(0, "", gold), answer)
            assert shortcut(Problem(0, "", gold), form) in (quick, None), answer


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("1/2", "The probability is 50%.", True),
        ("0.5", "The probability is \\boxed{50\\%}.", True),
        ("\\frac{5}{14}", "It is approximately 35.7143%.", True),
        ("50", "So 50 percent of them are red.\n\nAnswer: 50 percent", True),
        ("50\\%", "The answer is 50.", True),
        ("50\\%", "The answer is 1/2.", True),
        ("1/2", "The answer is 50.", False),
        ("1/2", "The answer is 5%.", False),
    ],
)
def test_a_percent_sign_survives_extraction(gold, text, right):
    grader = get_grader("math")
    answer = grader.extract(text)
    assert shortcut(Problem(0, "", gold), answer) is right
    # The answer is its own canonical form, also as another's gold answer.
    assert canonical(answer) == answer
