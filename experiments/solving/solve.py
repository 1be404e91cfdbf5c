"""A result as text: effective sample sizes, genealogy, answers and costs."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from tsi.accuracy.degeneracy import lineages
from tsi.accuracy.diagnostics import probabilities_of
from tsi.accuracy.pareto import UNRELIABLE_K
from tsi.results.result import Result


class Branch(NamedTuple):
    """A stored prefix with surviving descendants.

    Args:
        particle: index of the particle at its step.
        step: index of the step, from 0.
        survivors: final particles that descend from it.
        children: prefixes that extend it, those with most survivors first.
    """

    particle: int
    step: int
    survivors: tuple[int, ...]
    children: tuple["Branch", ...]


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
    """The surviving genealogy as a text tree, one line per stored step.

    A line has the step's text and the number of final particles that descend from it; a
    leaf also has its particle's answer, reward and weight.
    """
    texts = result.particles.step_texts
    assert texts is not None
    weights = probabilities_of(result.log_weights)
    lines: list[str] = []

    def is_end(branch: Branch) -> bool:
        return branch.step >= len(texts[branch.survivors[0]]) - 1

    def show(branches: tuple[Branch, ...], indent: str) -> None:
        for i, branch in enumerate(branches):
            last = i == len(branches) - 1
            first = branch.survivors[0]
            steps = texts[first]
            step = steps[branch.step] if branch.step < len(steps) else ""
            line = f"{indent}{'└─ ' if last else '├─ '}{shorten(step)}"
            if is_end(branch):
                mass = sum(float(weights[n]) for n in branch.survivors)
                answer = result.answers[first]
                line += (
                    f"   → {'no answer' if answer is None else answer}"
                    f"   reward {result.rewards[first]:.3f}, weight {mass:.3f}"
                )
            if len(branch.survivors) > 1:
                line += f"   ×{len(branch.survivors)}"
            lines.append(line)
            # After the end of a finished text there are only copies of it.
            if not is_end(branch):
                show(branch.children, indent + ("   " if last else "│  "))

    show(genealogy(result.steps.ancestors), "")
    return "\n".join(lines)


def _sampling_text(result: Result) -> list[str]:
    """Lines on effective sample sizes, resampling and moves, if the method has them."""
    num_particles, ess = len(result.texts), result.steps.ess
    resampled = result.steps.resampled
    acceptance_rate = result.diagnostics.acceptance_rate
    sizes = " ".join("–" if np.isnan(x) else f"{x:.1f}" for x in ess)
    population = f"of {num_particles} after each step"
    if resampled is None:
        population = "of the particles in use, by turn"
    if np.isnan(ess).all():
        lines = [
            "Effective sample size: –, because particles are not a weighted sample"
        ]
    else:
        lines = [f"Effective sample size {population}: {sizes}"]
    if resampled is not None:
        steps = ", ".join(map(str, np.flatnonzero(resampled))) or "none"
        lines.append(f"Resampled before step: {steps} (counted from 0)")
    solutions = (
        f"Distinct solutions of {num_particles}: {result.particles.num_distinct}"
    )
    if not math.isnan(acceptance_rate):
        solutions += f"; share of moves accepted: {acceptance_rate:.2f}"
    return [*lines, solutions]


def solution_text(result: Result) -> str:
    """The text that `tsi solve` prints about a result.

    Args:
        result: of one problem.
    """
    has_target = result.estimand.has_target
    other_targets = len(result.estimand.auxiliary_temperatures)
    diagnostics = result.diagnostics
    posterior = [
        f"  {answer}  {probability:.3f}{_error_of(result, answer)}"
        f"  {'█' * round(30 * probability)}"
        for answer, probability in result.answer_posterior.items()
    ]
    if result.unanswered > 0:
        posterior.append(
            f"  no answer  {result.unanswered:.3f} of the weight, which the "
            f"{'posterior leaves' if has_target else 'shares above leave'} out"
        )
    unique = " ".join(map(str, result.steps.unique_ancestors.tolist()))
    ledger = result.ledger
    notes = [
        f"{count} {what}"
        for count, what in (
            (diagnostics.num_recoveries, "recoveries, after all weights were zero"),
            (diagnostics.num_invalid, "scores or corrections of NaN or infinity"),
            (diagnostics.num_truncated, "particles cut at a limit"),
        )
        if count
    ]
    estimate = f"{result.log_evidence:.3f} ± {_error(result.evidence.standard_error)}"
    factor = f", times those of {other_targets} other temperatures"
    heading = "Answer posterior"
    if not has_target:
        heading = "Answers by weight (the method has no target, so no posterior)"
    sections = [
        *_sampling_text(result),
        f"Unique ancestors of the final particles, by step: {unique}",
        f"Surviving genealogy:\n{genealogy_text(result)}",
        f"{heading}:\n" + ("\n".join(posterior) or "  no particle has an answer"),
        f"Selected answer: {result.selected}",
        f"Log evidence{factor if other_targets else ''}: "
        f"{estimate if has_target else 'none, because the method has no target'}",
        *_tail_text(result),
        f"Cost: {ledger.rollouts} rollouts, {ledger.generated_tokens} tokens, "
        f"{ledger.reward_tokens} reward tokens, {ledger.flops / 1e6:.1f} MFLOP, "
        f"{ledger.seconds:.2f} s",
    ]
    if notes:
        sections.append(f"Note: {', '.join(notes)}.")
    sections += [f"Note: {note}" for note in result.notes]
    thinking = result.particles.num_thinking
    sections += [thinking_text(thinking, len(result.texts))] if thinking else []
    return "\n\n".join(sections)


def thinking_text(number: int, total: int) -> str:
    """A sentence on particles that were cut while the model was thinking."""
    subject = (
        "The model was" if number == total else f"{number} of {total} particles were"
    )
    return (
        f"{subject} still thinking when the limit was reached; raise the limit (the "
        "task's steps and tokens per step), or, if the model's chat template has such "
        "a switch, pass --template-switch enable_thinking=false."
    )


def _error_of(result: Result, answer: str) -> str:
    """The error of an answer's probability; a share of a search's ranks has none."""
    if not result.estimand.has_target:
        return ""
    return f" ± {_error(result.posterior.errors.get(answer, math.nan))}"


def _error(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f}"


def _tail_text(result: Result) -> list[str]:
    """A line on the tail of the weights, if these are those of a weighted sample."""
    if not result.estimand.is_weighted_sample:
        return []
    k = result.diagnostics.pareto_k
    if math.isnan(k):
        return [
            "Pareto k of the weights: not estimated (too few distinct large weights)"
        ]
    text = f"Pareto k of the weights: {k:.2f}"
    if k > UNRELIABLE_K:
        text += (
            f". Above {UNRELIABLE_K} a few particles have most of the weight, and the "
            "posterior and its errors are unreliable. Use more particles, or resample "
            "earlier."
        )
    return [text]


def shorten(text: str, width: int = 60) -> str:
    """One line of a text, of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
