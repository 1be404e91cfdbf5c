"""How far graders of mathematics agree, on CHAMP's answers in prose.

CHAMP (Mao, Kim and Zhou 2024, arXiv 2401.06961; package ``champ-dataset``, MIT, extra
``champ``) has 270 competition problems, and 19,440 solutions of language models,
each with a summary in one sentence. Each summary is graded against the gold answer

- by canonical forms alone (:func:`tsi.results.canonical.equivalent`),
- by the grader "math", and
- by math-verify alone, which reads the sentence and the gold answer by its own rules.

Then all gold answers are graded against each other. Cost: about ten minutes on two
cores. A run that is stopped goes on where it was.

    python -m tsi.experiments.proofs.grading_agreement docs/results/grading
"""

import functools
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from tsi.experiments.grading.grader import Grader, get_grader
from tsi.experiments.grading.pool import GradingPool
from tsi.experiments.proofs.grading_page import KINDS, page
from tsi.experiments.tasks.champ import gold_forms
from tsi.models.files import check_regular
from tsi.problem import Problem
from tsi.results.answers import extract_answer
from tsi.results.canonical import equivalent

ALONE = Grader(
    "math-verify alone", "tsi.experiments.proofs.grading_agreement:math_verify_alone"
)
CHUNK, NUM_LABELS, SEED = 600, 200, 14


@functools.cache
def problems() -> dict[str, Any]:
    """The problems of CHAMP by their ids."""
    text = files("champ_dataset").joinpath("dataset_files/v0.json").read_text()
    return json.loads(text)["problems"]


def summaries() -> Iterator[tuple[str, str, str]]:
    """Problem, conversation and text of each summary that is not empty."""
    for name, problem in problems().items():
        for title, conversation in problem["conversations"].items():
            text = conversation["messages"][-1]["text"]
            if text:
                yield name, title, text


def math_verify_alone(problem: Problem, text: str) -> bool:
    """Whether math-verify finds one of the gold forms in a text."""
    import math_verify

    given = math_verify.parse(text, parsing_timeout=None)
    return any(
        math_verify.verify(
            math_verify.parse(f"${form}$", parsing_timeout=None),
            given,
            timeout_seconds=None,
        )
        for form in problem.data["forms"]
    )


def grade_summaries(path: Path) -> list[dict[str, Any]]:
    """The grades of every summary, appended to a file as they are found."""
    check_regular(path)
    graded_rows = [json.loads(line) for line in path.open()] if path.exists() else []
    rows = list(summaries())
    with GradingPool(get_grader("math")) as math_pool, GradingPool(ALONE) as alone_pool:
        for start in range(len(graded_rows), len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            new_rows = _grade(part, math_pool, alone_pool)
            with path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in new_rows)
            graded_rows += new_rows
            print(f"{len(graded_rows)} of {len(rows)} summaries", file=sys.stderr)
        for pool in (math_pool, alone_pool):
            print(pool.summary(), file=sys.stderr)
    return graded_rows


def _grade(
    part: Sequence[tuple[str, str, str]],
    math_pool: GradingPool,
    alone_pool: GradingPool,
) -> list[dict[str, Any]]:
    forms = {name: gold_forms(problems()[name]["_raw_answer"]) for name, _, _ in part}
    answers = [extract_answer(text) for _, _, text in part]
    pairs = [
        (Problem(f"{name} {i}", "", form), answer)
        for (name, _, _), answer in zip(part, answers, strict=True)
        for i, form in enumerate(forms[name])
    ]
    grades = iter(math_pool.grade(pairs))
    by_math = [[next(grades) for _ in forms[name]] for name, _, _ in part]
    by_alone = alone_pool.grade(
        [
            (Problem(name, "", forms[name][0], {"forms": forms[name]}), text)
            for name, _, text in part
        ]
    )
    return [
        {
            "problem": name,
            "solution": title,
            "gold": forms[name],
            "summary": text,
            "answer": answer,
            "canonical": any(equivalent(form, answer) for form in forms[name]),
            "math": any(grade.correct for grade in math_grades),
            "alone": alone_grade.correct,
            "failure": next(
                (g.failure for g in math_grades if g.failure), alone_grade.failure
            ),
        }
        for (name, title, text), answer, math_grades, alone_grade in zip(
            part, answers, by_math, by_alone, strict=True
        )
    ]


def sample(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Disagreements for manual labels: different answers, equally many of each kind."""
    kinds: dict[str, dict[tuple, dict[str, Any]]] = {name: {} for name in KINDS}
    for row in rows:
        key: tuple[Any, ...] = row["problem"], row["answer"], row["alone"]
        for name, (left, right) in KINDS.items():
            if row[left] and not row[right]:
                kinds[name].setdefault(key, row)
    draw = random.Random(SEED)
    selection: list[dict[str, Any]] = []
    for number, rows_of_kind in enumerate(sorted(kinds.values(), key=len)):
        share = (NUM_LABELS - len(selection)) // (len(kinds) - number)
        rest = [row for row in rows_of_kind.values() if row not in selection]
        selection += draw.sample(rest, min(share, len(rest)))
    return selection


def compare_golds() -> tuple[Counter[tuple[bool, bool]], list[tuple[str, str]]]:
    """Grade each gold answer against each other: counts, and where the two differ."""
    golds = sorted({gold_forms(p["_raw_answer"])[0] for p in problems().values()})
    pairs = list(itertools.permutations(golds, 2))
    with GradingPool(get_grader("math")) as pool:
        grades = pool.grade([(Problem(gold, "", gold), other) for gold, other in pairs])
    counts: Counter[tuple[bool, bool]] = Counter()
    differ = []
    for pair, grade in zip(pairs, grades, strict=True):
        verdicts = equivalent(*pair), grade.correct
        counts[verdicts] += 1
        if verdicts[0] != verdicts[1]:
            differ.append(pair)
    return counts, differ


def main(folder: Path) -> None:
    """Grade, sample the answers to label, and write the page once they have labels.

    Labels are in ``labels.jsonl``, "right", "wrong" or "unclear" in the field
    ``label``: whether the sentence gives the gold answer, whatever the graders found.
    """
    rows = grade_summaries(folder / "grades.jsonl")
    labels_path = folder / "labels.jsonl"
    check_regular(labels_path)
    if not labels_path.exists():
        selection = [{**row, "label": None} for row in sample(rows)]
        labels_path.write_text("".join(json.dumps(row) + "\n" for row in selection))
        print(f"Fill in the field label of {labels_path}, and run this again.")
        return
    labels = [json.loads(line) for line in labels_path.open()]
    folder.with_suffix(".md").write_text(page(rows, labels, compare_golds()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
