"""`tsi regrade`: which grader rows get, corrected answers, and the way back."""

import json

import pytest
from fake_world import fake_world

from tsi.errors import ConfigurationError
from tsi.experiments.cli import main
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.scaling.plan import make_plan
from tsi.experiments.scaling.regrade_command import choose_grading, regrade_run, task_of
from tsi.experiments.scaling.results import read_rows
from tsi.experiments.scaling.scale import run_plan
from tsi.experiments.tasks import get_task
from tsi.experiments.worlds.chosen_task import choose_task

OWN = {"task": "mine", "problems_sha256": "0" * 64, "grader": "exact"}


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


def test_a_file_that_is_named_like_a_task_is_a_file(tmp_path):
    for name in ("chain", "math500", "mine"):
        file = write_problems(tmp_path / f"{name}.jsonl")
        task = choose_task(ProblemOptions(problems=file))
        assert task.name == ("mine" if name == "mine" else f"file:{name}")
        settings = {"task": task.name, "grader": task.grader, **task.settings}
        assert task_of(settings) is None
        assert choose_grading(settings, None).extract(r"\boxed{4}") == "4"
    # Rows of earlier versions have the name alone.
    assert task_of({"task": "chain", "problems_sha256": "0"}) is None
    assert task_of({"task": "chain"}) == "chain"
    assert task_of({"task": "math500", "problems_sha256": "0"}) == "math500"
    chain = choose_grading({"task": "chain"}, None)
    assert chain.extract is get_task("chain").extract


def test_a_file_of_ones_own_has_no_grader_to_go_back_to():
    with pytest.raises(ConfigurationError, match="'mine' of these rows has no grader"):
        choose_grading(OWN, "task")
    with pytest.raises(ConfigurationError, match="record no grader"):
        choose_grading({"task": "gone"}, None)


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
