"""The graders numeric, choice and exact, on answers as models write them."""

import sys
from fractions import Fraction

import pytest

from tsi.errors import ConfigurationError, UngradedAnswerWarning
from tsi.experiments.grading.grader import get_grader
from tsi.experiments.grading.numeric import tolerance_of
from tsi.experiments.grading.pool import GradingPool
from tsi.problem import Problem

CHOICES = {"choices": ["4", "Red blood cells", "\\frac{1}{2}", "None of these"]}


def is_right(grader, gold, answer, data=None):
    with GradingPool(get_grader(grader)) as pool:
        (grade,) = pool.grade([(Problem(0, "", gold, data or {}), answer)])
    assert grade.failure is None
    return grade.correct


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("2.5", "5/2", True),
        ("2.5", "$2.50", True),
        ("1,000", "10^3", True),
        ("5", "5 apples", True),
        ("5 m", "5", True),
        ("5 m", "5 meters", True),
        ("5 m", "5\\text{ metres}", True),
        ("5 m", "5 km", False),
        ("5 m", "5 s", False),
        ("5000 m", "5 km", False),
        ("60 km/h", "60 kph", True),
        ("60 km/h", "60 mph", False),
        ("50%", "50 percent", True),
        ("50%", "50", True),
        ("50%", "\\$50", False),
        ("50%", "0.5", True),
        ("1/2", "50%", True),
        ("1/2", "50", False),
        ("1/2", "5%", False),
        ("0.5 m", "50%", False),
        ("$5", "5 dollars", True),
        ("$5", "€5", False),
        ("90^\\circ", "90 degrees", True),
        ("5", "6", False),
        ("5", "five", True),
        ("5", "about", False),
        ("5 million", "5,000,000", True),
    ],
)
def test_a_number_is_compared_with_its_unit(gold, answer, right):
    assert is_right("numeric", gold, answer) is right


@pytest.mark.parametrize(
    ("grader", "data", "answer", "right"),
    [
        ("numeric", {}, "101", False),
        ("numeric:0.01", {}, "101", True),
        ("numeric:0.01", {}, "99", True),
        ("numeric:0.01", {}, "101.01", False),
        ("numeric:0.01", {"tolerance": 0}, "101", False),
        ("numeric", {"tolerance": 0.05}, "105", True),
        ("numeric", {"tolerance": "0.05"}, "106", False),
        ("numeric", {"absolute_tolerance": 2}, "102", True),
        ("numeric", {"absolute_tolerance": 2, "tolerance": 0.05}, "105", True),
        ("numeric", {"unit": "kg"}, "100 kilograms", True),
        ("numeric", {"unit": "kg"}, "100 g", False),
    ],
)
def test_a_number_may_differ_by_the_tolerance(grader, data, answer, right):
    assert is_right(grader, "100", answer, data) is right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 2.5 hours.", "5/2 h"),
        ("40 km at 16 km/h: the train needs **2.5 hours**.", "5/2 h"),
        ("\\boxed{3\\text{ m}}", "3 m"),
        ("So it costs $4.50 in step 3 only", "3"),
        ("Answer: $4.50", "9/2 $"),
        ("no number", None),
    ],
)
def test_a_quantity_is_extracted_with_its_unit(text, answer):
    assert get_grader("numeric").extract(text) == answer


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "B",
            "b",
            "(B)",
            "B.",
            "B)",
            "[B]",
            "**B**",
            "option B",
            "Option (b)",
            "\\text{B}",
        ),
        *("B: Red blood cells", "(B) Red blood cells", "red blood cells", "Choice B"),
    ],
)
def test_a_choice_is_a_letter_or_its_text(answer):
    assert is_right("choice", "B", answer, CHOICES)
    assert is_right("choice", "Red blood cells", answer, CHOICES)
    assert not is_right("choice", "C", answer, CHOICES)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("0.5", True),
        ("\\frac12", True),
        ("4", False),
        ("C", True),
        ("white cells", False),
    ],
)
def test_the_text_of_a_choice_may_be_written_otherwise(answer, right):
    assert is_right("choice", "C", answer, CHOICES) is right


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (C).", "C"),
        ("The correct answer is option C because A is wrong.", "C"),
        ("**Answer:** C) None of these", "C"),
        ("\\boxed{\\text{C}}", "C"),
        ("A and B are wrong, so I choose C.", "C"),
        ("The best choice is (c)", "C"),
        ("It is C. I am sure. A proof follows", "C"),
        ("Answer: Red blood cells", "redbloodcells"),
        ("\\boxed{12}", "12"),
        ("The answer is 12.", "12"),
        ("In step 3 I choose C, not B", "B"),
        ("3 + 4 = 7", None),
        ("3 + 4 = 7. So I choose C.", "C"),
        ("none", None),
    ],
)
def test_a_letter_is_found_in_a_text(text, letter):
    assert get_grader("choice").extract(text) == letter


