"""`tsi regrade`: which grader rows get, corrected answers, and the way back."""

import json

import pytest
from fake_world import fake_world

from tsi.errors import ConfigurationError
from tsi.experiments.cli import main
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.rows.graded_run import GradedRun
from tsi.experiments.rows.regrade_command import (
    GraderPools,
    choose_grading,
    correction,
    regrade_run,
    task_of,
)
from tsi.experiments.rows.results import read_rows
from tsi.experiments.scaling.scale import run_plan
from tsi.experiments.tasks import get_task
from tsi.experiments.tasks.problem_file import Columns
from tsi.experiments.worlds.chosen_task import choose_task
from tsi.problem import Problem

OWN = {"task": "mine", "problems_sha256": "0" * 64, "grader": "exact"}


@pytest.fixture
def pools():
    with GraderPools() as pools:
        yield pools


def run_in(folder, settings=OWN):
    world = fake_world(6, settings=settings)
    plan = make_plan(("self_consistency", "smc"), (2, 4), 2)
    run_plan(plan, world, folder / "rows.jsonl", progress=False)
    return folder / "rows.jsonl"


def write_problems(path, **changes):
    problems = [
        {"id": i, "question": f"{i}+1=", "answer": str(101 + i)} for i in range(6)
    ]
    problems[2] |= changes
    path.write_text("\n".join(map(json.dumps, problems)))
    return path


def test_a_corrected_answer_reaches_the_rows_and_stays(tmp_path, capsys):
    path = run_in(tmp_path)
    before = read_rows(path)
    wrong = next(
        row["selected"]
        for cell, row in before.items()
        if cell.problem == 2 and row["selected"] not in (None, "103")
    )
    file = write_problems(tmp_path / "mine.jsonl", answer=wrong)
    assert main(["regrade", str(tmp_path), "--problems", str(file)]) == 0
    rows = read_rows(path)
    for cell, row in rows.items():
        gold = wrong if cell.problem == 2 else str(101 + cell.problem)
        assert row["answer"] == gold
        assert row["correct"] == (row["selected"] == gold)
        assert row["settings"]["problems_sha256"] != OWN["problems_sha256"]
        assert row["num_right"] >= row["correct"]
    assert any(row["correct"] for cell, row in rows.items() if cell.problem == 2)
    # The kept particles have the earlier answer, and the rows prevail.
    content = path.read_bytes()
    assert main(["regrade", str(tmp_path)]) == 0
    assert path.read_bytes() == content
    assert "0 of 48 rows changed" in capsys.readouterr().out


def test_a_grader_that_cannot_read_the_right_answers_changes_nothing(
    tmp_path, monkeypatch
):
    path = run_in(tmp_path)
    content = path.read_bytes()
    monkeypatch.setattr(GradedRun, "__init__", None)
    with pytest.raises(ConfigurationError, match="gold answer '101' of problem 0 is n"):
        regrade_run(str(tmp_path), "choice")
    file = write_problems(tmp_path / "mine.jsonl", answer="many")
    with pytest.raises(ConfigurationError, match="gold answer 'many' of problem 2 is"):
        regrade_run(str(tmp_path), "numeric", file)
    assert path.read_bytes() == content


def test_grades_of_one_regrade_are_not_those_of_another(tmp_path):
    path = run_in(tmp_path)
    regrade_run(str(tmp_path), "exact")
    wrong = next(
        row["selected"]
        for cell, row in read_rows(path).items()
        if cell.problem == 2 and row["selected"] not in (None, "103")
    )
    file = write_problems(tmp_path / "mine.jsonl", answer=wrong)
    regrade_run(str(tmp_path), "exact", file)
    corrected = [row for cell, row in read_rows(path).items() if cell.problem == 2]
    assert [row["correct"] for row in corrected] == [
        row["selected"] == wrong for row in corrected
    ]


@pytest.mark.parametrize("choices", [[], ["x"] * 30, [{"text": "x"}]])
def test_a_column_of_choices_is_data_to_other_graders(tmp_path, choices):
    path = run_in(tmp_path)
    file = write_problems(tmp_path / "mine.jsonl", answer="7", choices=choices)
    regrade_run(str(tmp_path), problems=file)
    answers = {row["answer"] for cell, row in read_rows(path).items() if cell[3] == 2}
    assert answers == {"7"}


