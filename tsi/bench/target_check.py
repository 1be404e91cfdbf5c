"""`check_target(target, params)`: tests of a target against the contract.

A few particles take some steps, and the target's numbers must be consistent:

- shapes: a step changes no shape or dtype, and numbers are one per particle;
- numbers: log potentials and corrections are neither NaN nor +inf;
- finished: no particle starts finished, a finished particle stays finished and is not
  changed;
- own numbers: the first n of N particles equal a run of n particles, and a forked
  particle draws the random numbers of its new index;
- gather: a particle has the same numbers at its new index;
- rows: step t may be one number per row;
- densities: log p - log q of a step equals the increments of `log_prob` and
  `log_proposal`, and a target with `replay` and without `log_proposal` proposes from
  its policy;
- truncate: a prefix that is cut back has its earlier numbers, is unfinished, and
  continues as before; a prefix that is short enough is not changed;
- replay: repeating the steps of a prefix from an empty row gives the same prefix;
- independence: particles with one prefix draw their steps independently, p > 3e-5;
- proposal: the mean of p/q over many particles is one, |z| < 4;
- truth, if the target has one: importance sampling estimates its evidence, |z| < 4;
- compiled: jit and vmap change nothing.

Capabilities that a target does not have are skipped.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from tsi.bench.report import Report
from tsi.bench.robustness import Check
from tsi.bench.target_capabilities import (
    densities_check,
    replay_check,
    truncate_check,
)
from tsi.bench.target_contract import (
    compiled_check,
    finished_check,
    gather_check,
    numbers_check,
    own_numbers_check,
    rows_check,
    shapes_check,
)
from tsi.bench.target_measure import (
    independence_check,
    proposal_check,
    truth_check,
)
from tsi.bench.target_walk import Walker
from tsi.errors import ConfigurationError, TsiError
from tsi.step_keys import AnyKey, single_key


def check_target(
    target: Any,
    params: Any = None,
    *,
    num_particles: int = 4,
    num_draws: int = 4_000,
    max_steps: int | None = None,
    key: AnyKey = None,
) -> Report:
    """Test a target against the promises of the contract.

    Args:
        target: any `tsi.target.Target`.
        params: its parameters.
        num_particles: N of the walks, at least 2.
        num_draws: number of particles for means; 0 skips the checks that need means,
            for expensive targets.
        max_steps: step limit; by default the target's. Walks end after six steps.
        key: of either style (see `tsi.step_keys`), by default that of seed 0; the same
            key gives the same report.

    Returns:
        A `Report`: print it, read `passed`, or call `raise_if_failed()`.

    Raises:
        ConfigurationError: for fewer than two particles.
    """
    if num_particles < 2:
        raise ConfigurationError(
            "check_target compares particles with one another, and num_particles is "
            f"{num_particles}. Give at least 2."
        )
    key = jax.random.key(0) if key is None else single_key(key)
    walker = Walker(target, params, max_steps)
    named_checks = _named_checks(walker, target, params, num_particles, num_draws, key)
    return Report(tuple(_run_checks(named_checks)), "target")


def _named_checks(
    walker: Walker, target: Any, params: Any, size: int, num_draws: int, key: Any
) -> Iterator[tuple[str, Callable[[], Check]]]:
    key_walk, key_other, key_draws, key_truth = jax.random.split(key, 4)
    key_pairs = jax.random.fold_in(key, 4)
    yield "shapes", lambda: shapes_check(walker, key_walk, size)
    walk = walker.walk(key_walk, size)
    yield "numbers", lambda: numbers_check(walk)
    yield "finished", lambda: finished_check(walker, walk, key_other, size)
    yield "own numbers", lambda: own_numbers_check(walker, walk, key_walk, size)
    yield "gather", lambda: gather_check(walker, walk, size)
    yield "rows", lambda: rows_check(walker, walk, key_walk, size)
    yield "densities", lambda: densities_check(walker, walk)
    yield "truncate", lambda: truncate_check(walker, walk, key_walk, size)
    yield "replay", lambda: replay_check(walker, walk, key_walk, size)
    yield "compiled", lambda: compiled_check(walker, walk, key_walk, size)
    if num_draws:
        yield "independence", lambda: independence_check(walker, key_pairs, num_draws)
        yield "proposal", lambda: proposal_check(walker, key_draws, num_draws)
        yield "truth", lambda: truth_check(target, params, key_truth, num_draws)


def _run_checks(
    named_checks: Iterator[tuple[str, Callable[[], Check]]],
) -> Iterator[Check]:
    """Run the checks; an error raised by the target fails its check."""
    for promise, run_check in named_checks:
        try:
            check = run_check()
        except TsiError:
            raise
        except Exception as error:
            message = (str(error).splitlines() or [""])[0]
            check = Check(promise, False, f"{type(error).__name__}: {message}")
        yield check
        if promise == "shapes" and not check.passed:
            # The other checks would fail to compile or compare.
            return
