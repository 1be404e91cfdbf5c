"""chain_sum: the dataset's answers are what the extractor and the grader agree on."""

import pytest

from tsi.experiments.tasks import chain_sum
from tsi.experiments.tasks.equations import value_of, verdict


def test_answers_are_the_values_of_the_expressions():
    pytest.importorskip("reasoning_gym")
    problems = chain_sum.dataset_problems(30, seed=0)
    assert len({p.prompt for p in problems}) > 20
    for problem in problems:
        assert value_of(problem.prompt) == int(problem.answer)
        assert chain_sum.correct(
            problem, chain_sum.extract(f"Answer: {problem.answer}")
        )
        assert not chain_sum.correct(problem, str(int(problem.answer) + 1))


def test_the_worked_examples_are_right():
    for question, worked in chain_sum.EXAMPLES:
        assert verdict(worked) == "right"
        assert chain_sum.extract(worked) == str(value_of(question))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 9 = 11\nAnswer: 11", "11"),
        ("Answer: -5\n\nIn short, 3.", "-5"),
        ("3 - 8 = -5", "-5"),
        ("Answer: −5", "-5"),
        ("no idea", None),
        ("Answer: " + "9" * 50, None),
    ],
)
def test_extraction(text, answer):
    assert chain_sum.extract(text) == answer
