"""Graders of untrusted text end, whatever the text does."""

import threading
import time
import warnings

import pytest

from tsi.errors import AnswerError, ConfigurationError, UnknownNameError
from tsi.experiments.grading.grade import Grade
from tsi.experiments.grading.grader import GRADERS, get_grader
from tsi.experiments.grading.pool import GradingPool
from tsi.problem import Problem

PROBLEM = Problem(3, "1+1=", "2", {"numbers": [1, 1]})


@pytest.fixture(scope="module")
def pool():
    with GradingPool(get_grader("grader_samples:compare"), num_workers=2) as pool:
        yield pool


def test_a_pool_grades_as_the_function_would(pool):
    answers = ["2", "3", None, "line\nbreak \x00 é", "\ud800", "2"]
    grades = pool.grade([(PROBLEM, answer) for answer in answers])
    assert grades == [Grade(answer == "2") for answer in answers]
    assert not pool.failures
    assert pool.summary() is None


def test_each_answer_of_a_problem_is_graded_once(tmp_path):
    counter = tmp_path / "calls"
    problem = PROBLEM._replace(data={"counter": str(counter)})
    other = problem._replace(id="other")
    with GradingPool(get_grader("grader_samples:count"), num_workers=2) as pool:
        for _ in range(2):
            pool.grade([(problem, "2"), (problem, "2"), (other, "2"), (problem, "3")])
    assert len(counter.read_text()) == 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ("hang", "timeout"),
        ("spin", "timeout"),
        ("spin in C", "timeout"),
        ("die", "crash"),
        ("raise", "error: RuntimeError"),
        ("exit", "error: SystemExit"),
        ("memory", "error: MemoryError"),
        ("recursion", "error: RecursionError"),
        ("9" * 70_000, "too long"),
        ("print", None),
    ],
)
def test_a_bad_answer_is_counted_and_the_next_grade_is_right(answer, failure):
    grader = get_grader("grader_samples:misbehave")
    with GradingPool(
        grader, seconds=0.3, wall_seconds=4.0, megabytes=256, num_workers=1
    ) as pool:
        pairs = [(PROBLEM, "2"), (PROBLEM, answer), (PROBLEM, "3")]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            grades = pool.grade(pairs)
        said = [str(one.message) for one in caught]
        assert len(said) == (failure is not None)
        assert all(failure in text and "problem 3" in text for text in said)
        assert grades == [Grade(True), Grade(False, failure), Grade(False)]
        assert pool.failures == ({failure: 1} if failure else {})
        if failure:
            assert failure in pool.summary()
            assert "problem 3" in pool.summary()


def test_workers_grade_at_once(tmp_path):
    # Each waits until the other has begun.
    problem = PROBLEM._replace(data={"folder": str(tmp_path)})
    grader = get_grader("grader_samples:meet")
    with GradingPool(grader, num_workers=2, wall_seconds=60.0) as pool:
        grades = pool.grade([(problem, "first"), (problem, "second")])
        assert grades == [Grade(True)] * 2


def test_closing_ends_a_grade_that_hangs():
    grader = get_grader("grader_samples:misbehave")
    pool = GradingPool(grader, wall_seconds=600.0, num_workers=1)
    pool.grade([(PROBLEM, "2")])
    (worker,) = pool._workers
    process = worker.process
    grades = []

    def grade():
        grades.extend(pool.grade([(PROBLEM, "hang")]))

    thread = threading.Thread(target=grade)
    thread.start()
    while not worker._lock.locked():
        time.sleep(0.01)
    pool.close()
    thread.join(60)
    assert not thread.is_alive()
    assert process.returncode is not None
    assert grades == [Grade(False, "crash")]
    with pytest.raises(AnswerError, match="closed"):
        pool.grade([(PROBLEM, "3")])


def test_data_that_json_cannot_express_is_counted(pool):
    problem = PROBLEM._replace(id="set", data={"numbers": {1, 2}})
    assert pool.grade([(problem, "2")]) == [Grade(False, "error: TypeError")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "no module no_such_module"),
        ("grader_samples:none", "has no 'none'"),
        ("grader_samples:NUMBER", "of type int, not a function"),
        ("grader_samples.py:compare", "its module may be grader_samples"),
        ("numeric:-1", "relative one from 0"),
    ],
)
def test_a_grader_that_cannot_be_used_is_refused(name, message):
    with pytest.raises(ConfigurationError, match=message):
        get_grader(name)


def test_an_unknown_grader_lists_the_known():
    with pytest.raises(UnknownNameError, match="choice, exact, math"):
        get_grader("sympy")


@pytest.mark.parametrize("name", GRADERS)
def test_an_empty_gold_answer_is_refused(name):
    with pytest.raises(ConfigurationError, match="problem 7"):
        get_grader(name).check(
            [
                PROBLEM._replace(answer="B" if name == "choice" else "2"),
                PROBLEM._replace(id=7, answer=" "),
            ]
        )
