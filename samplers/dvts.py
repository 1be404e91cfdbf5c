"""Diverse verifier tree search (DVTS): N / M independent beam searches.

Each island of M particles keeps the prefix with the best latest score and extends it in
M ways. The islands keep the diversity that a single beam search loses.

References:
    [1] Beeching, Tunstall and Rush 2024, search-and-learn. As in the published
        code, a tree stops when its best prefix has finished.
"""

from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.allocation import effective_width, island_argmax
from tsi.samplers.parts.potentials import latest
from tsi.samplers.parts.schedules import every_step
from tsi.samplers.smc import smc


@picklable
def dvts(width: int = 4, *, select: str = "weighted_vote") -> Sampler:
    """N / width independent trees, each of which keeps the best of `width` particles.

    Args:
        width: M, particles of one tree; if N is smaller, N.
        select: "weighted_vote" or "argmax".

    Returns:
        A `Sampler` whose `init` raises `ConfigurationError` if the width does not
        divide N.
    """

    def count_trees(num_particles: int) -> int:
        return num_particles // effective_width(width, num_particles, "dvts")

    return smc(
        resampling=island_argmax(width),
        schedule=every_step,
        potential=latest("odds"),
        select=select,
        num_islands=count_trees,
    )
