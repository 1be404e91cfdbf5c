"""`check_sampler(make_sampler)`: tests of a sampler against the contract.

It runs a sampler thousands of times on targets of known evidence and on adversarial
inputs, and reports which promises of the contract it keeps:

- evidence: exp(log_evidence) is unbiased, |z| < 4 (see `tsi.bench.unbiasedness`);
- posterior: the weighted particles estimate p(x) exp(path_log_weight(x)) without bias,
  chi-square p > 0.0001;
- pooled: the same for all targets together (see `tsi.bench.pooled`);
- shift: a number added to all log potentials changes no decision (see
  `tsi.bench.shift_law`);
- range, resolution: particles of small weight are not lost (see
  `tsi.bench.far_below`);
- counts: invalid potentials and lost populations are counted (see
  `tsi.bench.reported_counts`);
- finished: the log potentials of particles that have finished have no effect;
- zero weights: potentials of -inf, NaN or +inf never give NaN, and the evidence
  estimate is zero if the evidence is zero;
- ancestors: int32, within range, and no particle of zero weight is copied over another
  one while some particle has weight;
- permutation: decisions do not depend on the order of particles, finished ones
  included, or on the order of an explorer's rows in the first turn;
- requests, ending (explorers): requested prefixes exist, and runs end in time;
- keys: no key is used twice, however it was derived;
- compiled: jit and vmap change nothing;
- batched: with `tsi.batch`, or vmap over an explorer, each problem has the result of
  its own run;
- reproducible: the same key gives the same run.

By default there are ten targets and up to three numbers of particles (see
`tsi.bench.suite`). A sampler that keeps all promises fails one by chance with
probability below 0.003.

Samplers without a target (`path_log_weight=None`) skip the checks of a target.

A broken promise is reported with the line of the function that broke it, or with the
lines of all functions that may have broken it. An error that the sampler raises is
reported with its line.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import jax
from jaxtyping import Array, Key

from tsi.bench.explorer_batch import batched_explorer_check
from tsi.bench.explorer_checks import request_checks
from tsi.bench.far_below import range_check, resolution_check
from tsi.bench.key_discipline import key_check
from tsi.bench.known_truth import KnownTarget, measure
from tsi.bench.offspring import Draws
from tsi.bench.permutation import permutation_check, row_permutation_check
from tsi.bench.pooled import pooled_p, pooled_z
from tsi.bench.report import Report
from tsi.bench.reported_counts import counts_check
from tsi.bench.robustness import (
    Check,
    Programs,
    compiled_check,
    driven_checks,
    finished_check,
    has_nan,
    states_agree,
    zero_weight_checks,
)
from tsi.bench.shift_law import shift_checks
from tsi.bench.source_lines import line_of_error, places_of_functions
from tsi.bench.suite import Trial, default_trials, trials_of
from tsi.bench.target_check import check_target
from tsi.bench.unbiasedness import MeasureTest
from tsi.errors import TsiError
from tsi.explorer import Explorer
from tsi.run import Run
from tsi.sampler import Sampler
from tsi.step_keys import AnyKey, single_key
from tsi.targets.examples import smooth

__all__ = ["Check", "Report", "check_sampler", "check_target", "checks_of"]

MAX_Z = 4.0
MIN_P = 1e-4

FUNCTIONS_OF = {
    "evidence": ("tell", "ask"),
    "posterior": ("tell", "ask"),
    "pooled": ("tell", "ask"),
    "finished": ("tell", "ask"),
    "zero weights": ("tell", "ask"),
    "compiled": ("init", "ask", "tell"),
    "reproducible": ("init", "ask", "tell"),
}
"""The functions that may break a promise, for checks that cannot tell which one did.

