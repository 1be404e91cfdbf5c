"""One problem on several groups of devices: islands that run independently.

A problem's N particles are divided among I islands of N / I particles each. Islands are
run as problems of their own, so that consecutive ones are on different groups of
devices and a group needs memory only for its islands. No cache is moved between groups.
When all islands of a problem have ended, they are merged, each weighted by its evidence
(:func:`tsi.results.rounds.merge_rounds`): the mean of their evidence estimates is
unbiased if each of them is.

References:
    [1] Vergé, Dubarry, Del Moral and Moulines 2015, arXiv 1306.3911 (islands that do
        not interact). Resampling within islands only has a larger variance than over
        all particles.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tsi.errors import ConfigurationError, ProblemError
from tsi.explorer import Explorer
from tsi.problem import Problem
from tsi.problem_ids import check_ids
from tsi.results.result import Result
from tsi.results.rounds import merge_rounds
from tsi.sampler import Sampler
from tsi.step_keys import AnyKey


def island_id(problem_id: int | str, island: int) -> str:
    """The id under which an island of a problem runs, and from which its keys come."""
    return f"{problem_id!r}/island {island}"


def island_size(num_particles: int, num_islands: int) -> int:
    """The number of particles of one island.

    Raises:
        ConfigurationError: the islands cannot have equal numbers of particles.
    """
    if num_islands < 1 or num_particles % num_islands:
        raise ConfigurationError(
            f"N = {num_particles:,} cannot be divided among {num_islands} islands; "
            "choose budgets that are multiples of the number of islands, which is at "
            "least 1."
        )
    return num_particles // num_islands


def stream_islands(
    engine: Any,
    sampler: Sampler | Explorer,
    key: AnyKey,
    problems: Sequence[Problem],
    num_particles: int,
    num_islands: int,
    **options: Any,
) -> Iterator[Result]:
    """Run a sampler on problems that are divided into islands.

    Args:
        engine: see :class:`tsi.engine.base.BaseEngine`; of any number of groups of
            devices.
        sampler: the sampler or explorer of each island.
        key: of either style; island i of a problem runs as :func:`tsi.run.run` does
            under ``problem_key(key, island_id(problem.id, i))``.
        problems: any number.
        num_particles: N, for each problem.
        num_islands: I, for each problem; it must divide N.
        options: see :meth:`tsi.engine.engine.Engine.stream`.

    Returns:
        One result per problem with the particles of all its islands, in the order in
        which problems end.

    Raises:
        ConfigurationError: I does not divide N, or see `Engine.stream`.
        ProblemError: islands of some problems failed; raised after all others have
            ended.
    """
    size = island_size(num_particles, num_islands)
    if num_islands == 1:
        return engine.stream(sampler, key, problems, num_particles, **options)
    check_ids(problems)
    islands = [
        problem._replace(id=island_id(problem.id, i))
        for problem in problems
        for i in range(num_islands)
    ]
    stream = engine.stream(sampler, key, islands, size, **options)
    return _merge(stream, problems, num_islands)


def _merge(
    stream: Iterator[Result], problems: Sequence[Problem], num_islands: int
) -> Iterator[Result]:
    """Merge the islands of each problem when the last of them has ended."""
    problem_of = {
        island_id(problem.id, i): (problem.id, i)
        for problem in problems
        for i in range(num_islands)
    }
    results_by_id: dict[int | str, dict[int, Result]] = {}
    try:
        for result in stream:
            id, island = problem_of[str(result.problem_id)]
            islands = results_by_id.setdefault(id, {})
            islands[island] = result._replace(problem_id=id)
            if len(islands) == num_islands:
                del results_by_id[id]
                yield merge_rounds([islands[i] for i in range(num_islands)])
    except ProblemError as error:
        raise _name_problems(error, problem_of) from error


def _name_problems(
    error: ProblemError, problem_of: dict[str, tuple[int | str, int]]
) -> ProblemError:
    """The errors of islands, as errors of their problems."""
    # The first island that failed explains the failure of its problem.
    first = {problem_of[str(name)][0]: name for name in reversed(error.failures)}
    return ProblemError(
        {id: error.failures[name] for id, name in first.items()},
        {id: error.steps[name] for id, name in first.items() if name in error.steps},
        {
            id: error.tracebacks[name]
            for id, name in first.items()
            if name in error.tracebacks
        },
    )
