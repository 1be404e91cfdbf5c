"""Adaptive budgets: rounds of a sampler on each problem until a stopping rule holds.

Rounds are independent runs (islands that never mix). The mean of their evidence
therefore stays unbiased, and the particles of all rounds are pooled, each weighted by
its round's evidence. Self-consistency adds votes until the majority is sure; SMC adds
particles until its error is small. Easy problems stop early and leave the batch. The
ledger of a result contains the cost of all rounds of its problem.
"""

import signal
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
    state = _Rounds(problems, rounds, reads_reward)
    try:
        while state.running:
            try:
                results = runner.run(
                    sampler,
                    jax.random.fold_in(key, state.number),
                    [problems[i] for i in state.running],
                    rounds.size,
                    extract=extract,
                    temperature=temperature,
                    **options,
                )
            except ProblemError as error:
                state.fail(error)
                results = error.results
            except Stopped as error:
                state.end_round(error.results)
                raise
            state.end_round(results)
    except Stopped as error:
        # A signal may come between two rounds, too.
        error.results = tuple(state.results())
        raise error from state.failure
    except KeyboardInterrupt as error:
        stopped = Stopped(signal.SIGINT)
        stopped.results = tuple(state.results())
        raise stopped from error
    if state.failure is not None:
        state.failure.results = tuple(state.results())
        raise state.failure
    return state.results()


class _Rounds:
    """The problems of a run in rounds.

    Attributes:
        number: of the round that is next.
        running: places of the problems that take part in it.
        failure: the errors of problems that have failed.
    """

    def __init__(
        self, problems: Sequence[Problem], rounds: Rounds, reads_reward: bool
    ) -> None:
        self._problems, self._rounds, self._reads = problems, rounds, reads_reward
        self._done: list[list[Result]] = [[] for _ in problems]
        self._merged: dict[int, Result] = {}
        self.number, self.running = 0, list(range(len(problems)))
        self.failure: ProblemError | None = None

    def fail(self, error: ProblemError) -> None:
        """Record problems that have failed."""
        self.failure = error if self.failure is None else self.failure.join(error)

    def end_round(self, results: Sequence[Result]) -> None:
        """Add the results of a round; problems without one have left."""
        by_id = {result.problem_id: result for result in results}
        self.number += 1
        running, self.running = self.running, []
        for i in running:
            problem, done = self._problems[i], self._done[i]
            if problem.id not in by_id:
                continue
            result = by_id[problem.id]
            done.append(result if self._reads else price_without_reward(result))
            try:
                is_over = self._rounds.stop(done)
            except Exception as error:
                # The rule may be the user's.
                self.fail(ProblemError({problem.id: error}))
                continue
            if is_over or self.number == self._rounds.max_rounds:
                self._merged[i] = merge_rounds(done)
            else:
                self.running.append(i)

    def results(self) -> list[Result]:
        """The results of problems that have ended, in order."""
        return [self._merged[i] for i in sorted(self._merged)]
