"""How methods that run several particle systems in sequence divide a budget."""

from collections.abc import Callable

from jaxtyping import Array

from tsi.errors import ConfigurationError
from tsi.samplers.parts.potentials import Potential

SWEEP_SIZE = 16
"""Default number of particles per sweep of an endless chain."""


def path_score(potential: Potential, method: str) -> Callable[..., Array]:
    """The path weight of a potential that has weights for every prefix.

    Raises:
        ConfigurationError: for `latest` and `terminal`.
    """
    score = potential.path_log_weight
    if score is None or potential.evidence != "running":
        raise ConfigurationError(
            f"{method} resamples at every step, so it needs a potential with weights "
            "for prefixes and with a target. Use product, telescoping or uniform, not "
            "latest or terminal."
        )
    return score


def shared_budget(
    num_particles: int,
    num_sweeps: int | None,
    particles_per_sweep: int | None,
    min_particles: int = 2,
    min_sweeps: int = 2,
) -> tuple[int, int]:
    """The number of sweeps and of particles per sweep, for a budget of N rollouts.

    Args:
        num_particles: N.
        num_sweeps: by default 4.
        particles_per_sweep: instead of the number of sweeps.
        min_particles: minimum number of particles per sweep.
        min_sweeps: minimum number of sweeps.

    Raises:
        ConfigurationError: if N cannot be divided in this way.
    """
    if particles_per_sweep is not None:
        size, rest = particles_per_sweep, num_particles % max(particles_per_sweep, 1)
        sweeps = num_particles // max(size, 1)
    else:
        sweeps = 4 if num_sweeps is None else num_sweeps
        size, rest = num_particles // max(sweeps, 1), num_particles % max(sweeps, 1)
    if rest or size < min_particles or sweeps < 1:
        raise ConfigurationError(
            f"{num_particles} rollouts cannot be divided into {sweeps} sweeps of "
            f"{size} particles. All sweeps need the same number, and at least "
            f"{min_particles} particles. Use another number of rollouts, of sweeps, or "
            "of particles per sweep."
        )
    if sweeps < min_sweeps:
        raise ConfigurationError(
            f"{num_particles} rollouts in {sweeps} sweep are plain SMC: the chain "
            f"makes no move. Use at least {min_sweeps} sweeps, with more rollouts or "
            "fewer particles per sweep, or use smc()."
        )
    return sweeps, size
