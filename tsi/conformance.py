"""One public judge of samplers: `check_sampler(make_sampler)`.

It runs a sampler thousands of times on targets whose truth is known and on inputs made
to break it, and reports which promises of the contract it keeps:

- evidence: exp(log_evidence) is unbiased, |z| < 4;
- posterior: the weighted particles estimate p(x) exp(path_log_weight(x)) without bias,
  chi-square p > 0.001 (see `tsi.unbiasedness`);
- finished: a finished particle contributes nothing, whatever it is told;
- zero weights: all weights zero, or NaN potentials, never give NaN, and the evidence
  estimate is zero where the evidence is;
- ancestors: int32, within range, and no particle of zero weight is copied over another
  one while some particle has weight;
- permutation: told in reverse order, a sampler decides in reverse order; so does an
  explorer in whose first turn several rows are alike;
- requests, ending (explorers): stored prefixes exist, and runs end in time;
- keys: no key is used twice, or the line where one is;
- compiled: jit and vmap change nothing;
- batched: `tsi.batch`, or vmap over an explorer, gives each problem what it gets alone;
- reproducible: the same key gives the same run.

Samplers without a defined target (`path_log_weight=None`) skip the first two.

A broken promise comes with the line of the function that broke it, or of those whose
promise it is where one alone cannot be told; an error of the sampler's own with the
line that it passed through.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import Array, Key

from tsi.errors import ConformanceError, TsiError
from tsi.explorer import Explorer
from tsi.explorer_batch import batched_explorer_check
from tsi.explorer_checks import request_checks
from tsi.key_discipline import key_check
from tsi.linear_gaussian import LinearGaussianTarget
from tsi.permutation import permutation_check, row_permutation_check
from tsi.robustness import (
    Check,
    KnownTarget,
    Programs,
    compiled_check,
    driven_checks,
    finished_check,
    has_nan,
    same,
    zero_weight_checks,
)
from tsi.run import Run
from tsi.sampler import Sampler
from tsi.source_lines import blamed, raised_in
from tsi.step_keys import AnyKey, single_key
from tsi.tabular import TabularTarget
from tsi.tabular_examples import EXAMPLES, smooth
from tsi.unbiasedness import MeasureTest, judge_linear_gaussian, judge_tabular

MAX_Z = 4.0
MIN_P = 1e-3

KEEPERS = {
    "evidence": ("tell", "ask"),
    "posterior": ("tell", "ask"),
    "finished": ("tell", "ask"),
    "zero weights": ("tell", "ask"),
    "compiled": ("init", "ask", "tell"),
    "reproducible": ("init", "ask", "tell"),
}
"""Whose promise it is, where a check cannot tell which function broke it.

Weights are made in `tell` and divided among offspring in `ask`.
"""

Look = Callable[[], list[Check]]


class Report(NamedTuple):
    """What `check_sampler` found.

    Attributes:
        checks: every promise that was looked at, in order.
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no promise was broken."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The promises that were broken."""
        judged = (check for check in self.checks if check.passed is not None)
        return tuple(check for check in judged if not check.passed)

    def raise_if_failed(self) -> None:
        """Raise `ConformanceError` with the broken promises, if there are any."""
        if not self.passed:
            lines = "; ".join(f"{c.promise}: {_told(c)}" for c in self.failures)
            raise ConformanceError(f"The sampler breaks its contract. {lines}.")

    def __str__(self) -> str:
        words = {True: "kept", False: "BROKEN", None: "skipped"}
        width = max(len(check.promise) for check in self.checks)
        return "\n".join(
            f"{words[check.passed]:8}{check.promise:{width + 2}}{_told(check)}"
            for check in self.checks
        )


def _told(check: Check) -> str:
    return f"{check.detail} [{check.where}]" if check.where else check.detail


def _measure(
    target: KnownTarget, sampler: Sampler | Explorer, result: Run
) -> MeasureTest | None:
    state, claim = result.state, sampler.path_log_weight
    power = getattr(sampler, "power", 1.0)
    assert claim is not None
    auxiliary = getattr(sampler, "auxiliary", ())
    if isinstance(target, TabularTarget):
        known = target.truth(claim, power=power)
        others = sum(target.truth(weight).log_evidence for weight in auxiliary)
        return judge_tabular(
            target,
            known._replace(log_evidence=known.log_evidence + others),
            result.particles.symbols,
            state.log_weights,
            state.log_evidence,
        )
    truths = [target.truth(claim, power=power), *map(target.truth, auxiliary)]
    known_truths = [truth for truth in truths if truth is not None]
    if len(known_truths) < len(truths):
        return None
    total = sum(truth.log_evidence for truth in known_truths)
    return judge_linear_gaussian(
        known_truths[0]._replace(log_evidence=total),
        result.particles.x,
        state.log_weights,
        state.log_evidence,
    )


