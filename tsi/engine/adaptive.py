"""Adaptive budgets: rounds of a sampler on each problem until a stopping rule holds.

Rounds are independent runs (islands that never mix). The mean of their evidence
therefore stays unbiased, and the particles of all rounds are pooled, each weighted by
its round's evidence. Self-consistency adds votes until the majority is sure; SMC adds
particles until its error is small. Easy problems stop early and leave the batch. The
ledger of a result contains the cost of all rounds of its problem.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from tsi.engine.meters.report import Progress
from tsi.engine.stopping import Stop
from tsi.errors import ConfigurationError, ProblemError, Stopped
from tsi.explorer import Explorer
from tsi.problem import Problem
from tsi.problem_ids import check_ids
from tsi.results.build import price_without_reward
from tsi.results.result import Result
from tsi.results.rounds import merge_rounds
from tsi.sampler import Sampler
from tsi.step_keys import AnyKey, single_key


class Rounds(NamedTuple):
    """How a budget is spent.

    Attributes:
        size: rollouts of one round.
        max_rounds: rounds after which a problem stops in any case.
        stop: the rule.
    """

    size: int
    max_rounds: int
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
    progress: Callable[[Progress], None] | None = None,
) -> list[Result]:
    """Run a sampler on every problem, round by round, until its stopping rule holds.

    Args:
        runner: an engine; see `tsi.engine.engine.Engine.run`.
        sampler: the sampler or explorer of each round.
        key: of either style; round r runs under ``fold_in(key, r)``.
        problems: any number.
        rounds: how the budget is spent.
        extract: canonical answer of a solution's text, or None.
        temperature: overrides the engine's.
        reads_reward: False leaves the reward out of the cost, for a sampler and a rule
            that do not use it.
        progress: called each time the host reads the state of the slots of a round.

    Returns:
        One result per problem, in order, with the particles of all its rounds.

    Raises:
        ConfigurationError: a number in `rounds` is not positive, `key` is not a key, or
            problems share an id or have none.
        ProblemError: some problems failed in a round and left; raised after all others
            have ended, with their results.
        Stopped: after a signal; it has the results of problems that had stopped.
    """
    key = single_key(key)
    check_ids(problems)
    if rounds.size < 1 or rounds.max_rounds < 1:
        raise ConfigurationError(
            f"Rounds need rollouts and at least one of them; got size={rounds.size}, "
            f"max_rounds={rounds.max_rounds}."
        )
    options = {} if progress is None else {"progress": progress}
    done: list[list[Result]] = [[] for _ in problems]
    complete: dict[int, Result] = {}
    running = list(range(len(problems)))
    failure: ProblemError | None = None
    for number in range(rounds.max_rounds):
        if not running:
            break
        stopped: Stopped | None = None
        try:
            results = runner.run(
                sampler,
                jax.random.fold_in(key, number),
                [problems[i] for i in running],
                rounds.size,
                extract=extract,
                temperature=temperature,
                **options,
            )
        except ProblemError as error:
            failure = error if failure is None else failure.join(error)
            results = error.results
        except Stopped as error:
            stopped, results = error, error.results
        # Problems that have failed are not among the results.
        by_id = {result.problem_id: result for result in results}
        running = [i for i in running if problems[i].id in by_id]
        is_last = number + 1 == rounds.max_rounds
        for i in list(running):
            result = by_id[problems[i].id]
            done[i].append(result if reads_reward else price_without_reward(result))
            if rounds.stop(done[i]) or is_last:
                complete[i] = merge_rounds(done[i])
                running.remove(i)
        if stopped is not None:
            stopped.results = tuple(complete[i] for i in sorted(complete))
            raise stopped
    merged = [complete[i] for i in sorted(complete)]
    if failure is not None:
        failure.results = tuple(merged)
        raise failure
    return merged
