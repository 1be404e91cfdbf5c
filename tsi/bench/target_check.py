"""One public judge of targets: `check_target(target, params)`.

A walk of a few particles is taken and looked at; what a target says of it must agree
with itself:

- shapes: a step changes no shape or dtype, and numbers are one per particle;
- numbers: log potentials and corrections are neither NaN nor +inf;
- finished: none at the start, absorbing, and a finished particle stays as it is;
- own numbers: the first n of N particles are the n particles, and a forked particle
  draws what its own place draws;
- gather: a particle says at its new place what it said at its old one;
- rows: step t may be a number for each row;
- densities: log p - log q of a step is what `log_prob` and `log_proposal` gain by it,
  and without `log_proposal` a target that can `replay` proposes from its policy;
- truncate: a prefix cut back says what it said then, is unfinished, and goes on as it
  did; one that is short enough stays as it is;
- replay: repeated steps make the prefixes that they were, from any row's beginning;
- proposal: p/q is one on average over many particles, |z| < 4;
- truth, where the target has one: importance sampling finds its evidence, |z| < 4;
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
from tsi.bench.target_measure import proposal_check, truth_check
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
    """Judge a target by the promises of the contract.

    Args:
        target: any `tsi.target.Target`.
        params: its parameters.
        num_particles: N of the walks, at least 2.
        num_draws: particles for means; 0 leaves those checks out, for targets on which
            so many cost too much.
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
    looks = _looks(walker, target, params, num_particles, num_draws, key)
    return Report(tuple(_look_at_each(looks)), "target")


def _looks(
    walker: Walker, target: Any, params: Any, size: int, num_draws: int, key: Any
) -> Iterator[tuple[str, Callable[[], Check]]]:
    key_walk, key_other, key_draws, key_truth = jax.random.split(key, 4)
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
        yield "proposal", lambda: proposal_check(walker, key_draws, num_draws)
        yield "truth", lambda: truth_check(target, params, key_truth, num_draws)


def _look_at_each(looks: Iterator[tuple[str, Callable[[], Check]]]) -> Iterator[Check]:
    """Each promise; an error of the target's own breaks the one it came up in."""
    for promise, look in looks:
        try:
            found = look()
        except TsiError:
            raise
        except Exception as error:
            said = (str(error).splitlines() or [""])[0]
            found = Check(promise, False, f"{type(error).__name__}: {said}")
        yield found
        if promise == "shapes" and not found.passed:
            # Nothing else can be compiled, or compared.
            return
