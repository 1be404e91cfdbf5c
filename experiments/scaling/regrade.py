"""`tsi regrade`: rows computed again from the texts that were kept.

Answers are extracted anew from the texts and graded; each method's rule selects its
answer again. What does not depend on answers stays as it is. The rows are replaced as a
whole, and the earlier ones are kept beside them.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tsi.errors import ConfigurationError, ResultsError
from tsi.experiments.grading.grade import Grade
from tsi.experiments.places import Place
from tsi.experiments.scaling.kept_particles import KeptRun
from tsi.experiments.scaling.methods import SHARED_SOURCE, get_method
from tsi.experiments.scaling.particle_files import read_particles
from tsi.experiments.scaling.pool_subsets import subset_correctness
from tsi.experiments.scaling.row_format import (
    SETTINGS,
    SETTINGS_ID,
    Cell,
    Line,
    canonical_json,
    id_of_settings,
    parse_rows,
    settings_line,
)
from tsi.experiments.scaling.row_shards import LocalShards
from tsi.experiments.scaling.rows import Pair, graded_fields
from tsi.experiments.scaling.shared_rollouts import first_log_weights
from tsi.models.files import describe_error, replace_file
from tsi.results.estimand import Estimand, estimand_of
from tsi.results.selection import answer_posterior, select, unanswered_weight
from tsi.weights import weight_dtype


class Grading(NamedTuple):
    """How texts become graded answers.

    Attributes:
        extract: the canonical answer of a text, or None.
        grade: the grade of each answer to a problem.
        name: of the grader, if rows are to record it; None if it is their own.
    """

    extract: Callable[[str], str | None]
    grade: Callable[[Sequence[Pair]], Sequence[Grade]]
    name: str | None = None


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
    place: Place, grading_of: Callable[[Mapping[str, Any]], Grading]
) -> Regraded:
    """Compute the rows of a file again from the particles beside it.

    Args:
        place: of the file of rows; it is locked against a run.
        grading_of: from the settings of a row to its extractor and grader.

    Raises:
        ConfigurationError: the file is on an object store.
        ResultsError: texts are missing for some rows, a file is malformed, a run is
            writing it, or the system cannot write. Nothing is changed then.
    """
    if isinstance(place, str):
        raise ConfigurationError(
            f"{place} is on an object store; copy its folder to this machine, and "
            "regrade it there."
        )
    if not place.is_file():
        raise ResultsError(f"There is no results file {place}; run `tsi scale` first.")
    shards = LocalShards(place)
    try:
        files = [(Path(place), list(parse_rows(place, shards.lines())))]
        for name, lines in shards.other_lines():
            files.append((Path(name), list(parse_rows(name, lines))))
        fields, names = _fields_of(
            place, [x for _, xs in files for x in xs], grading_of
        )
        return _replace(files, fields, names)
    except OSError as error:
        raise ResultsError(describe_error(error, place)) from error
    finally:
        shards.close()


def _fields_of(
    place: Path,
    lines: Sequence[Line],
    grading_of: Callable[[Mapping[str, Any]], Grading],
) -> tuple[dict[Cell, dict[str, Any]], dict[str, str]]:
    """The graded fields of all rows, and the graders that their settings get."""
    gradings = {line.settings_id: grading_of(line.settings) for line in lines}
    by_run: dict[tuple[str, int, int | str], list[Line]] = {}
    for line in lines:
        method, _, seed, problem = line.cell
        source = SHARED_SOURCE if get_method(method).independent else method
        by_run.setdefault((source, seed, problem), []).append(line)
    sizes: dict[Cell, int] = {}
    fields: dict[Cell, dict[str, Any]] = {}
    for run in read_particles(place, unique=False):
        graded: dict[tuple[int, int], _GradedRun] = {}
        for line in by_run.get((run.key.method, run.key.seed, run.key.problem), ()):
            budget, size = line.cell.budget, run.key.num_particles
            is_shared = get_method(line.cell.method).independent
            # The run of a row is the smallest that holds its rollouts; of two runs of
            # one size, the rows are those of the second.
            fits = size >= budget if is_shared else size == budget
            if not fits or size > sizes.get(line.cell, size):
                continue
            grading = gradings[line.settings_id]
            key = id(grading.extract), id(grading.grade)
            if key not in graded:
                graded[key] = _GradedRun(run, grading)
            fields[line.cell] = graded[key].fields(line)
            sizes[line.cell] = size
    missing = [line.cell for line in lines if line.cell not in fields]
    if missing:
        raise ResultsError(
            f"{len(missing)} of {len(lines)} rows of {place} have no kept texts, the "
            f"first for {missing[0]}, so the run cannot be regraded. Rows of runs with "
            "--keep none have none."
        )
    names = {key: g.name for key, g in gradings.items() if g.name is not None}
    return fields, names


class _GradedRun:
    """The answers of a kept run, extracted and graded once.

    Args:
        run: with the texts.
        grading: extracts and grades.
    """

    def __init__(self, run: KeptRun, grading: Grading) -> None:
        self._run = run
        texts = zip(run.particles.texts, run.complete, strict=True)
        self._answers = [grading.extract(text) if ok else None for text, ok in texts]
        given_answers = list(dict.fromkeys(x for x in self._answers if x is not None))
        grades = grading.grade([(run.problem, answer) for answer in given_answers])
        self._grades = dict(zip(given_answers, grades, strict=True))

    def fields(self, line: Line) -> dict[str, Any]:
        """The graded fields of a row that was read off this run."""
        cell, run, answers = line.cell, self._run, self._answers
        expected = None
        method = get_method(cell.method)
        settings = canonical_json(line.settings.get("sampler", {}))
        estimand = _estimand(cell.method, settings)
        if not (method.independent or method.deterministic):
            if answers == run.particles.answers:
                # As the engine computed it, before weights were rounded.
                posterior = answer_posterior(answers, run.particles.log_weights)
                if run.selected is not None:
                    posterior[run.selected] = run.probability
                return graded_fields(
                    answers, run.selected, posterior, run.unanswered, self._grades
                )
            log_weights = run.particles.log_weights
        else:
            expected = self._expected(estimand, cell.budget)
            answers = answers[: cell.budget]
            log_weights, _ = first_log_weights(
                run.particles,
                run.log_evidence,
                cell.budget,
                reads_reward=estimand.reads_reward,
            )
        rewards = run.particles.rewards[: len(answers)]
        selected = select(estimand.select, answers, log_weights, rewards)
        return graded_fields(
            answers,
            selected,
            answer_posterior(answers, log_weights),
            unanswered_weight(answers, np.asarray(log_weights, weight_dtype())),
            self._grades,
            expected,
        )

    def _expected(self, estimand: Estimand, budget: int) -> float:
        """Expected correctness over all subsets of that size of the pool."""
        run = self._run
        (mean,), _ = subset_correctness(
            run.particles._replace(answers=self._answers),
            run.log_evidence,
            estimand,
            {answer: grade.correct for answer, grade in self._grades.items()},
            [budget],
        )
        return float(mean)


@functools.cache
def _estimand(name: str, settings: str) -> Estimand:
    """The estimand of a method with the settings that a row records."""
    method = get_method(name)
    sampler = method.constructor(**json.loads(settings))
    return estimand_of(sampler, reads_reward=method.reads_reward)


def _replace(
    files: Sequence[tuple[Path, Sequence[Line]]],
    fields: Mapping[Cell, dict[str, Any]],
    names: Mapping[str, str],
) -> Regraded:
    """Write the rows of each file with their new fields, and keep the old file."""
    num_changed, copies = 0, []
    lines = [line for _, lines in files for line in lines]
    for path, own in files:
        content = list(_new_lines(own, fields, names))
        num_changed += sum(
            any(line.row.get(k) != v for k, v in fields[line.cell].items())
            for line in own
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
    names: Mapping[str, str],
) -> Iterator[bytes]:
    known: set[str] = set()
    for line in lines:
        row = json.loads(line.content) | fields[line.cell]
        settings = dict(line.settings)
        if line.settings_id in names:
            settings["grader"] = names[line.settings_id]
        if line.is_inline:
            row[SETTINGS] = settings
        else:
            row[SETTINGS_ID] = id_of_settings(settings)
            if row[SETTINGS_ID] not in known:
                known.add(row[SETTINGS_ID])
                yield settings_line(settings)
        yield json.dumps(row, allow_nan=False).encode() + b"\n"


def _copy_aside(path: Path) -> Path:
    """Copy a file to the first free name beside it."""
    number = 1
    while (copy := path.with_name(f"{path.name}.before-regrade-{number}")).exists():
        number += 1
    with replace_file(copy) as place:
        shutil.copyfile(path, place)
    return copy
