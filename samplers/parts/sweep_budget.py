"""What a budget buys in methods that run several particle systems one after another."""

from collections.abc import Callable

from jaxtyping import Array

from tsi.errors import ConfigurationError
from tsi.samplers.parts.potentials import Potential

SWEEP = 16
"""Particles of a sweep of an endless chain, where none are asked for."""


def path_score(potential: Potential, method: str) -> Callable[..., Array]:
    """The path weight of a potential that weighs every prefix.

    Raises:
        ConfigurationError: for `latest` and `terminal`.
    """
    score = potential.path_log_weight
    if score is None or potential.evidence != "running":
        raise ConfigurationError(
            f"{method} resamples at every step and so needs a potential that weighs "
            "prefixes and has a target: product, telescoping or uniform, not latest or "
            "terminal."
        )
    return score


def shared_budget(
    num_particles: int,
    num_sweeps: int | None,
    particles_per_sweep: int | None,
    least: int = 2,
    fewest: int = 2,
) -> tuple[int, int]:
    """Sweeps and particles of each, for a budget of N rollouts.

    Args:
        num_particles: N.
        num_sweeps: by default 4.
        particles_per_sweep: in place of the sweeps.
        least: particles that a sweep must have.
        fewest: sweeps that there must be.

    Raises:
        ConfigurationError: if N cannot be shared so.
    """
    if particles_per_sweep is not None:
        size, rest = particles_per_sweep, num_particles % max(particles_per_sweep, 1)
        sweeps = num_particles // max(size, 1)
    else:
        sweeps = 4 if num_sweeps is None else num_sweeps
        size, rest = num_particles // max(sweeps, 1), num_particles % max(sweeps, 1)
    if rest or size < least or sweeps < 1:
        raise ConfigurationError(
            f"{num_particles} rollouts cannot be {sweeps} sweeps of {size} particles. "
            f"All need as many, and at least {least}: fewer could never move. "
            "Choose another number of sweeps, or of particles for each."
        )
    if sweeps < fewest:
        raise ConfigurationError(
            f"{num_particles} rollouts in {sweeps} sweep are plain SMC, and the chain "
            f"makes no move. Ask for {fewest} sweeps or more, by more rollouts or "
            "fewer particles for each, or use smc()."
        )
    return sweeps, size
