"""Beam search over steps: keep the best N / M prefixes and extend each in M ways.

A prefix is ranked by its latest score. Finished beams compete with their last score. A
finished beam that is kept is copied M times like any other, so the number of particles
is constant. The first N steps are drawn independently. Beam search has no target, and
its `log_evidence` stays 0.

References:
    [1] Snell et al. 2024, arXiv 2408.03314, Section 5.2.
    [2] Beeching, Tunstall and Rush 2024, search-and-learn. Differs: in the
        published code finished beams leave the search and copies fill the width.
"""

from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.allocation import top_k_replicate
from tsi.samplers.parts.potentials import latest
from tsi.samplers.parts.schedules import every_step
from tsi.samplers.smc import smc


@picklable
def beam_search(
    width: int = 4, *, select: str = "argmax", num_islands: int = 1
) -> Sampler:
    """Beam search with N / width beams of `width` continuations.

    Args:
        width: M, continuations per beam; values above N mean N.
        select: how one answer is chosen.
        num_islands: independent beam searches of N / num_islands particles.

    Returns:
        A `Sampler` whose `init` raises `ConfigurationError` if the width does not
        divide the particles of an island.
    """
    return smc(
        resampling=top_k_replicate(width),
        schedule=every_step,
        potential=latest("odds"),
        select=select,
        num_islands=num_islands,
    )
