"""A pilot: independent solutions of a few problems, to learn how long solutions are.

The length of a solution decides most of what a run costs. Tasks with worked solutions
know it. For others a pilot measures it, with the run's own policy, prompts and limits.
"""

import math
import time
from typing import NamedTuple

import jax
import numpy as np

from tsi.errors import ConfigurationError, ProblemError
from tsi.experiments.plans.run_method import run_method
from tsi.experiments.worlds.world import World

METHOD = "self_consistency"
ROLLOUTS = 2
"""Rollouts per problem of a pilot; lengths differ more between problems than within."""
NUM_PROBLEMS = 8
"""Problems of the pilot that a run makes by itself."""
MAX_SHARE = 0.02
"""A run makes a pilot by itself if that has no larger share of its rollouts."""
PILOT_SEED = 0x9E3779B9
"""Not a seed of any row, so that a pilot's solutions are independent of the rows."""


class Pilot(NamedTuple):
    """The lengths of a pilot's solutions.

    Attributes:
        tokens: mean number of tokens per solution.
        stderr: of the mean, clustered by problem; NaN for a single problem.
        problems: number of problems, without those that failed.
        seconds: that the pilot took, compilation included.
    """

    tokens: float
    stderr: float
    problems: int
    seconds: float

    def __str__(self) -> str:
        error = "" if math.isnan(self.stderr) else f" ± {self.stderr:,.0f}"
        plural = "" if self.problems == 1 else "s"
        return (
            f"A pilot of {self.problems * ROLLOUTS} rollouts on {self.problems} "
            f"problem{plural} took {self.seconds:,.0f} s: {self.tokens:,.0f}{error} "
            "tokens per solution."
        )


def default_num_problems(world: World, rollouts: int) -> int:
    """Number of problems of the pilot that a run makes by itself, 0 for no pilot.

    Args:
        world: a task with its models.
        rollouts: number of rollouts of the run.
    """
    if world.typical_tokens is not None or world.is_served:
        return 0
    number = min(NUM_PROBLEMS, len(world.problems))
    return number if number * ROLLOUTS <= MAX_SHARE * rollouts else 0


def run_pilot(world: World, num_problems: int) -> Pilot:
    """Solve problems from all parts of the list, independently.

    Args:
        world: a task with its models, whose weights are loaded.
        num_problems: number of problems; at most as many as there are.

    Raises:
        ConfigurationError: the number of problems is not positive, or the world has
            no problems.
        ProblemError: all problems of the pilot failed.
    """
    number = min(num_problems, len(world.problems))
    if number < 1:
        raise ConfigurationError(
            f"A pilot needs at least one problem; there are {len(world.problems)}, and "
            f"{num_problems} were asked for."
        )
    places = np.linspace(0, len(world.problems) - 1, number).round().astype(int)
    problems = [world.problems[place] for place in places]
    start = time.perf_counter()
    # A pilot has too few rollouts to be divided.
    undivided_world = world._replace(num_islands=1)
    try:
        results = run_method(
            undivided_world, METHOD, jax.random.key(PILOT_SEED), problems, ROLLOUTS
        )
    except ProblemError as error:
        # The run itself names problems that fail; lengths come from the others.
        results = list(error.results)
        if not results:
            raise
    lengths = [float(result.ledger.generated_tokens) / ROLLOUTS for result in results]
    stderr = math.nan
    if len(lengths) > 1:
        stderr = float(np.std(lengths, ddof=1) / math.sqrt(len(lengths)))
    seconds = time.perf_counter() - start
    return Pilot(float(np.mean(lengths)), stderr, len(lengths), seconds)


def measure_length(world: World, num_problems: int) -> tuple[World, Pilot]:
    """Measure the length of a solution by a pilot.

    Args:
        world: see `run_pilot`.
        num_problems: see `run_pilot`.

    Returns:
        The world, which now knows the length, and the pilot.

    Raises:
        ConfigurationError: see `run_pilot`.
        ProblemError: see `run_pilot`.
    """
    pilot = run_pilot(world, num_problems)
    return world._replace(typical_tokens=lambda: pilot.tokens), pilot
