"""`tsi regrade`: rows computed again from the texts that were kept.

Answers are extracted again from the texts and graded; each method's rule selects its
answer again. Fields that do not depend on answers are not changed. The rows are
replaced as a whole, and the earlier ones are kept in the same folder. The right answer
of a problem is that of its rows, so that a correction lasts; the file of particles is
not changed.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError, ResultsError
from tsi.experiments.files.places import Place
from tsi.experiments.grading.mathematics import EQUIVALENT
from tsi.experiments.plans.methods import get_method, shared_source_of
from tsi.experiments.rows.graded_run import GradedRun, Grading
from tsi.experiments.rows.particle_files import read_particles
from tsi.experiments.rows.results import no_rows
from tsi.experiments.rows.row_format import (
    SETTINGS,
    SETTINGS_ID,
    TEXTS_ID,
    Cell,
    Line,
    id_of_settings,
    parse_rows,
    settings_line,
)
from tsi.experiments.rows.row_shards import LocalShards
from tsi.models.files import describe_error, replace_file
from tsi.problem import Problem

Correct = Callable[[Problem], Problem]
"""From a problem to the same one with its right answer corrected."""


class Regraded(NamedTuple):
    """What was done.

    Attributes:
        num_rows: rows of the run.
        num_changed: rows that differ from before.
        num_correct_before, num_correct: rows whose selected answer is right.
        copies: files with the earlier rows.
    """

    num_rows: int
    num_changed: int
    num_correct_before: int
    num_correct: int
    copies: list[Path]


def regrade(
    place: Place,
    grading_of: Callable[[Mapping[str, Any]], Grading],
    correct: Correct | None = None,
) -> Regraded:
    """Compute the rows of a file again from its kept particles.

    Args:
        place: of the file of rows; it is locked against a run.
        grading_of: from the settings of a row to its extractor and grader.
        correct: corrects right answers; None if they are those of the rows.

    Raises:
        ConfigurationError: the file is on an object store, a problem cannot be
            corrected, or nothing can be graded by its right answer.
        ResultsError: there are no rows, texts are missing for some, a file is
            malformed, a run is writing it, or the system cannot write. Nothing is
            changed then.
    """
    if isinstance(place, str):
        raise ConfigurationError(
            f"{place} is on an object store; copy its folder to this machine, and "
            "regrade it there."
        )
    if not place.exists():
        raise ResultsError(f"There is no results file {place}; run `tsi scale` first.")
    shards = LocalShards(place)
    try:
        files = [(Path(place), list(parse_rows(place, shards.lines())))]
        for name, lines in shards.other_lines():
            files.append((Path(name), list(parse_rows(name, lines))))
        if not any(lines for _, lines in files):
            raise ResultsError(no_rows(place))
        fields, changes = _fields_of(
            place, [x for _, xs in files for x in xs], grading_of, correct
        )
        return _replace(files, fields, changes)
    except OSError as error:
        raise ResultsError(describe_error(error, place)) from error
    finally:
        shards.close()


def _fields_of(
    place: Path,
    lines: Sequence[Line],
    grading_of: Callable[[Mapping[str, Any]], Grading],
    correct: Correct | None,
) -> tuple[dict[Cell, dict[str, Any]], dict[str, Mapping[str, Any]]]:
    """The graded fields of all rows, and what changes of their settings."""
    settings = {line.settings_id: line.settings for line in lines}
    gradings = {key: grading_of(value) for key, value in settings.items()}
    by_run: dict[tuple[str, int, int | str], list[Line]] = {}
    for line in lines:
        method, _, seed, problem = line.cell
        is_shared = get_method(method).never_resamples
        source = shared_source_of(method) if is_shared else method
        by_run.setdefault((source, seed, problem), []).append(line)
    answers = _answers(lines, correct)
    _check_golds(place, lines, gradings, answers)
    sizes: dict[Cell, int] = {}
    fields: dict[Cell, dict[str, Any]] = {}
    for run in read_particles(place, unique=False):
        graded: dict[tuple[int, int], GradedRun] = {}
        answer = answers.get(run.key.problem)
        run = run._replace(problem=_with_answer(run.problem, answer))
        for line in by_run.get((run.key.method, run.key.seed, run.key.problem), ()):
            budget, size = line.cell.budget, run.key.num_particles
            if line.row.get(TEXTS_ID, run.texts_id) != run.texts_id:
                continue
            is_shared = get_method(line.cell.method).never_resamples
            # The run of a row is the smallest that holds its rollouts. Rows of earlier
            # versions do not name their texts: of two runs of one size, they are those
            # of the second.
            fits = size >= budget if is_shared else size == budget
            if not fits or size > sizes.get(line.cell, size):
                continue
            grading = gradings[line.settings_id]
            key = id(grading.extract), id(grading.grade)
            if key not in graded:
                graded[key] = GradedRun(run, grading)
            fields[line.cell] = graded[key].fields(line)
            if answer is not None:
                fields[line.cell]["answer"] = answer
            sizes[line.cell] = size
    missing = [line.cell for line in lines if line.cell not in fields]
    if missing:
        raise ResultsError(
            f"{len(missing)} of {len(lines)} rows of {place} have no kept texts, the "
            f"first for {missing[0]}, so the run cannot be regraded. Rows of runs with "
            "--keep none have none."
        )
    return fields, {key: grading.settings for key, grading in gradings.items()}


def _check_golds(
    place: Place,
    lines: Sequence[Line],
    gradings: Mapping[str, Grading],
    answers: Mapping[int | str, str | None],
) -> None:
    """Refuse right answers by which nothing can be graded, before any is graded.

    The file of particles is read until it has shown each problem once.

    Raises:
        ConfigurationError: names the first such problem.
        ResultsError: the file of particles is malformed.
    """
    left: dict[int | str, set[str]] = {}
    for line in lines:
        left.setdefault(line.cell.problem, set()).add(line.settings_id)
    for run in read_particles(place, unique=False):
        for settings_id in left.pop(run.key.problem, ()):
            answer = answers.get(run.key.problem)
            gradings[settings_id].check([_with_answer(run.problem, answer)])
        if not left:
            return


def _with_answer(problem: Problem, answer: str | None) -> Problem:
    """The problem with the right answer of its rows, if they have one.

    Equivalents of another answer, which was corrected, are not right any more.
    """
    if answer is None or answer == problem.answer:
        return problem
    data = {name: value for name, value in problem.data.items() if name != EQUIVALENT}
    return problem._replace(answer=answer, data=data)


def _answers(
    lines: Sequence[Line], correct: Correct | None
) -> dict[int | str, str | None]:
    """The right answer of each problem; None if rows do not contain it.

    Raises:
        ConfigurationError: a problem cannot be corrected.
    """
    problems = {
        line.cell.problem: (line.row.get("prompt"), line.row.get("answer"))
        for line in lines
    }
    if correct is None:
        return {key: answer for key, (_, answer) in problems.items()}
    return {
        key: correct(Problem(key, prompt or "", answer or "")).answer
        for key, (prompt, answer) in problems.items()
    }


def _replace(
    files: Sequence[tuple[Path, Sequence[Line]]],
    fields: Mapping[Cell, dict[str, Any]],
    changes: Mapping[str, Mapping[str, Any]],
) -> Regraded:
    """Write the rows of each file with their new fields, and keep the old file."""
    num_changed, copies = 0, []
    lines = [line for _, lines in files for line in lines]
    for path, lines_of_file in files:
        content = list(_new_lines(lines_of_file, fields, changes))
        num_changed += sum(
            any(line.row.get(k) != v for k, v in fields[line.cell].items())
            for line in lines_of_file
        )
        copies.append(_copy_aside(path))
        with replace_file(path) as place, place.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
    return Regraded(
        len(lines),
        num_changed,
        sum(line.row["correct"] for line in lines),
        sum(fields[line.cell]["correct"] for line in lines),
        copies,
    )


def _new_lines(
    lines: Sequence[Line],
    fields: Mapping[Cell, dict[str, Any]],
    changes: Mapping[str, Mapping[str, Any]],
) -> Iterator[bytes]:
    settings_ids: set[str] = set()
    for line in lines:
        row = json.loads(line.content) | fields[line.cell]
        change = changes[line.settings_id]
        settings = {
            name: value
            for name, value in {**line.settings, **change}.items()
            if value is not None or name not in change
        }
        if line.is_inline:
            row[SETTINGS] = settings
        else:
            row[SETTINGS_ID] = id_of_settings(settings)
            if row[SETTINGS_ID] not in settings_ids:
                settings_ids.add(row[SETTINGS_ID])
                yield settings_line(settings)
        yield json.dumps(row, allow_nan=False).encode() + b"\n"


def _copy_aside(path: Path) -> Path:
    """Copy a file to the first free name in its folder."""
    number = 1
    while (copy := path.with_name(f"{path.name}.before-regrade-{number}")).exists():
        number += 1
    with replace_file(copy) as place:
        shutil.copyfile(path, place)
    return copy