`tell` computes weights, and `ask` divides them among offspring.
"""

RunCheck = Callable[[], list[Check]]


def target_checks(
    name: str, target: KnownTarget, sampler: Sampler | Explorer, result: Run
) -> list[Check]:
    """Checks whether many runs estimate the measure that the sampler targets."""
    return _judge_target(name, target, sampler, result)[0]


def _judge_target(
    name: str, target: KnownTarget, sampler: Sampler | Explorer, result: Run
) -> tuple[list[Check], MeasureTest | None]:
    if sampler.path_log_weight is None:
        reason = "the sampler claims no target (path_log_weight is None)"
        return [Check(f"target, {name}", None, reason)], None
    if has_nan((result.state.log_weights, result.state.log_evidence)):
        detail = "log weights or evidence are NaN"
        return [Check(f"evidence, {name}", False, detail)], None
    test = measure(target, sampler, result.particles, result.state)
    if test is None:
        reason = "the target does not know the truth of this path weight"
        return [Check(f"target, {name}", None, reason)], None
    evidence = Check(
        f"evidence, {name}",
        bool(abs(test.z) < MAX_Z),
        f"{test.ratio:.5g} of the truth, whose log is {test.log_truth:.5g}; "
        f"z = {test.z:+.2f}",
    )
    checks = [evidence]
    if test.p_value == test.p_value:
        detail = f"p = {test.p_value:.3g}, {test.degrees} degrees of freedom"
        is_kept = bool(test.p_value > MIN_P)
        checks.append(Check(f"posterior, {name}", is_kept, detail))
    return checks, test


def pooled_check(measures: Sequence[MeasureTest]) -> Check:
    """Whether all targets together show no bias."""
    if len(measures) < 2:
        return Check("pooled", None, "fewer than two targets are judged")
    error, z = pooled_z(measures)
    p_value = pooled_p(measures)
    return Check(
        "pooled",
        bool(abs(z) < MAX_Z and p_value > MIN_P),
        f"evidence {100 * error:+.2f} % off, z = {z:+.2f}; p of all = {p_value:.3g}",
    )


def check_sampler(
    make_sampler: Callable[[], Sampler | Explorer],
    *,
    targets: Mapping[str, KnownTarget] | None = None,
    num_particles: int = 8,
    num_runs: int = 20_000,
    key: AnyKey = None,
) -> Report:
    """Test a sampler against the promises of the contract.

    Args:
        make_sampler: returns the sampler; called once.
        targets: targets by name, each with a method `truth` (see
            `tsi.bench.known_truth`); by default those of `tsi.bench.suite`.
        num_particles: N, a number that the sampler can use. Some of the default targets
            are run with fewer or more particles, if the sampler can use these.
        num_runs: runs per target; 20,000 detect a bias of about 2 % on one target, and
            of 1 % on all default targets together.
        key: of either style (see `tsi.step_keys`), by default that of seed 0; the same
            key gives the same report.

    Returns:
        A `Report`: print it, read `passed`, or call `raise_if_failed()`.

    Raises:
        ConfigurationError: the sampler cannot use N particles, or a target has no
            `truth`.
    """
    checks = checks_of(
        make_sampler(),
        targets=targets,
        num_particles=num_particles,
        num_runs=num_runs,
        key=key,
    )
    return Report(tuple(checks))


def checks_of(
    sampler: Sampler | Explorer,
    *,
    targets: Mapping[str, KnownTarget] | None = None,
    num_particles: int = 8,
    num_runs: int = 20_000,
    key: AnyKey = None,
    first: Sequence[str] = (),
) -> Iterator[Check]:
    """Test the promises one by one, as the iterator advances.

    Args:
        sampler: the sampler.
        targets: as in `check_sampler`.
        num_particles: N.
        num_runs: runs on each target.
        key: as in `check_sampler`.
        first: promises to test before the others, such as "shift".
    """
    key = jax.random.key(0) if key is None else single_key(key)
    if targets is None:
        trials = default_trials(sampler, num_particles)
    else:
        trials = trials_of(targets, num_particles)
    error_lines: set[str] = set()
    named_checks = _named_checks(sampler, trials, num_particles, num_runs, key)
    # The sort is stable, so the others keep their order.
    named_checks.sort(
        key=lambda run_check: (
            first.index(run_check[0]) if run_check[0] in first else len(first)
        )
    )
    for promise, run_check in named_checks:
        try:
            checks = run_check()
        except TsiError:
            # An invalid argument of the caller, not a broken promise.
            raise
        except Exception as error:
            line = line_of_error(sampler, error)
            if line is None:
                raise
            checks = [
                _error_check(promise, error, line, is_repeated=line in error_lines)
            ]
            error_lines.add(line)
        yield from (_add_place(check, sampler) for check in checks)


def _named_checks(
    sampler: Sampler | Explorer,
    trials: Sequence[Trial],
    num_particles: int,
    num_runs: int,
    key: Key[Array, ""],
) -> list[tuple[str, RunCheck]]:
    """Names of promises, and the functions that test them."""
    key_targets, key_breaking, key_driven = jax.random.split(key, 3)
    sizes = {trial.num_particles for trial in trials} | {num_particles}
    # With more particles there are fewer runs, for the same total work.
    runs_of = {
        size: max(1, num_runs * min(num_particles, size) // size) for size in sizes
    }
    programs = {size: Programs(sampler, size, runs_of[size]) for size in sizes}
    default_programs = programs[num_particles]
    measures: list[MeasureTest] = []
    driven = (sampler, num_particles, key_driven)

    def on_target(index: int, trial: Trial) -> list[Check]:
        runs = programs[trial.num_particles]
        result = runs(trial.target, jax.random.fold_in(key_targets, index))
        checks, test = _judge_target(trial.name, trial.target, sampler, result)
        measures.extend([] if test is None else [test])
        return checks

    named_checks: list[tuple[str, RunCheck]] = [("keys", lambda: [key_check(*driven)])]
    for index, trial in enumerate(trials):
        named_checks.append((f"target, {trial.name}", partial(on_target, index, trial)))
    named_checks += [
        ("pooled", lambda: [pooled_check(measures)]),
        ("shift", lambda: shift_checks(default_programs, key_breaking)),
        ("finished", lambda: [finished_check(default_programs, key_breaking)]),
        ("zero weights", lambda: zero_weight_checks(default_programs, key_breaking)),
        ("counts", lambda: [counts_check(*driven)]),
    ]
    if isinstance(sampler, Explorer):
        named_checks += [
            ("requests", lambda: request_checks(sampler, *driven[1:])),
            ("batched", lambda: [batched_explorer_check(sampler, *driven[1:])]),
            ("permutation", lambda: [row_permutation_check(sampler, *driven[1:])]),
        ]
    else:
        named_checks += [
            ("batched", lambda: driven_checks(sampler, *driven[1:])),
            ("draws", lambda: _draw_checks(sampler, *driven[1:])),
        ]
    named_checks.append(
        ("reproducible", lambda: _reproducible_checks(default_programs, key_breaking))
    )
    return named_checks


def _draw_checks(
    sampler: Sampler, num_particles: int, key: Key[Array, ""]
) -> list[Check]:
    """Checks of the draw of ancestors, for samplers that are not explorers."""
    draws = Draws(sampler, num_particles)
    checks = [permutation_check(sampler, num_particles, key, draws)]
    if sampler.path_log_weight is not None:
        checks.append(range_check(sampler, draws, num_particles, key))
        checks.append(resolution_check(sampler, key))
    return checks


def _reproducible_checks(programs: Programs, key: Key[Array, ""]) -> list[Check]:
    """Whether a run equals a run without vmap, and a second run with the same key."""
    first, second = (
        programs.first_call(smooth(), key),
        programs.first_call(smooth(), key),
    )
    unchanged = states_agree(
        (first.particles, first.state), (second.particles, second.state)
    )
    detail = (
        "same key, same run" if unchanged else "the same key gave two different runs"
    )
    return [
        compiled_check(programs, key, first),
        Check("reproducible", unchanged, detail),
    ]


def _error_check(
    promise: str, error: Exception, line: str, *, is_repeated: bool
) -> Check:
    message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if is_repeated:
        return Check(promise, None, f"the same line raised again: {message}")
    return Check(promise, False, message, line)


def _add_place(check: Check, sampler: Sampler | Explorer) -> Check:
    """Add the source lines to a broken promise that has none."""
    parts = FUNCTIONS_OF.get(check.promise.partition(",")[0], ())
    if check.passed is not False or check.where or not parts:
        return check
    return check._replace(where=places_of_functions(sampler, *parts))
