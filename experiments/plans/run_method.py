"""One method on some problems, with its settings in the list of methods."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from tsi.engine.adaptive import run_rounds
from tsi.engine.engine_run import collect
from tsi.engine.islands import stream_islands
from tsi.engine.meters.report import Progress
from tsi.errors import ConfigurationError, ProblemError, Stopped
from tsi.experiments.plans.methods import Method, get_method, sampler_of
from tsi.experiments.worlds.world import World
from tsi.problem import Problem
from tsi.results.build import price_without_reward
from tsi.results.estimand import estimand_of
from tsi.results.result import Result


def run_method(
    world: World,
    name: str,
    key: Any,
    problems: Sequence[Problem],
    num_particles: int,
    *,
    temperature: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Result]:
    """Run a method with its own temperatures, rounds and costs.

    Args:
        world, name, key, problems, num_particles, temperature, progress: see
            `stream_method`.

    Returns:
        One result per problem, in order.

    Raises:
        ConfigurationError: see `stream_method`.
        ProblemError: as the stream does; it has the results of the other problems.
        Stopped: after a signal; it has the results of problems that had ended.
    """
    start_time = time.perf_counter()
    stream = stream_method(
        world,
        name,
        key,
        problems,
        num_particles,
        temperature=temperature,
        progress=progress,
    )
    method = get_method(name)
    # Each round has shared its own time among the problems that took part in it. The
    # seconds of a method without the reward stay NaN, since the engine evaluates it.
    keeps_seconds = method.rounds is not None or is_priced_without_reward(method)
    return collect(stream, problems, None if keeps_seconds else start_time)


def stream_method(
    world: World,
    name: str,
    key: Any,
    problems: Sequence[Problem],
    num_particles: int,
    *,
    temperature: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Generator[Result, None, None]:
    """Run a method, and yield each result as its problem ends.

    Arguments are checked immediately; the run starts when the first result is
    requested. The results of a method in rounds come when the last of its problems has
    ended, and the size and number of its rounds are checked when the run starts.

    Args:
        world: a task with its models.
        name: of the method.
        key: a typed key.
        problems: any number of problems.
        num_particles: N; for a method that stops early, the most that it uses.
        temperature: of the policy; by default the world's.
        progress: called each time the host reads the state of the slots; an error that
            it raises ends the run.

    Raises:
        ConfigurationError: the method fixes another temperature; or see
            :meth:`tsi.engine.engine.Engine.stream`.
        ProblemError: some problems failed; raised after all other results.
        Stopped: after a signal; raised after the results of problems that had ended.
    """
    method, sampler = get_method(name), sampler_of(name, world.max_steps)
    if temperature is None:
        temperature = method.temperature
    elif method.temperature not in (None, temperature):
        raise ConfigurationError(
            f"The method {name} has the temperature {method.temperature:g}, and not "
            f"{temperature:g}. Leave the temperature out, or choose another method."
        )
    settings: dict[str, Any] = {"extract": world.extract, "temperature": temperature}
    if progress is not None:
        settings["progress"] = progress
    if method.rounds is not None:
        rounds = method.rounds(num_particles)
        settings["reads_reward"] = method.reads_reward
        return _results_of_rounds(
            lambda: run_rounds(world.engine, sampler, key, problems, rounds, **settings)
        )
    factor = method.proposal_over(world.is_served)
    if factor is not None:
        base = world.settings["temperature"] if temperature is None else temperature
        settings["proposal_temperature"] = base * factor
    if world.num_islands > 1 and method.is_divisible:
        stream = stream_islands(
            *(world.engine, sampler, key, problems, num_particles, world.num_islands),
            **settings,
        )
    else:
        stream = world.engine.stream(sampler, key, problems, num_particles, **settings)
    return _with_estimand(stream, method, sampler)


def _results_of_rounds(
    run: Callable[[], list[Result]],
) -> Generator[Result, None, None]:
    """The results of a method in rounds, also if the run fails or is stopped."""
    try:
        results = run()
    except (ProblemError, Stopped) as error:
        yield from error.results
        raise
    yield from results


def _with_estimand(
    stream: Iterator[Result], method: Method, sampler: Any
) -> Generator[Result, None, None]:
    """Results that say what they estimate, with the costs of their method."""
    estimand = estimand_of(sampler, reads_reward=method.reads_reward)
    for result in stream:
        result = result._replace(estimand=estimand)
        if is_priced_without_reward(method):
            result = price_without_reward(result)
        yield result


def is_priced_without_reward(method: Method) -> bool:
    """Whether the cost of a run leaves out the reward, which the method never reads.

    Methods that never resample or are deterministic are priced from the run of their
    rows, by :func:`tsi.experiments.plans.shared_rollouts.first_rollouts`.
    """
    return not (
        method.reads_reward or method.never_resamples or method.is_deterministic
    )
