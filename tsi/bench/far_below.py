"""Nothing that has weight is lost for lying far below the largest.

Two checks of what a sampler draws from weights of its own:

- range: two particles have weight, one of them far below the other. A rule that keeps
  the lower one for certain where it lies 12 below does not go by chance in proportion
  to weights, which would keep it once in 20,000 draws; it must not lose it for certain
  at 40, 80 and 120 either, where only rounding can make the difference. A rule that
  draws in proportion to any power of the weights cannot do that: 0.999 at 12 is 0.03 at
  120 for it.
- resolution: eight particles of 16,384 have nearly all the weight, and each of the
  others 2^-28 of it. Together those must keep their weight, 2^-14, and each must have
  its chance. A cumulative sum in float32 has steps of 2^-24, of which most of the light
  particles own none, so that the same few are drawn again and again; a uniform number
  of 23 random bits does the same. Under each of 256 keys about one of them is drawn,
  hence about 2 of them twice, and 64 are where those steps decide.
"""

import numpy as np
from jaxtyping import Array, Key

from tsi.bench.offspring import Draws
from tsi.bench.robustness import Check
from tsi.bench.source_lines import blamed
from tsi.errors import ConfigurationError
from tsi.sampler import Sampler

NEAR, FAR = 12.0, (40.0, 80.0, 120.0)
CERTAIN = 0.999

MANY, HEAVY, FEW_KEYS = 2**14, 8, 256
LOG_LIGHT = -25 * np.log(2.0)
"""A light particle's weight beside a heavy one's: 2^-28 of all eight."""
MOST_LIGHT = 0.01
"""The share of the weight from which on light particles are no longer light."""
MAX_Z = 5.0
MOST_PAIRS = 3.0
"""Of what chance gives: draws of one key need not be independent of one another."""
ROUNDING = 0.1
"""Schemes may round to 2^-31 of the total: a light particle to one part in 16."""


def range_check(
    sampler: Sampler, draws: Draws, size: int, key: Key[Array, ""]
) -> Check:
    """Whether what is kept for certain 12 below the largest is kept at 120 as well."""
    if size < 2:
        return Check("range", None, "one particle has none beside it")

    def kept(gap: float) -> float:
        told = np.full(size, -np.inf)
        told[:2] = gap / 2, -gap / 2
        return float((draws(key, told).counts[:, 1] > 0).mean())

    if kept(NEAR) < CERTAIN:
        return Check("range", True, "what lies far below is drawn by chance")
    for gap in FAR:
        if kept(gap) == 0.0:
            detail = (
                f"one of two particles with weight is kept {NEAR:g} below the other, "
                f"and lost under every key {gap:g} below"
            )
            return Check("range", False, detail, blamed(sampler, "ask"))
    return Check(
        "range", True, f"what is kept {NEAR:g} below is kept {FAR[-1]:g} below"
    )


def resolution_check(sampler: Sampler, key: Key[Array, ""]) -> Check:
    """Whether many light particles keep their weight and each has its chance."""
    told = np.full(MANY, LOG_LIGHT)
    told[MANY // HEAVY // 2 :: MANY // HEAVY] = 0.0
    light = told < 0.0
    try:
        draws = Draws(sampler, MANY, FEW_KEYS, num_steps=1)
        found = draws(key, told)
    except ConfigurationError as error:
        return Check("resolution", None, f"not for {MANY} particles: {error}")
    if np.all(found.counts == 1.0):
        return Check("resolution", None, "nothing is resampled")
    before = found.before[:, light].sum(1)
    if not before.all():
        detail = f"a log potential {-LOG_LIGHT:.1f} below the largest has weight zero"
        return Check("resolution", False, detail, blamed(sampler, "tell"))
    if before.mean() > MOST_LIGHT * MANY:
        reason = "not applicable: its weights do not span what log potentials do"
        return Check("resolution", None, reason)
    ratios = found.weights[:, light].sum(1) / before
    return judge_light_particles(sampler, ratios, found.counts[:, light] > 0)


def judge_light_particles(
    sampler: Sampler, ratios: np.ndarray, drawn: np.ndarray
) -> Check:
    """Judge what light particles keep of their weight, and who of them is drawn.

    Args:
        sampler: the sampler, for its place in the source.
        ratios: their weight after each of K draws, over that before, [K].
        drawn: whether each was drawn, [K, L].
    """
    where = blamed(sampler, "ask")
    spread = float(ratios.std(ddof=1)) / np.sqrt(len(ratios))
    error = float(ratios.mean()) - 1.0
    # Where none was ever drawn there is no spread to judge by.
    z = error / max(spread, 1e-6)
    if abs(z) > MAX_Z and abs(error) > ROUNDING:
        detail = (
            f"{drawn.shape[1]} particles with 2^-28 of the weight each keep "
            f"{1 + error:.3f} of what they weigh (z = {z:+.1f})"
        )
        return Check("resolution", False, detail, where)
    by_particle = drawn.sum(0).astype(np.float64)
    total = by_particle.sum()
    pairs = float(np.sum(by_particle * (by_particle - 1.0)) / 2.0)
    expected = total * (total - 1.0) / 2.0 / len(by_particle)
    z = (pairs - expected) / np.sqrt(max(expected, 1.0))
    if z > MAX_Z and pairs > MOST_PAIRS * expected:
        detail = (
            f"of {drawn.shape[1]} particles with 2^-28 of the weight each, the same "
            f"few are drawn again: {pairs:.0f} times, and {expected:.0f} by chance "
            f"(z = {z:+.1f})"
        )
        return Check("resolution", False, detail, where)
    return Check("resolution", True, "light particles are drawn as often as they weigh")
