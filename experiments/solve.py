"""One problem in the open: effective sample sizes, genealogy, answers."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tsi.result import Result


class Branch(NamedTuple):
    """A stored prefix with surviving descendants.

    Args:
        particle: its slot in its generation.
        step: its generation, from 0.
        survivors: final particles that descend from it.
        children: prefixes that extend it, those of most survivors first.
    """

    particle: int
    step: int
    survivors: tuple[int, ...]
    children: tuple["Branch", ...]


def lineages(ancestors: Int[np.ndarray, "T N"]) -> Int[np.ndarray, "T N"]:
    """Slot of each final particle's forebear in each generation."""
    num_steps, num_particles = ancestors.shape
    slots = np.empty_like(ancestors)
    current = np.arange(num_particles)
    for t in range(num_steps - 1, -1, -1):
        slots[t] = current
        current = ancestors[t][current]
    return slots


def genealogy(ancestors: Int[np.ndarray, "T N"]) -> tuple[Branch, ...]:
    """The tree of all prefixes that have surviving descendants."""
    slots = lineages(ancestors)

    def grow(step: int, members: tuple[int, ...]) -> tuple[Branch, ...]:
        if step == len(slots):
            return ()
        groups: dict[int, list[int]] = {}
        for member in members:
            groups.setdefault(int(slots[step, member]), []).append(member)
        branches = [
            Branch(slot, step, tuple(group), grow(step + 1, tuple(group)))
            for slot, group in groups.items()
        ]
        return tuple(sorted(branches, key=lambda b: (-len(b.survivors), b.particle)))

    return grow(0, tuple(range(slots.shape[1]))) if len(slots) else ()


def genealogy_text(result: Result) -> str:
    """The surviving genealogy as a text tree, one line a stored step.

    A line tells the step's text and how many final particles descend from it; a leaf
    tells its particle's answer, reward and weight.
    """
    assert result.step_texts is not None
    texts = result.step_texts
    weights = _normalised(result.log_weights)
    lines: list[str] = []

    def ended(branch: Branch) -> bool:
        return branch.step >= len(texts[branch.survivors[0]]) - 1

    def show(branches: tuple[Branch, ...], indent: str) -> None:
        for i, branch in enumerate(branches):
            last = i == len(branches) - 1
            first = branch.survivors[0]
            steps = texts[first]
            step = steps[branch.step] if branch.step < len(steps) else ""
            line = f"{indent}{'└─ ' if last else '├─ '}{_one_line(step)}"
            if ended(branch):
                mass = sum(float(weights[n]) for n in branch.survivors)
                answer = result.answers[first]
                line += (
                    f"   → {'no answer' if answer is None else answer}"
                    f"   reward {result.rewards[first]:.3f}, weight {mass:.3f}"
                )
            if len(branch.survivors) > 1:
                line += f"   ×{len(branch.survivors)}"
            lines.append(line)
            # What follows the end of a finished text is copies of it.
            if not ended(branch):
                show(branch.children, indent + ("   " if last else "│  "))

    show(genealogy(result.ancestors), "")
    return "\n".join(lines)


def solution_text(result: Result) -> str:
    """Everything that `tsi solve` prints about a result."""
    num_particles = len(result.texts)
    ess = [f"{value:.1f}" for value in result.ess]
    resampled = [
        str(t)
        for t, row in enumerate(result.ancestors)
        if not np.array_equal(row, np.arange(num_particles))
    ]
    posterior = [
        f"  {answer}  {probability:.3f}  {'█' * round(30 * probability)}"
        for answer, probability in result.answer_posterior.items()
    ]
    ledger = result.ledger
    notes = [
        f"{count} {what}"
        for count, what in (
            (result.num_recoveries, "recoveries from zero weights everywhere"),
            (result.num_invalid, "scores that were not a number"),
            (result.num_truncated, "particles cut at a limit"),
        )
        if count
    ]
    sections = [
        f"Effective sample size of {num_particles} after each step: {' '.join(ess)}",
        f"Resampled before step: {', '.join(resampled) or 'none'} (counted from 0)",
        f"Surviving genealogy:\n{genealogy_text(result)}",
        "Answer posterior:\n" + ("\n".join(posterior) or "  no particle has an answer"),
        f"Selected answer: {result.selected}",
        f"Log evidence: {result.log_evidence:.3f}",
        f"Cost: {ledger.rollouts} rollouts, {ledger.generated_tokens} tokens, "
        f"{ledger.reward_tokens} reward tokens, {ledger.flops / 1e6:.1f} MFLOP, "
        f"{ledger.seconds:.2f} s",
    ]
    return "\n\n".join(sections + ([f"Note: {', '.join(notes)}."] if notes else []))


def _normalised(log_weights: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    log_weights = np.asarray(log_weights, np.float64)
    top = log_weights.max()
    if not np.isfinite(top):
        return np.full(log_weights.size, 1 / log_weights.size)
    weights = np.exp(log_weights - top)
    return weights / weights.sum()


def _one_line(text: str, width: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
