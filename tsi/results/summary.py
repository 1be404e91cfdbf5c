"""The summary of a result in a few lines, for notebooks."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

WIDTH = 88
MAX_LENGTH = 24
"""Most characters of an answer or an id in the summary."""


def summary(result: Any) -> str:
    """Answers with errors, evidence, effective size, cost and notes of a result.

    Args:
        result: a `tsi.results.result.Result`.

    Returns:
        Six lines of at most 88 characters, and a line for each note.
    """
    particles, selected = result.particles, result.selected
    answer = "no answer" if selected is None else f"answer {_shorten(selected)}"
    lines = {
        "particles": f"{len(result.texts)} ({particles.num_distinct} distinct texts), "
        f"{len(result.steps.ancestors)} steps",
        "posterior" if result.estimand.has_target else "weights": _answers(result),
        "log evidence": _evidence(result),
        "ESS": _sizes(result.steps.ess),
        "cost": _cost(result.ledger),
    }
    return "\n".join(
        [
            f"Result of problem {_shorten(result.problem_id)}: {answer}",
            *(f"  {name:12}  {text}" for name, text in lines.items()),
            *(f"  Note: {note}" for note in result.notes),
        ]
    )


def _answers(result: Any) -> str:
    """As many answers as fit into a line, most probable first."""
    errors, room = result.posterior.errors, WIDTH - 16 - len(", 1000 more")
    texts: list[str] = []
    for answer, share in result.answer_posterior.items():
        text = f"{_shorten(answer)} {_estimate(share, errors.get(answer, math.nan))}"
        room -= len(text) + 2
        if room < 0:
            break
        texts.append(text)
    more = len(result.answer_posterior) - len(texts)
    return ", ".join(texts + [f"{more} more"] * (more > 0)) or "no answers"


def _evidence(result: Any) -> str:
    estimand = result.estimand
    if not estimand.has_target:
        return estimand.evidence
    count = len(estimand.auxiliary_temperatures)
    others = f", times those of {count} other temperatures" if count else ""
    return _estimate(result.log_evidence, result.evidence.standard_error) + others


def _sizes(ess: Float[np.ndarray, "T"]) -> str:
    finite_ess = ess[np.isfinite(ess)]
    if not finite_ess.size:
        return "none, because the particles are not a weighted sample"
    return f"{finite_ess[-1]:.1f} at the end, smallest {finite_ess.min():.1f}"


def _cost(ledger: Any) -> str:
    seconds = "" if math.isnan(ledger.seconds) else f", {ledger.seconds:.2f} s"
    return (
        f"{ledger.generated_tokens} tokens, {ledger.reward_tokens} reward tokens, "
        f"{ledger.flops:.3g} FLOPs{seconds}"
    )


def _estimate(value: float, error: float) -> str:
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"


def _shorten(name: int | str) -> str:
    text = repr(name)
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 2] + "…" + text[-1]
