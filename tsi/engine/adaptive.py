"""Budgets that adapt: rounds of a sampler on each problem until a rule says stop.

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
from tsi.errors import ConfigurationError
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
    """Run a sampler on every problem, round by round, until its rule says stop.

    Args:
        runner: an engine; see `tsi.engine.engine.Engine.run`.
        sampler: the sampler or explorer of each round.
        key: of either style; round r runs under ``fold_in(key, r)``.
        problems: any number.
        rounds: how the budget is spent.
        extract: canonical answer of a solution's text, or None.
        temperature: overrides the engine's.
        reads_reward: False leaves the reward out of the cost, for a sampler and a rule
            that never look at it.
        progress: called each time the host reads the state of the slots of a round.

    Returns:
        One result per problem, in order, with the particles of all its rounds.

    Raises:
        ConfigurationError: a number in `rounds` is not positive, `key` is not a key, or
            problems share an id or have none.
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
    running = list(range(len(problems)))
    for number in range(rounds.max_rounds):
        if not running:
            break
        results = runner.run(
            sampler,
            jax.random.fold_in(key, number),
            [problems[i] for i in running],
            rounds.size,
            extract=extract,
            temperature=temperature,
            **options,
        )
        for i, result in zip(running, results, strict=True):
            done[i].append(result if reads_reward else price_without_reward(result))
        running = [i for i in running if not rounds.stop(done[i])]
    return [merge_rounds(results) for results in done]
