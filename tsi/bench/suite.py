"""The default targets and numbers of particles of `check_sampler`.

| targets | particles |
|---|---|
| four small tables and a linear-Gaussian model | N |
| a table with invalid potentials, one with mild ones | N |
| three long tables (`tsi.bench.long_tables`) | 2 N, or N |
| two of the small tables | 2, or 4 |

A number that the sampler cannot use (`ConfigurationError`) is left out; the long tables
are then run with N. Tables of the same shape and number share a compiled program.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from tsi.bench.known_truth import KnownTarget
from tsi.bench.long_tables import LONG_EXAMPLES
from tsi.errors import ConfigurationError
from tsi.explorer import Explorer
from tsi.sampler import Sampler
from tsi.targets.examples import EXAMPLES, peaked, smooth, unequal_lengths
from tsi.targets.linear_gaussian import LinearGaussianTarget
from tsi.targets.tabular import TabularTarget


class Trial(NamedTuple):
    """A target, and the number of particles of its runs."""

    name: str
    target: KnownTarget
    num_particles: int


def known_targets() -> dict[str, KnownTarget]:
    """The small tables and a linear-Gaussian model, by name."""
    targets: dict[str, KnownTarget] = {name: make() for name, make in EXAMPLES.items()}
    return targets | {"linear-Gaussian": LinearGaussianTarget()}


def invalid_potentials() -> TabularTarget:
    """A table in which some log potentials are NaN and +inf.

    `path_log_weight` defines the weight of such paths. Paths without these potentials
    are not affected.
    """
    return TabularTarget(
        initial=[0.5, 0.4, 0.1],
        transition=[[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.4, 0.4, 0.2]],
        log_potentials=[
            [0.2, -0.3, np.nan],
            [-0.4, 0.3, np.inf],
            [0.1, 0.2, -np.inf],
            [0.6, -0.2, np.inf],
        ],
    )


def mild_potentials() -> TabularTarget:
    """The smooth table with a fifth of its log potentials.

    The relative standard deviation of the evidence from one rollout is an eighth, so
    that a bias of 1 % shows even for a method that uses few rollouts.
    """
    table = smooth()
    return TabularTarget(table.initial, table.transition, 0.2 * table.log_potentials)


def trials_of(
    targets: Mapping[str, KnownTarget], num_particles: int
) -> tuple[Trial, ...]:
    """The targets, each with N particles."""
    return tuple(Trial(name, t, num_particles) for name, t in targets.items())


def default_trials(
    sampler: Sampler | Explorer, num_particles: int
) -> tuple[Trial, ...]:
    """The targets of the table above, with the numbers that the sampler can use."""
    targets = known_targets()
    targets |= {"invalid potentials": invalid_potentials(), "mild": mild_potentials()}
    trials = [*trials_of(targets, num_particles)]
    more = _first_usable_number(sampler, (2 * num_particles,), 10) or num_particles
    long_tables = {name: make() for name, make in LONG_EXAMPLES.items()}
    trials += trials_of(long_tables, more)
    fewer = _first_usable_number(sampler, (2, 4), 4)
    if fewer is not None and fewer < num_particles:
        small = {
            f"peaked, N = {fewer}": peaked(),
            f"unequal lengths, N = {fewer}": unequal_lengths(),
        }
        trials += trials_of(small, fewer)
    return tuple(trials)


def _first_usable_number(
    sampler: Sampler | Explorer, numbers: Sequence[int], max_steps: int
) -> int | None:
    """The first of the numbers of particles that the sampler can use."""
    for number in numbers:
        limit = (max_steps,) if isinstance(sampler, Explorer) else ()
        try:
            if isinstance(sampler, Explorer):
                sampler.plan(number, *limit)
            jax.eval_shape(
                lambda key, n=number, limit=limit: sampler.init(key, n, *limit),
                jax.random.key(0),
            )
        except ConfigurationError:
            continue
        return number
    return None
