"""Runs that do not repeat their samples, as over a server without seeds."""

import pytest
from fake_world import FakeEngine, fake_world, read_answer

from tsi.errors import ResultsError
from tsi.experiments.grading.grade import Grade
from tsi.experiments.pages.kept_trees import trees_of
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.rows.graded_run import Grading
from tsi.experiments.rows.particle_files import read_particles
from tsi.experiments.rows.regrade import regrade
from tsi.experiments.rows.results import read_rows
from tsi.experiments.scaling.scale import run_plan

METHOD = "weighted_best_of_n"
GRADED = ("selected", "correct", "expected_correct", "num_right", "num_answered")


class RestlessEngine(FakeEngine):
    """Draws other samples each time, whatever the key."""

    def result(self, sampler, name, seed, *others):
        return super().result(sampler, name, 100 * len(self.calls) + seed, *others)


def grading(settings):
    def grade(pairs):
        return [Grade(answer == problem.answer) for problem, answer in pairs]

    return Grading(read_answer, grade)


@pytest.fixture
def path(tmp_path):
    """A pool that was drawn for one method, and again for another one."""
    path, world = tmp_path / "rows.jsonl", fake_world(6)
    world = world._replace(engine=RestlessEngine())
    for methods in (["self_consistency"], ["self_consistency", "best_of_n", "smc"]):
        run_plan(make_plan(methods, [2, 8], 2), world, path, progress=False)
    return path


def test_each_row_names_the_texts_behind_it(path):
    runs = list(read_particles(path))
    names = {(run.key, run.texts_id) for run in runs}
    assert len(names) == len(runs) > len({run.key for run in runs})
    by_name = {run.texts_id: run for run in runs}
    for cell, row in read_rows(path).items():
        run = by_name[row["texts_id"]]
        size = cell.budget if cell.method != "smc" else None
        answers = run.particles.answers[:size]
        assert sum(answer is not None for answer in answers) == row["num_answered"]


def test_a_regrade_by_the_same_grader_changes_no_row(path):
    before = read_rows(path)
    assert regrade(path, grading).num_changed == 0
    after = read_rows(path)
    for cell, row in before.items():
        assert {name: after[cell][name] for name in GRADED} == {
            name: row[name] for name in GRADED
        }


def test_a_page_shows_one_tree_of_a_run(path):
    trees = trees_of(read_rows(path), path, 6)
    keys = [(tree["method"], tree["seed"], tree["problem"]) for tree in trees]
    assert len(set(keys)) == len(keys) > 0


@pytest.mark.parametrize("kept", [0, 1])
def test_a_page_shows_the_texts_that_rows_name(tmp_path, kept):
    path, world = tmp_path / "rows.jsonl", fake_world(6)
    world, plan = world._replace(engine=RestlessEngine()), make_plan([METHOD], [2], 2)
    drawn = []
    for _ in range(2):
        # The rows of one of the two runs are lost.
        path.unlink(missing_ok=True)
        run_plan(plan, world, path, progress=False)
        drawn.append(read_rows(path))
    first, second = ([row["selected"] for row in rows.values()] for rows in drawn)
    assert first != second
    trees = trees_of(drawn[kept], path, 6)
    assert len(trees) == 12
    for tree in trees:
        row = drawn[kept][Cell(METHOD, 2, tree["seed"], tree["problem"])]
        assert tree["selected"] == row["selected"]
    unnamed = {
        cell: {name: value for name, value in row.items() if name != "texts_id"}
        for cell, row in drawn[1].items()
    }
    assert trees_of(unnamed, path, 6) == trees_of(drawn[1], path, 6)


def test_a_page_shows_the_pool_of_the_method_that_it_names(path):
    """The pool is drawn for two methods, and then again for a third one."""
    world = fake_world(6)._replace(engine=RestlessEngine())
    world.engine.calls = [None] * 99
    methods = ["self_consistency", "best_of_n", "smc", "weighted_best_of_n"]
    run_plan(make_plan(methods, [2, 8], 2), world, path, progress=False)
    rows = read_rows(path)
    trees = [x for x in trees_of(rows, path, 6) if x["method"] == "weighted_best_of_n"]
    assert len(trees) == 12
    for tree in trees:
        row = rows[Cell("weighted_best_of_n", 8, tree["seed"], tree["problem"])]
        assert tree["selected"] == row["selected"]


def test_rows_whose_pool_was_drawn_again_and_not_kept_are_not_regraded(tmp_path):
    path, world = tmp_path / "rows.jsonl", fake_world(6)
    world = world._replace(engine=RestlessEngine())
    for method, keep in (("weighted_best_of_n", "solutions"), ("best_of_n", "none")):
        plan = make_plan([method], [8], 1)
        run_plan(plan, world, path, progress=False, keep=keep)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=r"6 of 12 rows of .* have no kept texts"):
        regrade(path, grading)
    assert path.read_bytes() == before
