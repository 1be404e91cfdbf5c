"""One method on some problems, with its settings in the list of methods."""

from collections.abc import Sequence
from typing import Any

from tsi.engine.adaptive import run_rounds
from tsi.errors import ProblemError, Stopped
from tsi.experiments.scaling.methods import get_method, sampler_of
from tsi.experiments.worlds.world import World
from tsi.problem import Problem
from tsi.results.build import price_without_reward
from tsi.results.estimand import estimand_of
from tsi.results.result import Result


def run_method(
    world: World, name: str, key: Any, problems: Sequence[Problem], num_particles: int
) -> list[Result]:
    """Run a method with its own temperatures, rounds and costs.

    Args:
        world: a task with its models.
        name: of the method.
        key: a typed key.
        problems: any number of problems.
        num_particles: N; for a method that stops early, the most that it uses.
    """
    method, sampler = get_method(name), sampler_of(name, world.max_steps)
    settings: dict[str, Any] = {
        "extract": world.extract,
        "temperature": method.temperature,
    }
    if method.rounds is not None:
        rounds = method.rounds(num_particles)
        settings["reads_reward"] = method.reads_reward
        try:
            return run_rounds(world.engine, sampler, key, problems, rounds, **settings)
        except (ProblemError, Stopped) as error:
            # The results of one round are not results of the method.
            error.results = ()
            raise
    if method.proposal_temperature is not None:
        proposal_temperature = (
            world.settings["temperature"] * method.proposal_temperature
        )
        settings["proposal_temperature"] = proposal_temperature
    is_free = not (method.reads_reward or method.independent or method.deterministic)
    estimand = estimand_of(sampler, reads_reward=method.reads_reward)

    def adapt_result(result: Result) -> Result:
        result = result._replace(estimand=estimand)
        return price_without_reward(result) if is_free else result

    try:
        results = world.engine.run(sampler, key, problems, num_particles, **settings)
    except (ProblemError, Stopped) as error:
        error.results = tuple(map(adapt_result, error.results))
        raise
    return [adapt_result(result) for result in results]
