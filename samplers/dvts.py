"""Diverse verifier tree search: N / M beam searches that never mix.

Each island of M particles keeps its best prefix, by the latest score, and extends it M
ways; islands keep the diversity that one beam search loses.

References:
    [1] Beeching, Tunstall and Rush 2024, search-and-learn. A tree stops when
        its chosen prefix ends, as in the published code.
"""

from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.allocation import effective_width, island_argmax
from tsi.samplers.parts.potentials import latest
from tsi.samplers.parts.schedules import every_step
from tsi.samplers.smc import smc


@picklable
def dvts(width: int = 4, *, select: str = "weighted_vote") -> Sampler:
    """N / width independent trees, each keeping its best of `width`.

    Args:
        width: M, particles of one tree; if N is smaller, N.
        select: "weighted_vote" or "argmax".

    Returns:
        A `Sampler` whose `init` raises `ConfigurationError` if the width does not
        divide N.
    """

    def num_trees(num_particles: int) -> int:
        return num_particles // effective_width(width, num_particles, "dvts")

    return smc(
        resampling=island_argmax(width),
        schedule=every_step,
        potential=latest("odds"),
        select=select,
        num_islands=num_trees,
    )
