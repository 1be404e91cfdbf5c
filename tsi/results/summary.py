"""A result in a few lines, as a notebook shows it."""

import math
from typing import Any

import numpy as np

MAX_ANSWERS = 4
MAX_LENGTH = 24


def summary(result: Any) -> str:
    """Answers with errors, evidence, effective size, cost and notes of a result.

    Args:
        result: a `tsi.results.result.Result`.

    Returns:
        A handful of lines of at most 88 characters, but for the notes.
    """
    size, num_steps = len(result.texts), len(result.steps.ancestors)
    selected = result.selected
    chosen = "no answer" if selected is None else f"answer {_short(selected)}"
    return "\n".join(
        [
            f"Result of problem {result.problem_id!r}: {chosen}",
            f"  particles     {size} with {result.particles.num_distinct} distinct "
            f"texts, {num_steps} steps",
            f"  {'posterior' if result.estimand.has_target else 'weights':13} "
            f"{_answers(result)}",
            f"  log evidence  {_evidence(result)}",
            f"  ESS           {_sizes(result.steps.ess)}",
            f"  cost          {_cost(result.ledger)}",
            *(f"  note          {note}" for note in result.notes),
        ]
    )


def _answers(result: Any) -> str:
    errors = result.posterior.errors
    pairs = list(result.answer_posterior.items())
    shown = [
        f"{_short(answer)} {_with_error(share, errors.get(answer, math.nan))}"
        for answer, share in pairs[:MAX_ANSWERS]
    ]
    rest = len(pairs) - len(shown)
    shown += [f"{rest} more"] if rest else []
    return ", ".join(shown) or "no particle has an answer"


def _evidence(result: Any) -> str:
    if not result.estimand.has_target:
        return result.estimand.evidence
    return _with_error(result.log_evidence, result.evidence.standard_error)


def _sizes(ess: Any) -> str:
    known = ess[np.isfinite(ess)]
    if not known.size:
        return "none, for the particles are not a weighted sample"
    return f"{known[-1]:.1f} at the end, {known.min():.1f} at the least"


def _cost(ledger: Any) -> str:
    seconds = "" if math.isnan(ledger.seconds) else f", {ledger.seconds:.2f} s"
    return (
        f"{ledger.generated_tokens} tokens, {ledger.reward_tokens} reward tokens, "
        f"{ledger.flops:.3g} FLOPs{seconds}"
    )


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"


def _short(answer: str) -> str:
    short = answer if len(answer) <= MAX_LENGTH else answer[: MAX_LENGTH - 1] + "…"
    return repr(short)