def target_checks(
    name: str, target: KnownTarget, sampler: Sampler | Explorer, result: Run
) -> list[Check]:
    """Whether many runs on a target estimate the measure that the sampler claims."""
    if sampler.path_log_weight is None:
        reason = "the sampler claims no target (path_log_weight is None)"
        return [Check(f"target, {name}", None, reason)]
    if has_nan((result.state.log_weights, result.state.log_evidence)):
        return [Check(f"evidence, {name}", False, "log weights or evidence are NaN")]
    measure = _measure(target, sampler, result)
    if measure is None:
        reason = "no closed form for this path weight"
        return [Check(f"target, {name}", None, reason)]
    return [
        Check(
            f"evidence, {name}",
            bool(abs(measure.z) < MAX_Z),
            f"mean {measure.evidence:.5g}, truth {measure.truth:.5g}, "
            f"z = {measure.z:+.2f}",
        ),
        Check(
            f"posterior, {name}",
            bool(measure.p_value > MIN_P),
            f"p = {measure.p_value:.3g}, {measure.degrees} degrees of freedom",
        ),
    ]


def check_sampler(
    make_sampler: Callable[[], Sampler | Explorer],
    *,
    targets: Mapping[str, KnownTarget] | None = None,
    num_particles: int = 8,
    num_runs: int = 20_000,
    key: AnyKey = None,
) -> Report:
    """Judge a sampler by the promises of the contract.

    Args:
        make_sampler: returns the sampler; called once.
        targets: targets of known truth by name; by default four tabular ones (smooth,
            peaked, impossible prefixes, unequal lengths) and a linear-Gaussian one.
        num_particles: N, a number that the sampler can use.
        num_runs: runs on each target; 20,000 notice a bias of about 2 %.
        key: of either style (see `tsi.step_keys`), by default that of seed 0; the same
            key gives the same report.

    Returns:
        A `Report`: print it, read `passed`, or call `raise_if_failed()`.
    """
    checks = checks_of(
        make_sampler(),
        targets=targets,
        num_particles=num_particles,
        num_runs=num_runs,
        key=key,
    )
    return Report(tuple(checks))


def known_targets() -> dict[str, KnownTarget]:
    """Four tables and a linear-Gaussian model, by name."""
    targets: dict[str, KnownTarget] = {name: make() for name, make in EXAMPLES.items()}
    return targets | {"linear-Gaussian": LinearGaussianTarget()}


def checks_of(
    sampler: Sampler | Explorer,
    *,
    targets: Mapping[str, KnownTarget] | None = None,
    num_particles: int = 8,
    num_runs: int = 20_000,
    key: AnyKey = None,
) -> Iterator[Check]:
    """The promises one by one, each looked at when it is asked for.

    Arguments as in `check_sampler`.
    """
    key = jax.random.key(0) if key is None else single_key(key)
    targets = known_targets() if targets is None else targets
    raised: set[str] = set()
    for promise, look in _looks(sampler, targets, num_particles, num_runs, key):
        try:
            found = look()
        except TsiError:
            # A sentence to whoever chose the numbers, not a broken promise.
            raise
        except Exception as error:
            line = raised_in(sampler, error)
            if line is None:
                raise
            found = [_error_check(promise, error, line, again=line in raised)]
            raised.add(line)
        yield from (_located(check, sampler) for check in found)


def _looks(
    sampler: Sampler | Explorer,
    targets: Mapping[str, KnownTarget],
    num_particles: int,
    num_runs: int,
    key: Key[Array, ""],
) -> Iterator[tuple[str, Look]]:
    """Names of promises, and how to look at them."""
    key_targets, key_breaking, key_driven = jax.random.split(key, 3)
    programs = Programs(sampler, num_particles, num_runs)

    def on_target(index: int, name: str, target: KnownTarget) -> list[Check]:
        result = programs(target, jax.random.fold_in(key_targets, index))
        return target_checks(name, target, sampler, result)

    yield "keys", lambda: [key_check(sampler, num_particles, key_driven)]
    for index, (name, target) in enumerate(targets.items()):
        yield f"target, {name}", partial(on_target, index, name, target)
    yield "finished", lambda: [finished_check(programs, key_breaking)]
    yield "zero weights", lambda: zero_weight_checks(programs, key_breaking)
    if isinstance(sampler, Explorer):
        explores = (sampler, num_particles, key_driven)
        yield "requests", lambda: request_checks(*explores)
        yield "batched", lambda: [batched_explorer_check(*explores)]
        yield "permutation", lambda: [row_permutation_check(*explores)]
    else:
        driven = (sampler, num_particles, key_driven)
        yield "batched", lambda: driven_checks(*driven)
        yield "permutation", lambda: [permutation_check(*driven)]
    yield "reproducible", lambda: _repeated(programs, key_breaking)


def _repeated(programs: Programs, key: Key[Array, ""]) -> list[Check]:
    """Whether a run is the same alone, and the same again."""
    once, again = programs(smooth(), key), programs(smooth(), key)
    unchanged = same((once.particles, once.state), (again.particles, again.state))
    detail = (
        "same key, same run" if unchanged else "the same key gave two different runs"
    )
    return [
        compiled_check(programs, key, once),
        Check("reproducible", unchanged, detail),
    ]


def _error_check(promise: str, error: Exception, line: str, *, again: bool) -> Check:
    said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if again:
        return Check(promise, None, f"the same line raised again: {said}")
    return Check(promise, False, said, line)


def _located(check: Check, sampler: Sampler | Explorer) -> Check:
    """A broken promise with its place, if it has none yet."""
    parts = KEEPERS.get(check.promise.partition(",")[0], ())
    if check.passed is not False or check.where or not parts:
        return check
    return check._replace(where=blamed(sampler, *parts))
