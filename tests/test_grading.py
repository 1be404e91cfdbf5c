"""Graders of untrusted text end, whatever the text does."""

import os

import pytest

from tsi.errors import AnswerError
from tsi.experiments.tasks.grading import Grade, GradingWorker
from tsi.problem import Problem

PROBLEM = Problem(3, "1+1=", "2", {"numbers": [1, 1]})


@pytest.fixture(scope="module", autouse=True)
def graders_on_path():
    here = os.path.dirname(__file__)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = here if before is None else f"{here}:{before}"
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def test_worker_grades_as_the_function_would():
    with GradingWorker("grader_samples:compare") as worker:
        assert worker.grade(PROBLEM, "2") == Grade(True)
        assert worker.grade(PROBLEM, "3") == Grade(False)
        assert worker.grade(PROBLEM, None) == Grade(False)
        assert worker.grade(PROBLEM, "line\nbreak \x00 é") == Grade(False)
        assert worker.grade(PROBLEM, "9" * 600) == Grade(False, "too long")


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ("hang", "timeout"),
        ("spin", "timeout"),
        ("die", "crash"),
        ("raise", "error: RuntimeError"),
        ("memory", "error: MemoryError"),
        ("print", None),
    ],
)
def test_bad_answer_is_wrong_and_the_next_grade_is_right(answer, failure):
    with GradingWorker(
        "grader_samples:misbehave", seconds=0.5, megabytes=512
    ) as worker:
        assert worker.grade(PROBLEM, answer) == Grade(False, failure)
        assert worker.num_timeouts == (failure == "timeout")
        assert worker.grade(PROBLEM, "2") == Grade(True)


def test_hanging_worker_is_killed():
    worker = GradingWorker("grader_samples:misbehave", seconds=0.2)
    worker.grade(PROBLEM, "2")
    process = worker._process.process
    assert worker.grade(PROBLEM, "hang").failure == "timeout"
    assert process.returncode is not None


@pytest.mark.parametrize("grader", ["no_such_module:f", "grader_samples:none", "json"])
def test_grader_that_does_not_exist_is_an_error(grader):
    with GradingWorker(grader) as worker, pytest.raises(AnswerError, match="grader"):
        worker.grade(PROBLEM, "2")