def test_choices_stand_below_the_questions_of_a_run_with_the_grader_choice(tmp_path):
    file = write_problems(tmp_path / "mine.jsonl", answer="B", choices=["one", "two"])
    correct = correction(file, Columns())
    asked = Problem("2", "2+1=\n\n(A) one\n(B) two", "A")
    assert correct(asked).answer == "B"
    write_problems(file, answer="B", choices=["one", "three"])
    with pytest.raises(
        ConfigurationError, match=r"The question of problem '2' in .* is"
    ):
        correction(file, Columns())(asked)
    write_problems(file, answer="B", choices=[])
    with pytest.raises(ConfigurationError, match="column 'choices': write a"):
        correction(file, Columns())(asked)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"question": "2+2="}, "The question of problem 2 in .* is another"),
        ({"id": 77}, "has no problem 2, of which the run has rows"),
        ({"answer": ""}, "line 3, column 'answer', is empty"),
    ],
)
def test_a_file_of_other_problems_changes_nothing(tmp_path, changes, sentence):
    path = run_in(tmp_path)
    content = path.read_bytes()
    file = write_problems(tmp_path / "mine.jsonl", **changes)
    with pytest.raises(ConfigurationError, match=sentence):
        regrade_run(str(tmp_path), problems=file)
    assert path.read_bytes() == content
    assert not list(tmp_path.glob("*.before-regrade-*"))


def test_a_generated_task_has_no_file_and_goes_back_to_its_own_grader(tmp_path):
    path = run_in(tmp_path, {"task": "chain", "temperature": 1.0})
    file = write_problems(tmp_path / "mine.jsonl")
    with pytest.raises(ConfigurationError, match="'chain', which has no file"):
        regrade_run(str(tmp_path), problems=file)
    regrade_run(str(tmp_path))
    own = path.read_bytes()
    regrade_run(str(tmp_path), "numeric")
    rows = read_rows(path)
    assert {row["settings"]["grader"] for row in rows.values()} == {"numeric"}
    regrade_run(str(tmp_path), "task")
    assert path.read_bytes() == own
    assert all("grader" not in row["settings"] for row in read_rows(path).values())


def test_a_file_that_is_named_like_a_task_is_a_file(tmp_path, pools):
    for name in ("chain", "math500", "mine"):
        file = write_problems(tmp_path / f"{name}.jsonl")
        task = choose_task(ProblemOptions(problems=file))
        assert task.name == ("mine" if name == "mine" else f"file:{name}")
        settings = {"task": task.name, "grader": task.grader, **task.settings}
        assert task_of(settings) is None
        assert choose_grading(settings, None, pools).extract(r"\boxed{4}") == "4"
    # Rows of earlier versions have only the name.
    assert task_of({"task": "chain", "problems_sha256": "0"}) is None
    assert task_of({"task": "chain"}) == "chain"
    assert task_of({"task": "math500", "problems_sha256": "0"}) == "math500"
    chain = choose_grading({"task": "chain"}, None, pools)
    assert chain.extract is get_task("chain").extract


def test_a_file_of_ones_own_has_no_grader_to_go_back_to(pools):
    with pytest.raises(ConfigurationError, match="'mine' of these rows has no"):
        choose_grading(OWN, "task", pools)
    with pytest.raises(ConfigurationError, match="record no grader"):
        choose_grading({"task": "gone"}, None, pools)


def test_choices_are_texts(tmp_path):
    def options(choices):
        file = tmp_path / "choices.jsonl"
        row = {"question": "Which?", "answer": "A", "choices": choices}
        file.write_text(json.dumps(row))
        return ProblemOptions(problems=file, grader="choice")

    (problem,) = choose_task(options(["one", 2])).problems("test", None, 0)
    assert problem.prompt == "Which?\n\n(A) one\n(B) 2"
    with pytest.raises(ConfigurationError, match="choice B is a JSON dict"):
        choose_task(options(["one", {"text": "two"}]))
