"""Check that particles with small weights are not lost.

Two checks of a sampler's draws of ancestors:

- range: two particles have weight, one of them far below the other. A draw in
  proportion to weights would keep the lower one once in 20,000 draws when its log
  weight is 12 below. A rule that always keeps it there does not draw in proportion to
  weights, and must not always lose it at 40, 80 and 120 below, where only rounding can
  make a difference. (A rule that draws in proportion to a power of the weights would
  keep it with probability 0.999 at 12 and 0.03 at 120.)
- resolution: 8 of 16,384 particles have nearly all the weight, and each of the others
  has 2^-28 of it. Together these must keep their weight, 2^-14, and each must have a
  chance to be drawn. A cumulative sum in float32 has steps of 2^-24, so that most of
  the light particles can never be drawn and the same few are drawn repeatedly; the same
  happens with a uniform number of 23 random bits. Each of 256 keys draws about one
  light particle, so that about 2 light particles are drawn twice by chance, and about
  64 with such rounding errors.
"""

import numpy as np
from jaxtyping import Array, Key

from tsi.bench.offspring import Draws
from tsi.bench.robustness import Check
from tsi.bench.source_lines import places_of_functions
from tsi.errors import ConfigurationError
from tsi.sampler import Sampler

NEAR, FAR = 12.0, (40.0, 80.0, 120.0)
CERTAIN = 0.999

MANY, HEAVY, FEW_KEYS = 2**14, 8, 256
LOG_LIGHT = -25 * np.log(2.0)
"""Log weight of a light particle relative to a heavy one: 2^-28 of all eight."""
MAX_LIGHT = 0.01
"""The largest total share of the light particles for the check to apply."""
MAX_Z = 5.0
MAX_PAIR_RATIO = 3.0
"""Allowed multiple of the expected pairs, since draws of one key may be dependent."""
ROUNDING = 0.1
"""Allowed error: schemes may round to 2^-31 of the total, 1/16 of a light particle."""


def range_check(
    sampler: Sampler, draws: Draws, size: int, key: Key[Array, ""]
) -> Check:
    """Whether a particle that is always kept at 12 below is also kept at 120 below."""
    if size < 2:
        return Check("range", None, "there is only one particle")

    def fraction_kept(gap: float) -> float:
        log_potentials = np.full(size, -np.inf)
        log_potentials[:2] = gap / 2, -gap / 2
        return float((draws(key, log_potentials).counts[:, 1] > 0).mean())

    if fraction_kept(NEAR) < CERTAIN:
        return Check("range", True, "what lies far below is drawn by chance")
    for gap in FAR:
        if fraction_kept(gap) == 0.0:
            detail = (
                f"one of two particles with weight is kept {NEAR:g} below the other, "
                f"and lost under every key {gap:g} below"
            )
            return Check("range", False, detail, places_of_functions(sampler, "ask"))
    return Check(
        "range", True, f"what is kept {NEAR:g} below is kept {FAR[-1]:g} below"
    )


def resolution_check(sampler: Sampler, key: Key[Array, ""]) -> Check:
    """Whether many light particles keep their weight and all can be drawn."""
    log_potentials = np.full(MANY, LOG_LIGHT)
    log_potentials[MANY // HEAVY // 2 :: MANY // HEAVY] = 0.0
    is_light = log_potentials < 0.0
    try:
        draws = Draws(sampler, MANY, FEW_KEYS, num_steps=1)
        offspring = draws(key, log_potentials)
    except ConfigurationError as error:
        return Check("resolution", None, f"not for {MANY} particles: {error}")
    if np.all(offspring.counts == 1.0):
        return Check("resolution", None, "nothing is resampled")
    light_weights = offspring.before[:, is_light].sum(1)
    if not light_weights.all():
        detail = f"a log potential {-LOG_LIGHT:.1f} below the largest has weight zero"
        return Check("resolution", False, detail, places_of_functions(sampler, "tell"))
    if light_weights.mean() > MAX_LIGHT * MANY:
        reason = "not applicable: its weights do not span what log potentials do"
        return Check("resolution", None, reason)
    ratios = offspring.weights[:, is_light].sum(1) / light_weights
    return judge_light_particles(sampler, ratios, offspring.counts[:, is_light] > 0)


def judge_light_particles(
    sampler: Sampler, ratios: np.ndarray, is_drawn: np.ndarray
) -> Check:
    """Test the weight that light particles keep, and which of them are drawn.

    Args:
        sampler: the sampler, for the source line in the report.
        ratios: their total weight after each of K draws, over that before, [K].
        is_drawn: whether each was drawn, [K, L].
    """
    where = places_of_functions(sampler, "ask")
    spread = float(ratios.std(ddof=1)) / np.sqrt(len(ratios))
    error = float(ratios.mean()) - 1.0
    # If none was drawn the sample has no spread.
    z = error / max(spread, 1e-6)
    if abs(z) > MAX_Z and abs(error) > ROUNDING:
        detail = (
            f"{is_drawn.shape[1]} particles with 2^-28 of the weight each keep "
            f"{1 + error:.3f} of their weight (z = {z:+.1f})"
        )
        return Check("resolution", False, detail, where)
    by_particle = is_drawn.sum(0).astype(np.float64)
    total = by_particle.sum()
    pairs = float(np.sum(by_particle * (by_particle - 1.0)) / 2.0)
    expected = total * (total - 1.0) / 2.0 / len(by_particle)
    z = (pairs - expected) / np.sqrt(max(expected, 1.0))
    if z > MAX_Z and pairs > MAX_PAIR_RATIO * expected:
        detail = (
            f"of {is_drawn.shape[1]} particles with 2^-28 of the weight each, the same "
            f"few are drawn again: {pairs:.0f} times, and {expected:.0f} by chance "
            f"(z = {z:+.1f})"
        )
        return Check("resolution", False, detail, where)
    return Check("resolution", True, "light particles are drawn by their weight")
