"""Genealogies for the page, from the kept particles."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tsi.experiments.files.places import Place, file_system
from tsi.experiments.pages.tree_data import tree_of
from tsi.experiments.plans.methods import get_method, shared_source_of
from tsi.experiments.reports.curves import Rows
from tsi.experiments.rows.kept_particles import KeptRun, RunKey
from tsi.experiments.rows.particle_files import (
    particle_files,
    particles_place,
    read_particles,
)
from tsi.experiments.rows.row_format import TEXTS_ID
from tsi.problem_ids import id_order

MAX_PARTICLES = 16
"""The page has the runs of the largest budget up to this: larger trees are hard to read
and make the page large."""


def trees_of(rows: Rows, place: Place, max_problems: int) -> list[dict[str, Any]]:
    """The genealogies of some problems, those on which methods disagree first.

    Runs whose steps were not kept are shown as one step, with the whole text. Of a run
    that was repeated and has drawn other texts, those are shown that its rows name.

    Args:
        rows: of the run.
        place: of its file of rows.
        max_problems: problems with a genealogy; the page grows with them.

    Raises:
        ResultsError: the file of particles is malformed.
    """
    if max_problems < 1 or not has_particles(place):
        return []
    budgets = {cell.budget for cell in rows}
    small = [budget for budget in budgets if budget <= MAX_PARTICLES]
    budget = max(small, default=min(budgets))
    problems = set(_problems(rows, budget)[:max_problems])
    grades, names = _grades(rows), _names(rows, budget)
    runs: dict[RunKey, dict[str, KeptRun]] = {}
    for run in read_particles(place):
        if run.key.problem in problems and run.key.num_particles == budget:
            runs.setdefault(run.key, {})[run.texts_id] = run
    return [
        _tree(found[name], grades[key.problem])
        for key, found in runs.items()
        # Rows of earlier versions name none: theirs is the last, as in `tsi regrade`.
        for name in [x for x in names.get(key, [*found][-1:]) if x in found][:1]
    ]


def has_particles(place: Place) -> bool:
    """Whether there is a file of particles for a file of rows."""
    if isinstance(place, str):
        system, root = file_system(str(particles_place(place)))
        return bool(system.exists(root))
    return bool(particle_files(place))


def _problems(rows: Rows, budget: int) -> list[int | str]:
    """Problems on which methods disagree at a budget, and then the others."""
    outcomes: dict[int | str, set[bool]] = {}
    for cell, row in rows.items():
        seen = outcomes.setdefault(cell.problem, set())
        if cell.budget == budget:
            seen.add(bool(row.get("correct")))
    return sorted(outcomes, key=lambda id: (len(outcomes[id]) < 2, id_order(id)))


def _names(rows: Rows, budget: int) -> dict[RunKey, list[str]]:
    """The texts that rows name, by run; those of a row of the run's own method first.

    Rows of methods that share a run may name different texts, if it was repeated.
    """
    names: dict[RunKey, list[str]] = {}
    for cell, row in rows.items():
        if cell.budget != budget or TEXTS_ID not in row:
            continue
        is_shared = get_method(cell.method).never_resamples
        source = shared_source_of(cell.method) if is_shared else cell.method
        key = RunKey(source, budget, cell.seed, cell.problem)
        named = names.setdefault(key, [])
        named.insert(0 if cell.method == source else len(named), row[TEXTS_ID])
    return names


def _grades(rows: Rows) -> dict[int | str, dict[str, bool]]:
    """Of each problem the answers that were graded, as all methods selected them."""
    grades: dict[int | str, dict[str, bool]] = {}
    for cell, row in rows.items():
        grades_of_problem = grades.setdefault(cell.problem, {})
        grades_of_problem.setdefault(str(row.get("answer")), True)
        if row.get("selected") is not None:
            grades_of_problem[row["selected"]] = bool(row.get("correct"))
    return grades


def _tree(run: KeptRun, grades: Mapping[str, bool]) -> dict[str, Any]:
    particles, steps = run.particles, run.steps
    size = len(particles.texts)
    if steps is None or steps.step_texts is None:
        ancestors, rewards = np.arange(size)[None], None
        step_texts = [[text] for text in particles.texts]
    else:
        ancestors, rewards = steps.ancestors, steps.rewards
        step_texts = steps.step_texts
    return tree_of(
        run.key.method,
        run.key.num_particles,
        run.key.seed,
        run.key.problem,
        ancestors=ancestors,
        step_texts=step_texts,
        step_rewards=rewards,
        answers=particles.answers,
        log_weights=particles.log_weights,
        rewards=particles.rewards,
        selected=run.selected,
        grades=grades,
    )
