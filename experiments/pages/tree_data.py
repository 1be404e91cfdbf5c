"""The genealogy of one kept run as JSON values, with equal branches merged."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tsi.accuracy.diagnostics import probabilities_of
from tsi.experiments.rows.rows import round_finite
from tsi.experiments.solving.merged_tree import merged_tree

OUTCOMES = {
    "right": "The right answer was selected.",
    "lost": "A right answer was there at the end and was not selected.",
    "never": "No particle had a right answer at the end.",
    "unknown": "No particle has an answer that is known to be right.",
}


def tree_of(
    method: str,
    budget: int,
    seed: int,
    problem: int | str,
    *,
    ancestors: Int[np.ndarray, "T N"],
    step_texts: Sequence[Sequence[str]],
    step_rewards: Float[np.ndarray, "T N"] | None,
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    rewards: Float[np.ndarray, "N"],
    selected: str | None,
    grades: Mapping[str, bool],
) -> dict[str, Any]:
    """The tree of one run, with the history of the right answer.

    Args:
        method, budget, seed, problem: of the run.
        ancestors: parent of each particle at each step.
        step_texts: the steps of each final particle.
        step_rewards: after each step, or None.
        answers: of each final particle.
        log_weights: of each final particle.
        rewards: of each final particle.
        selected: answer.
        grades: whether an answer is right, of those that have been graded.
    """
    weights = probabilities_of(log_weights)
    right = [None if a is None else grades.get(a) for a in answers]
    by_answer: dict[str | None, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        by_answer[answer] = by_answer.get(answer, 0.0) + float(weight)
    return {
        "method": method,
        "budget": budget,
        "seed": seed,
        "problem": problem,
        "selected": selected,
        "outcome": _outcome(selected, answers, grades),
        "posterior": [
            {
                "answer": answer,
                "weight": round_finite(weight),
                "right": None if answer is None else grades.get(answer),
            }
            for answer, weight in sorted(by_answer.items(), key=lambda x: -x[1])
        ],
        "nodes": [
            {
                "step": node.step,
                "parent": node.parent,
                "size": len(node.slots),
                "row": node.row,
                "text": node.text,
                "reward": round_finite(node.reward),
                "survivors": len(node.finals),
                "weight": round_finite(sum(weights[n] for n in node.finals)),
                "selected": any(
                    answers[n] is not None and answers[n] == selected
                    for n in node.finals
                ),
                "right": any(right[n] for n in node.finals),
                "ends": [
                    {
                        "answer": answers[n],
                        "right": right[n],
                        "weight": round_finite(weights[n]),
                        "reward": round_finite(rewards[n]),
                    }
                    for n in node.ends
                ],
            }
            for node in merged_tree(ancestors, step_texts, step_rewards)
        ],
    }


def _outcome(
    selected: str | None, answers: Sequence[str | None], grades: Mapping[str, bool]
) -> str:
    if selected is not None and grades.get(selected):
        return OUTCOMES["right"]
    given = {answer for answer in answers if answer is not None}
    if any(grades.get(answer) for answer in given):
        return OUTCOMES["lost"]
    is_known = all(answer in grades for answer in given)
    return OUTCOMES["never" if is_known else "unknown"]
