"""Invariance to scale: adding c to all log potentials must change no decision.

If a path's log weight is a sum of log potentials with fixed coefficients, adding c to
each adds the same number to every path. The normalised target does not change, and so
no decision and no normalised weight may change under the same keys. Log evidence
changes by what each path gains,

    T c (product, equal lengths),  c (telescoping, terminal),  0 (uniform),

plus the gains of `auxiliary` targets. Adding c to all log corrections (log p - log q)
is a policy that is not normalised, and moves log evidence by T c. The gain is computed
from `path_log_weight`. The law applies if all paths gain the same. Weights that
saturate (reward, softmax) follow the law only far below zero, where the logarithm of a
reward equals its log-odds, and exp(reward) is 1.

Log potentials are multiples of 1/64, so that float32 adds up to 20,000 without
rounding. The logarithm of a mean is rounded to 2^-24 of its size. The tolerances follow
from that: one decision in thousands at |c| = 300, weights to 2 % at |c| = 20,000.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.robustness import Check, Programs
from tsi.bench.source_lines import places_of_functions
from tsi.explorer import Explorer
from tsi.sampler import Sampler
from tsi.targets.tabular import TabularTarget

NEAR, FAR = (10.0, -300.0, 300.0), (20_000.0, -20_000.0)
NEAR_FOR_POWERS = (10.0, -64.0, 64.0)
"""Shifts of log p for targets with a power of p."""
TAIL = -1024.0
"""Added to the tables if their paths do not gain the same; a multiple of 1/64."""
PROBE = 64.0
ULPS = 4.0
"""Allowed error of log evidence, in units in the last place of a float32."""


class Tolerance(NamedTuple):
    """The changes that a shift may cause.

    Attributes:
        runs: the share of runs whose decisions may change.
        weight: the relative change of a weight in the other runs.
    """

    runs: float
    weight: float


NEAR_TOLERANCE = Tolerance(0.01, 1e-3)
FAR_TOLERANCE = Tolerance(0.5, 0.02)


class Difference(NamedTuple):
    """The changes that a shift has caused.

    Attributes:
        runs: the share of runs whose decisions changed.
        weight: the largest relative change of a weight in the other runs.
        ulps: the largest error of log evidence in these, in units in the last place.
        evidence: the change of log evidence in the run with that error.
    """

    runs: float
    weight: float
    ulps: float
    evidence: float


def equal_length_table() -> TabularTarget:
    """Steps that forbid symbols, with log potentials in multiples of 1/64."""
    return TabularTarget(
        initial=[0.6, 0.4, 0.0],
        transition=[[0.4, 0.3, 0.3], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]],
        log_potentials=np.array(
            [[19, -13, 0], [-np.inf, 90, -70], [32, -np.inf, 13], [45, 6, -np.inf]]
        )
        / 64.0,
    )


def unequal_length_table() -> TabularTarget:
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


TABLES = {"equal lengths": equal_length_table, "unequal lengths": unequal_length_table}


def shift_table(target: TabularTarget, shift: float) -> TabularTarget:
    """The same table with `shift` added to all its log potentials."""
    shifted = copy.copy(target)
    shifted.log_potentials = target.log_potentials + shift
    return shifted


def scale_policy(target: TabularTarget, log_scale: float) -> TabularTarget:
    """The same table with `log_scale` added to all its log corrections and log p."""
    scaled = copy.copy(target)
    scaled.log_scale = target.log_scale + log_scale
    return scaled


def gain_of_paths(
    path_log_weight: Callable[..., Any], target: TabularTarget
) -> float | None:
    """The change of every path's log weight when 1 is added to all log potentials.

    None if it differs between paths, or is not proportional to the number added.
    """
    symbols, _ = target.paths()
    step_mask = symbols >= 0
    table = target.log_potentials[np.arange(target.max_steps), symbols]
    possible = np.all(np.isfinite(table) | ~step_mask, axis=1)
    step_mask, scores = step_mask[possible], np.where(step_mask, table, 0.0)[possible]

    def weights(shift: float) -> np.ndarray:
        shifted = jnp.asarray(scores + shift * step_mask, jnp.float32)
        return np.asarray(path_log_weight(shifted, jnp.asarray(step_mask)), np.float64)

    at_zero = weights(0.0)
    gains = [(weights(c) - at_zero) / c for c in (PROBE, -PROBE)]
    if not np.ptp(np.concatenate(gains)) < 1e-4:
        return None
    return float(np.mean(gains))


def total_gain(sampler: Sampler | Explorer, target: TabularTarget) -> float | None:
    """The change of log evidence per 1 added; None if the law does not apply."""
    claims = (sampler.path_log_weight, *getattr(sampler, "auxiliary", ()))
    gains = [gain_of_paths(c, target) for c in claims if c is not None]
    known_gains = [gain for gain in gains if gain is not None]
    return sum(known_gains) if len(known_gains) == len(claims) else None


def decisions_of(run: Any) -> np.ndarray:
    """The symbols of runs [R] and all integers that each step reports, [R, K].

    Runs that took another way to the same symbols may have other weights.
    """
    symbols = np.asarray(run.particles.symbols)
    integers = jnp.integer, jnp.bool_
    arrays = [
        np.asarray(leaf)
        for leaf in jax.tree.leaves((symbols, run.infos))
        if any(jnp.issubdtype(leaf.dtype, kind) for kind in integers)
    ]
    return np.concatenate([array.reshape(len(symbols), -1) for array in arrays], 1)


def difference(before: Any, after: Any, gain: float) -> Difference:
    """Compare runs [R] under the same keys, before and after a shift.

    Args:
        before: a `Run` of each key.
        after: the same with a shift.
        gain: the expected change of log evidence.
    """
    agreeing = np.all(decisions_of(before) == decisions_of(after), axis=1)
    weights = [
        np.asarray(r.state.log_weights, np.float64)[agreeing] for r in (before, after)
    ]
    evidence = [
        np.asarray(r.state.log_evidence, np.float64)[agreeing] for r in (before, after)
    ]
    runs = 1.0 - float(agreeing.mean())
    if not agreeing.any():
        return Difference(runs, np.inf, np.inf, np.nan)
    with np.errstate(invalid="ignore"):
        weight_differences = np.where(
            weights[0] == weights[1], 0.0, weights[1] - weights[0]
        )
        shifted = evidence[1] - evidence[0]
        both_zero = (evidence[0] == -np.inf) & (evidence[1] == -np.inf)
        errors = np.where(both_zero, 0.0, np.abs(shifted - gain))
    # A comparison with NaN is false, so NaN would pass.
    weight_differences, errors = (
        np.where(np.isnan(x), np.inf, x) for x in (weight_differences, errors)
    )
    largest = np.abs(np.stack(evidence)).max(0)
    # If the two cancel, the rounding error still has the scale of the partial sums.
    size = np.where(np.isfinite(largest), largest, 0.0)
    size = np.maximum(size, max(abs(gain), 1.0))
    ulps = errors / np.spacing(size.astype(np.float32))
    worst_index = int(np.argmax(ulps))
    return Difference(
        runs,
        float(np.expm1(np.minimum(np.abs(weight_differences).max(), 100.0))),
        float(ulps[worst_index]),
        float(shifted[worst_index]),
    )


def shift_checks(programs: Programs, key: Key[Array, ""]) -> list[Check]:
    """Whether the law holds, on tables of equal and of unequal lengths."""
    sampler = programs.sampler
    if sampler.path_log_weight is None:
        reason = "the sampler claims no target (path_log_weight is None)"
        return [Check("shift", None, reason)]
    gains_by_table = []
    for name, make in TABLES.items():
        base, shifts = 0.0, [*NEAR, *FAR]
        if total_gain(sampler, make()) is None:
            base, shifts = TAIL, [*NEAR, min(FAR)]
            name = f"{name}, {base:+g}"
        target = shift_table(make(), base)
        gain = total_gain(sampler, target)
        if gain is None:
            continue
        gains_by_table.append(f"{gain:.4g} ({name})")
        change = _find_change(programs, target, shift_table, gain, shifts, key)
        if change:
            # Whole runs are compared, so the cause may lie in either function.
            where = places_of_functions(sampler, "tell", "ask")
            detail = f"{name}: {change.format('log potentials')}"
            return [Check("shift", False, detail, where)]
    change = _find_change_of_policy(programs, key) if gains_by_table else ""
    if change:
        where = places_of_functions(sampler, "tell", "ask")
        detail = change.format("log corrections")
        return [Check("shift", False, detail, where)]
    if not gains_by_table:
        reason = "its path weight does not gain the same on all paths: no law of scale"
        return [Check("shift", None, reason)]
    gains = " and ".join(gains_by_table)
    return [Check("shift", True, f"c more on all log potentials is c times {gains}")]


def _find_change_of_policy(programs: Programs, key: Key[Array, ""]) -> str:
    """The forbidden change that another scale of the policy causes; empty if none."""
    sampler, target = programs.sampler, equal_length_table()
    if total_gain(sampler, target) is None:
        # There the weights are not rounded when a number is added.
        target = shift_table(target, TAIL)
    power = getattr(sampler, "power", 1.0)
    claims = (sampler.path_log_weight, *getattr(sampler, "auxiliary", ()))
    num_measures = sum(claim is not None for claim in claims)
    # With a power, log p itself is a part of weights, and its sums are rounded.
    shifts = [*NEAR, *FAR] if power == 1.0 else NEAR_FOR_POWERS
    gain = num_measures * power * target.max_steps
    return _find_change(programs, target, scale_policy, gain, shifts, key)


def _find_change(
    programs: Programs,
    target: TabularTarget,
    change: Callable[[TabularTarget, float], TabularTarget],
    gain: float,
    shifts: Sequence[float],
    key: Key[Array, ""],
) -> str:
    """The forbidden change that a shift causes; empty if there is none.

    Returns:
        A text in which ``{}`` stands for what was shifted.
    """
    before = jax.device_get(programs.first_call(target, key))
    for shift in shifts:
        allowed = FAR_TOLERANCE if shift in FAR else NEAR_TOLERANCE
        after = jax.device_get(programs.first_call(change(target, shift), key))
        differences = difference(before, after, gain * shift)
        what = f"{shift:+g} on all {{}}"
        if differences.runs > allowed.runs:
            return f"{what} changes decisions in {100 * differences.runs:.2g} % of runs"
        if differences.weight > allowed.weight:
            return f"{what} changes a weight by {100 * differences.weight:.2g} %"
        if differences.ulps > ULPS:
            return (
                f"{what} moves log evidence by {differences.evidence:.8g}, not by "
                f"{gain * shift:.8g} ({differences.ulps:.0f} units in the last place)"
            )
    return ""