@pytest.mark.parametrize(
    ("answer", "right"), [("4", True), ("B", True), ("2", False), ("D", False)]
)
def test_a_digit_is_the_text_of_a_choice(answer, right):
    choices = {"choices": ["2", "4", "6", "8"]}
    grader = get_grader("choice")
    assert grader.check_gold(Problem("p", "?", "4", choices)) is None
    assert is_right("choice", "4", answer, choices) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("New York", True), (" New York\n", True), ("new york", False), ("York", False)],
)
def test_an_exact_answer_is_the_same_text(answer, right):
    assert is_right("exact", "New York", answer) is right


def test_an_exact_answer_may_be_written_with_other_code_points():
    assert is_right("exact", "caf\u00e9", "cafe\u0301")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is New York, because it is big.", "New York"),
        ("\\boxed{x+1}", "x+1"),
        ("First line\n\nParis\n", "Paris"),
        ("", None),
    ],
)
def test_the_exact_answer_of_a_text(text, answer):
    assert get_grader("exact").extract(text) == answer


@pytest.mark.parametrize(
    ("grader", "gold", "data", "message"),
    [
        ("numeric", "many", {}, "not a number"),
        ("numeric", "5", {"tolerance": "much"}, "the tolerance 'much'"),
        ("numeric", "5", {"absolute_tolerance": -1}, "number from 0"),
        ("numeric", "5", {"tolerance": "1e-999999999"}, "number from 0"),
        ("numeric", "5", {"tolerance": "0." + "0" * 10**5 + "1"}, "number from 0"),
        ("choice", "Paris", {}, "neither a letter"),
        ("choice", "E", CHOICES, "not one of 4 choices"),
        ("choice", "A", {"choices": "ABCD"}, "not a list"),
    ],
)
def test_a_gold_answer_that_grades_nothing_is_refused(grader, gold, data, message):
    with pytest.raises(ConfigurationError, match=message):
        get_grader(grader).check([Problem("p", "", gold, data)])


def test_a_tolerance_that_would_fill_the_memory_grades_nothing():
    problem = Problem("p", "", "5", {"tolerance": "1e-999999999"})
    pool = GradingPool(get_grader("numeric"))
    with pytest.warns(UngradedAnswerWarning, match="tolerance is not a number"):
        (grade,) = pool.grade([(problem, "5.1")])
    assert grade == (False, "error: ValueError")
    assert tolerance_of("1e-300") == Fraction(1, 10**300)
    assert tolerance_of(5e-324) > 0


def test_a_module_of_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "own_grader.py").write_text(
        "def starts(problem, answer): return answer.startswith(problem.answer)\n"
        "def says_no(problem, answer): return 'no'\n"
    )
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    assert is_right("own_grader:starts", "4", "42")
    with GradingPool(get_grader("own_grader:says_no"), num_workers=1) as pool:
        (grade,) = pool.grade([(Problem(0, "", "4"), "42")])
        assert grade == (False, "error: TypeError")
        assert "returned 'no'" in pool.summary()


@pytest.mark.parametrize("name", ["math:0.1", "choice:3", "exact:"])
def test_settings_of_a_grader_without_settings_are_refused(name):
    with pytest.raises(ConfigurationError, match="takes no settings"):
        get_grader(name)
