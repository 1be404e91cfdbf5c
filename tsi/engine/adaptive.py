"""Budgets that adapt: rounds of a sampler on each problem until a rule says stop.

Rounds are independent runs, islands that never mix, so that their mean evidence stays
unbiased and their particles together are weighted by each round's evidence:
self-consistency that adds votes until the majority is sure, or SMC that adds particles
until its error is small. Easy problems stop early and leave the batch; what a problem
has cost stands in its ledger.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from tsi.accuracy.pareto import pareto_k
from tsi.accuracy.replicates import evidence_from_replicates
from tsi.engine.stopping import Stop, answer_errors_between
from tsi.errors import ConfigurationError
from tsi.explorer import Explorer
from tsi.problem import Problem
from tsi.problem_ids import check_ids
from tsi.results.answers import answer_posterior, select
from tsi.results.result import Ledger, Result, without_reward
from tsi.sampler import Sampler
from tsi.step_keys import AnyKey, single_key
from tsi.weights import weight_dtype


class Rounds(NamedTuple):
    """How a budget is spent.

    Attributes:
        size: rollouts of one round.
        most: rounds after which a problem stops in any case.
        stop: the rule.
    """

    size: int
    most: int
    stop: Stop


def run_rounds(
    runner: Any,
    sampler: Sampler | Explorer,
    key: AnyKey,
    problems: Sequence[Problem],
    rounds: Rounds,
    *,
    extract: Callable[[str], str | None],
    temperature: float | None = None,
    reads_reward: bool = True,
) -> list[Result]:
    """Run a sampler on every problem, round by round, until its rule says stop.

    Args:
        runner: an engine; see `tsi.engine.engine.Engine.run`.
        sampler: what decides in a round.
        key: of either style; round r runs under ``fold_in(key, r)``.
        problems: any number.
        rounds: how the budget is spent.
        extract: canonical answer of a solution's text, or None.
        temperature: overrides the engine's.
        reads_reward: False prices a sampler and a rule that never look at the reward.

    Returns:
        One result a problem, in order, with the particles of all its rounds.

    Raises:
        ConfigurationError: if a number of the rounds is not positive, a key is none, or
            problems share an id or have none.
    """
    key = single_key(key)
    check_ids(problems)
    if rounds.size < 1 or rounds.most < 1:
        raise ConfigurationError(
            f"Rounds need rollouts and at least one of them; got size={rounds.size}, "
            f"most={rounds.most}."
        )
    done: list[list[Result]] = [[] for _ in problems]
    running = list(range(len(problems)))
    for number in range(rounds.most):
        if not running:
            break
        results = runner.run(
            sampler,
            jax.random.fold_in(key, number),
            [problems[i] for i in running],
            rounds.size,
            extract=extract,
            temperature=temperature,
        )
        for i, result in zip(running, results, strict=True):
            done[i].append(result if reads_reward else without_reward(result))
        running = [i for i in running if not rounds.stop(done[i])]
    targets = sampler.path_log_weight is not None
    weighted = targets and not getattr(sampler, "chain", False)
    return [
        merged(r, sampler.select, has_evidence=targets, weighted=weighted) for r in done
    ]


def merged(
    results: Sequence[Result],
    rule: str,
    *,
    has_evidence: bool = True,
    weighted: bool = True,
) -> Result:
    """One result of several independent runs on one problem.

    Args:
        results: of runs with as many particles each.
        rule: how one answer is chosen; see `tsi.results.answers.select`.
        has_evidence: False where the log evidence estimates nothing; runs count alike.
        weighted: False where the particles of a run are no weighted sample, so that
            their weights have no effective size and no tail.
    """
    weighted = weighted and has_evidence
    log_evidences = [r.log_evidence if has_evidence else 0.0 for r in results]
    evidence = evidence_from_replicates(np.array(log_evidences))
    answers = [answer for r in results for answer in r.answers]
    rewards = np.concatenate([r.rewards for r in results])
    log_weights = np.concatenate(
        [
            np.asarray(r.log_weights, np.float64) + log_evidence
            for r, log_evidence in zip(results, log_evidences, strict=True)
        ]
    )
    lost = math.isinf(evidence.log_mean)
    log_weights = np.zeros_like(log_weights) if lost else log_weights
    log_weights -= 0.0 if lost else evidence.log_mean
    squares = np.exp(2 * log_weights).sum()
    ess = np.exp(log_weights).sum() ** 2 / squares if squares else 0.0
    steps = [r.step_texts for r in results]
    cuts = [r.truncated for r in results if r.truncated is not None]
    gaps = [r.log_corrections for r in results if r.log_corrections is not None]
    thoughts = [r.thinking for r in results if r.thinking is not None]
    return results[-1]._replace(
        texts=[text for r in results for text in r.texts],
        answers=answers,
        rewards=rewards,
        log_weights=log_weights.astype(weight_dtype()),
        log_evidence=evidence.log_mean if has_evidence else math.nan,
        ess=np.array([ess if weighted else math.nan], weight_dtype()),
        ancestors=_side_by_side([r.ancestors for r in results]),
        step_texts=(
            None if None in steps else [text for texts in steps for text in texts or []]
        ),
        num_recoveries=sum(r.num_recoveries for r in results),
        num_invalid=sum(r.num_invalid for r in results),
        num_truncated=sum(r.num_truncated for r in results),
        answer_posterior=answer_posterior(answers, log_weights),
        selected=select(rule, answers, log_weights, rewards),
        ledger=Ledger(*map(sum, zip(*(r.ledger for r in results), strict=True))),
        slots=None,
        truncated=np.concatenate(cuts) if len(cuts) == len(results) else None,
        thinking=np.concatenate(thoughts) if len(thoughts) == len(results) else None,
        log_corrections=np.concatenate(gaps) if len(gaps) == len(results) else None,
        log_evidence_variance=evidence.standard_error**2 if has_evidence else math.nan,
        answer_errors=answer_errors_between(results),
        pareto_k=pareto_k(log_weights) if weighted and not lost else math.nan,
        unique_ancestors=_added([r.unique_ancestors for r in results]),
        step_rewards=None,
        resampled=None,
        acceptance_rate=float(np.mean([r.acceptance_rate for r in results])),
    )


def _side_by_side(
    genealogies: list[Int[np.ndarray, "_t _n"]],
) -> Int[np.ndarray, "T N"]:
    """Ancestors of runs that never mixed, as those of one run."""
    longest = max(len(ancestors) for ancestors in genealogies)
    columns, start = [], 0
    for ancestors in genealogies:
        width = ancestors.shape[1]
        stay = np.arange(width)
        rest = np.tile(stay, (longest - len(ancestors), 1))
        columns.append(
            np.concatenate([ancestors, rest.astype(ancestors.dtype)]) + start
        )
        start += width
    return np.concatenate(columns, axis=1)


def _added(
    counts: Sequence[Int[np.ndarray, "_t"] | None],
) -> Int[np.ndarray, "T"] | None:
    """Distinct ancestors of runs that never mixed; a run that ended keeps its last."""
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    longest = max(map(len, known))
    return np.sum([np.pad(c, (0, longest - len(c)), "edge") for c in known], axis=0)
