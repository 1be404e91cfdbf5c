"""What a budget buys in methods that run several particle systems one after another."""

from collections.abc import Callable

from jaxtyping import Array

from tsi.errors import ConfigurationError
from tsi.samplers.potentials import Potential


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
    num_particles: int, num_sweeps: int | None, particles_per_sweep: int | None
) -> tuple[int, int]:
    """Sweeps and particles of each, for a budget of N rollouts.

    Raises:
        ConfigurationError: if N cannot be shared so.
    """
    if particles_per_sweep is not None:
        size, rest = particles_per_sweep, num_particles % max(particles_per_sweep, 1)
        sweeps = num_particles // max(size, 1)
    else:
        sweeps = 4 if num_sweeps is None else num_sweeps
        size, rest = num_particles // max(sweeps, 1), num_particles % max(sweeps, 1)
    if rest or size < 2 or sweeps < 1:
        raise ConfigurationError(
            f"{num_particles} rollouts cannot be {sweeps} sweeps of {size} particles. "
            "Sweeps must be equal and have two particles or more: with the reference "
            "alone a chain would never move. Choose other num_sweeps or "
            "particles_per_sweep."
        )
    return sweeps, size
