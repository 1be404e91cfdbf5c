"""The scale of log potentials means nothing: adding c to all of them changes no choice.

Where a path's log weight is a sum of log potentials with fixed coefficients, c more on
each adds the same number to every path: the normalised target is what it was, and so
must be every decision and every normalised weight under the same keys. Log evidence
moves by what each path gains,

    T c (product, equal lengths),  c (telescoping, terminal),  0 (uniform),

and by that of `auxiliary` targets too. What paths gain is read off `path_log_weight`
itself: the law holds for whatever claims that all of them gain the same, and not for
weights that saturate (reward, softmax).

Log potentials are multiples of 1/64, so that float32 adds up to 20,000 without
rounding. A logarithm of a mean does round, to 2^-24 of its size; what follows from that
is allowed: one decision in thousands at |c| = 300, weights to 2 % at |c| = 20,000.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.robustness import Check, Programs
from tsi.bench.source_lines import blamed
from tsi.explorer import Explorer
from tsi.sampler import Sampler
from tsi.targets.tabular import TabularTarget

NEAR, FAR = (10.0, -300.0, 300.0), (20_000.0, -20_000.0)
PROBE = 64.0
ULPS = 4.0
"""Units in the last place of a float32 that log evidence may be off by."""


class Tolerance(NamedTuple):
    """How much a shift may change.

    Attributes:
        runs: the share of runs that may decide otherwise.
        weight: the relative difference of a weight where decisions are the same.
    """

    runs: float
    weight: float


NEAR_TOLERANCE = Tolerance(0.01, 1e-3)
FAR_TOLERANCE = Tolerance(0.5, 0.02)


class Difference(NamedTuple):
    """What a shift changed.

    Attributes:
        runs: the share of runs that decided otherwise.
        weight: the largest relative difference of a weight, over the other runs.
        ulps: the largest error of log evidence there, in units in the last place.
        evidence: the change of log evidence in the run where that was.
    """

    runs: float
    weight: float
    ulps: float
    evidence: float


def in_64ths() -> TabularTarget:
    """Steps that forbid symbols, with log potentials in multiples of 1/64."""
    return TabularTarget(
        initial=[0.6, 0.4, 0.0],
        transition=[[0.4, 0.3, 0.3], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]],
        log_potentials=np.array(
            [[19, -13, 0], [-np.inf, 90, -70], [32, -np.inf, 13], [45, 6, -np.inf]]
        )
        / 64.0,
    )


def ending_in_64ths() -> TabularTarget:
    """Paths of unequal lengths, with log potentials in multiples of 1/64."""
    return TabularTarget(
        initial=[0.5, 0.35, 0.15],
        transition=[[0.4, 0.3, 0.3], [0.3, 0.35, 0.35], [1.0, 0.0, 0.0]],
        log_potentials=np.array(
            [[13, -26, 90], [26, 6, -38], [-19, 32, 38], [-45, 13, 51]]
        )
        / 64.0,
        end=2,
    )


TABLES = {"equal lengths": in_64ths, "unequal lengths": ending_in_64ths}


def shift_table(target: TabularTarget, shift: float) -> TabularTarget:
    """The same table with `shift` added to all its log potentials."""
    return TabularTarget(
        target.initial,
        target.transition,
        target.log_potentials + shift,
        end=target.end,
        proposal_initial=target.proposal_initial,
        proposal_transition=target.proposal_transition,
    )


def gain_of_paths(
    path_log_weight: Callable[..., Any], target: TabularTarget
) -> float | None:
    """By how much every path gains when 1 is added to all log potentials.

    None if they do not all gain the same, or do not gain in proportion.
    """
    symbols, _ = target.paths()
    live = symbols >= 0
    table = target.log_potentials[np.arange(target.max_steps), symbols]
    possible = np.all(np.isfinite(table) | ~live, axis=1)
    live, told = live[possible], np.where(live, table, 0.0)[possible]

    def weights(shift: float) -> np.ndarray:
        moved = jnp.asarray(told + shift * live, jnp.float32)
        return np.asarray(path_log_weight(moved, jnp.asarray(live)), np.float64)

    at_zero = weights(0.0)
    gains = [(weights(c) - at_zero) / c for c in (PROBE, -PROBE)]
    if not np.ptp(np.concatenate(gains)) < 1e-4:
        return None
    return float(np.mean(gains))


def total_gain(sampler: Sampler | Explorer, target: TabularTarget) -> float | None:
    """What log evidence gains for each 1 that is added; None where the law is void."""
    claims = (sampler.path_log_weight, *getattr(sampler, "auxiliary", ()))
    gains = [gain_of_paths(c, target) for c in claims if c is not None]
    known = [gain for gain in gains if gain is not None]
    return sum(known) if len(known) == len(claims) else None


def difference(before: Any, after: Any, gain: float) -> Difference:
    """Compare runs [R] under the same keys, before and after a shift.

    Args:
        before: a `Run` of each key.
        after: the same with a shift.
        gain: what log evidence should have gained.
    """
    symbols = [np.asarray(run.particles.symbols) for run in (before, after)]
    same = np.all(symbols[0] == symbols[1], axis=(1, 2))
    weights = [
        np.asarray(r.state.log_weights, np.float64)[same] for r in (before, after)
    ]
    evidence = [
        np.asarray(r.state.log_evidence, np.float64)[same] for r in (before, after)
    ]
    runs = 1.0 - float(same.mean())
    if not same.any():
        return Difference(runs, np.inf, np.inf, np.nan)
    with np.errstate(invalid="ignore"):
        apart = np.where(weights[0] == weights[1], 0.0, weights[1] - weights[0])
        moved = evidence[1] - evidence[0]
        alike = (evidence[0] == -np.inf) & (evidence[1] == -np.inf)
        wrong = np.where(alike, 0.0, np.abs(moved - gain))
    # NaN would pass for small.
    apart, wrong = (np.where(np.isnan(x), np.inf, x) for x in (apart, wrong))
    largest = np.abs(np.stack(evidence)).max(0)
    # Where the two cancel, what was added up on the way had the size of the gain.
    size = np.where(np.isfinite(largest), largest, 0.0)
    size = np.maximum(size, max(abs(gain), 1.0))
    ulps = wrong / np.spacing(size.astype(np.float32))
    worst = int(np.argmax(ulps))
    return Difference(
        runs,
        float(np.expm1(np.minimum(np.abs(apart).max(), 100.0))),
        float(ulps[worst]),
        float(moved[worst]),
    )


def shift_checks(programs: Programs, key: Key[Array, ""]) -> list[Check]:
    """Whether the law holds, on tables of equal and of unequal lengths."""
    sampler = programs.sampler
    if sampler.path_log_weight is None:
        reason = "the sampler claims no target (path_log_weight is None)"
        return [Check("shift", None, reason)]
    held = []
    for name, make in TABLES.items():
        gain = total_gain(sampler, make())
        if gain is None:
            continue
        held.append(f"{gain:.4g} ({name})")
        broken = _broken_by_shift(programs, make(), gain, key)
        if broken:
            # Whose fault it is shows only in what is compared here: the whole run.
            where = blamed(sampler, "tell", "ask")
            return [Check("shift", False, f"{name}: {broken}", where)]
    if not held:
        reason = "its path weight does not gain the same on all paths: no law of scale"
        return [Check("shift", None, reason)]
    told = " and ".join(held)
    return [Check("shift", True, f"c more on all log potentials is c times {told}")]


def _broken_by_shift(
    programs: Programs, target: TabularTarget, gain: float, key: Key[Array, ""]
) -> str:
    """What a shift changes that it must not; empty if nothing."""
    before = jax.device_get(programs.few(target, key))
    for shift in (*NEAR, *FAR):
        allowed = NEAR_TOLERANCE if shift in NEAR else FAR_TOLERANCE
        after = jax.device_get(programs.few(shift_table(target, shift), key))
        found = difference(before, after, gain * shift)
        what = f"{shift:+g} on all log potentials"
        if found.runs > allowed.runs:
            return f"{what} changes what {100 * found.runs:.2g} % of the runs decide"
        if found.weight > allowed.weight:
            return f"{what} changes a weight by {100 * found.weight:.2g} %"
        if found.ulps > ULPS:
            return (
                f"{what} moves log evidence by {found.evidence:.8g}, not by "
                f"{gain * shift:.8g} ({found.ulps:.0f} units in the last place)"
            )
    return ""
