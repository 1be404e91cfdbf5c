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
- compiled: jit and vmap change nothing;
- batched: `tsi.batch` gives each problem what it gets alone;
- reproducible: the same key gives the same run.

Samplers without a defined target (`path_log_weight=None`) skip the first two.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.batch import batch
from tsi.errors import ConformanceError
from tsi.linear_gaussian import LinearGaussianTarget
from tsi.run import Run, run
from tsi.sampler import Sampler
from tsi.tabular import EXAMPLES, TabularTarget, smooth, unequal_lengths
from tsi.unbiasedness import MeasureTest, judge_linear_gaussian, judge_tabular

MAX_Z = 4.0
MIN_P = 1e-3

KnownTarget = TabularTarget | LinearGaussianTarget


class Check(NamedTuple):
    """One promise: its name, whether it is kept (None: skipped), and the evidence."""

    promise: str
    passed: bool | None
    detail: str


class Report(NamedTuple):
    """What `check_sampler` found.

    Attributes:
        checks: every promise that was looked at, in order.
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no promise was broken."""
        return all(check.passed is not False for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The promises that were broken."""
        return tuple(check for check in self.checks if check.passed is False)

    def raise_if_failed(self) -> None:
        """Raise `ConformanceError` with the broken promises, if there are any."""
        if not self.passed:
            lines = "; ".join(f"{c.promise}: {c.detail}" for c in self.failures)
            raise ConformanceError(f"The sampler breaks its contract. {lines}.")

    def __str__(self) -> str:
        words = {True: "kept", False: "BROKEN", None: "skipped"}
        width = max(len(check.promise) for check in self.checks)
        return "\n".join(
            f"{words[check.passed]:8}{check.promise:{width + 2}}{check.detail}"
            for check in self.checks
        )


class _Programs:
    """Compiled runs of one sampler; tabular targets of one shape share a program."""

    def __init__(self, sampler: Sampler, num_particles: int, num_runs: int) -> None:
        self.sampler, self.num_particles = sampler, num_particles
        self.num_runs = num_runs
        self.programs: dict[Any, Callable[..., Run]] = {}

    def __call__(self, target: KnownTarget, key: Key[Array, ""]) -> Run:
        """`num_runs` runs under `split(key, num_runs)`."""
        params = target.params if isinstance(target, TabularTarget) else None
        shape = id(target) if params is None else params.log_potentials.shape
        if shape not in self.programs:
            self.programs[shape] = jax.jit(
                jax.vmap(
                    lambda key, params: run(
                        self.sampler, target, key, self.num_particles, params
                    ),
                    in_axes=(0, None),
                )
            )
        return self.programs[shape](jax.random.split(key, self.num_runs), params)


def _has_nan(tree: Any) -> bool:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return any(np.isnan(leaf).any() for leaf in leaves if leaf.dtype.kind == "f")


def _same(first: Any, second: Any, tolerance: float = 0.0) -> bool:
    """Whether two states agree: integers exactly, floats within a tolerance."""

    def agree(a: Any, b: Any) -> bool:
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype.kind != "f":
            return bool(np.array_equal(a, b))
        return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance))

    return all(jax.tree.leaves(jax.tree.map(agree, first, second)))


def _measure(target: KnownTarget, sampler: Sampler, result: Run) -> MeasureTest | None:
    state, claim = result.state, sampler.path_log_weight
    assert claim is not None
    if isinstance(target, TabularTarget):
        return judge_tabular(
            target,
            target.truth(claim),
            result.particles.symbols,
            state.log_weights,
            state.log_evidence,
        )
    truth = target.truth(claim)
    if truth is None:
        return None
    return judge_linear_gaussian(
        truth, result.particles.x, state.log_weights, state.log_evidence
    )


def _target_checks(
    name: str, target: KnownTarget, sampler: Sampler, result: Run
) -> list[Check]:
    if sampler.path_log_weight is None:
        reason = "the sampler claims no target (path_log_weight is None)"
        return [Check(f"target, {name}", None, reason)]
    if _has_nan((result.state.log_weights, result.state.log_evidence)):
        return [Check(f"evidence, {name}", False, "log weights or evidence are NaN")]
    measure = _measure(target, sampler, result)
    if measure is None:
        reason = "no closed form for this path weight"
        return [Check(f"target, {name}", None, reason)]
    return [
        Check(
            f"evidence, {name}",
            abs(measure.z) < MAX_Z,
            f"mean {measure.evidence:.5g}, truth {measure.truth:.5g}, "
            f"z = {measure.z:+.2f}",
        ),
        Check(
            f"posterior, {name}",
            measure.p_value > MIN_P,
            f"p = {measure.p_value:.3g}, {measure.degrees} degrees of freedom",
        ),
    ]


def _finished_check(programs: _Programs, key: Key[Array, ""]) -> Check:
    quiet, noisy = unequal_lengths(), unequal_lengths()
    expected = programs(quiet, key)
    for idle in (7.0, np.nan):
        noisy.idle = idle
        result = programs(noisy, key)
        same = _same(
            (expected.state.log_weights, expected.state.log_evidence),
            (result.state.log_weights, result.state.log_evidence),
            1e-6,
        ) and _same(expected.particles, result.particles)
        if not same:
            return Check(
                "finished",
                False,
                f"telling {idle} for particles that had finished changes the run",
            )
    return Check("finished", True, "what a finished particle is told changes nothing")


def _zero_weight_checks(programs: _Programs, key: Key[Array, ""]) -> list[Check]:
    claim = programs.sampler.path_log_weight
    checks = []
    for name, value in (("all zero", -np.inf), ("all NaN", np.nan)):
        for step in (0, 1, 3):
            target = smooth()
            target.log_potentials[step] = value
            state = programs(target, key).state
            log_evidence = np.asarray(state.log_evidence)
            bad = ""
            if _has_nan((state.log_weights, log_evidence)):
                bad = "log weights or evidence are NaN"
            if not bad and claim is not None and value == -np.inf:
                truth = target.truth(claim).log_evidence
                if truth == -np.inf and not np.all(log_evidence == -np.inf):
                    bad = "the evidence is zero and its estimate is not"
            if bad:
                detail = f"potentials {name} at step {step}: {bad}"
                checks.append(Check("zero weights", False, detail))
    return checks or [Check("zero weights", True, "all zero and NaN are survived")]


def _synthetic(key: Key[Array, ""], shape: tuple[int, ...]) -> tuple[Array, ...]:
    """Potentials, corrections and finished flags [T, ..., N] that no target gives."""
    key_potential, key_correction, key_finish, key_zero = jax.random.split(key, 4)
    log_potentials = 2.0 * jax.random.normal(key_potential, shape)
    zeros = jax.random.bernoulli(key_zero, 0.25, shape)
    finished = jnp.cumsum(jax.random.bernoulli(key_finish, 0.1, shape), axis=0) > 0
    return (
        jnp.where(zeros, -jnp.inf, log_potentials),
        0.3 * jax.random.normal(key_correction, shape),
        finished,
    )


def _drive(
    sampler: Sampler, keys: Any, num_particles: int, told: tuple[Array, ...]
) -> tuple[Any, tuple[Any, Array]]:
    """Ask and tell without a target: the last state; states asked, ancestors, [T]."""
    fold = jax.random.fold_in
    fold = jax.vmap(fold, (0, None)) if keys.ndim else fold

    def step(state: Any, row: tuple[Array, ...]) -> tuple[Any, tuple[Any, Array]]:
        t, *rest = row
        asked, ancestors = sampler.ask(fold(keys, t), state)
        told, _ = sampler.tell(fold(keys, t), asked, *rest)
        return told, (state, ancestors)

    state = sampler.init(keys, num_particles)
    return jax.lax.scan(step, state, (jnp.arange(len(told[0])), *told))


NUM_PROBLEMS = 3
NUM_STEPS = 6


def _driven_checks(
    sampler: Sampler, num_particles: int, key: Key[Array, ""]
) -> list[Check]:
    """Ancestors and batching, driven by made-up numbers."""
    key_told, key_problems = jax.random.split(key)
    shape = (NUM_STEPS, NUM_PROBLEMS, num_particles)
    told = _synthetic(key_told, shape)
    keys = jax.random.split(key_problems, NUM_PROBLEMS)
    flat = tuple(array.reshape(NUM_STEPS, -1) for array in told)
    lifted = batch(sampler, NUM_PROBLEMS)
    together, (_, all_parents) = jax.jit(
        lambda k, f: _drive(lifted, k, num_particles, f)
    )(keys, flat)
    alone = jax.jit(lambda k, f: _drive(sampler, k, num_particles, f))
    checks, broken, differs = [], "", ""
    for problem in range(NUM_PROBLEMS):
        rows = tuple(array[:, problem] for array in told)
        state, (asked, ancestors) = alone(keys[problem], rows)
        for t in range(NUM_STEPS):
            weights = np.asarray(asked.log_weights[t])
            parents = np.asarray(ancestors[t])
            moved = parents != np.arange(num_particles)
            if parents.dtype != np.int32 or parents.shape != (num_particles,):
                broken = f"ancestors are {parents.dtype} of shape {parents.shape}"
            elif parents.min() < 0 or parents.max() >= num_particles:
                broken = f"ancestors outside [0, {num_particles}) at step {t}"
            elif np.isinf(weights[parents[moved]]).any():
                broken = f"a particle of zero weight was copied at step {t}"
            offset = problem * num_particles
            mine = np.asarray(all_parents[t]).reshape(NUM_PROBLEMS, -1)[problem]
            if not np.array_equal(mine - offset, parents):
                differs = f"ancestors of problem {problem} differ at step {t}"
        mine = jax.tree.map(lambda leaf, p=problem: leaf[p], together)
        if not differs and not _same(mine, state, 1e-5):
            differs = f"the state of problem {problem} differs from its own run"
    checks.append(Check("ancestors", not broken, broken or "valid, never of no weight"))
    checks.append(Check("batched", not differs, differs or "each problem as if alone"))
    return checks


def _compiled_check(programs: _Programs, key: Key[Array, ""], result: Run) -> Check:
    first = jax.random.split(key, programs.num_runs)[0]
    # The target's tables are arguments in the mapped program and constants here.
    alone = run(programs.sampler, smooth(), first, programs.num_particles)
    mapped = jax.tree.map(lambda leaf: leaf[0], result)
    same = _same(alone.particles, mapped.particles) and _same(
        alone.state, mapped.state, 1e-5
    )
    detail = "jit and vmap change nothing" if same else "jit and vmap change the run"
    return Check("compiled", same, detail)


def check_sampler(
    make_sampler: Callable[[], Sampler],
    *,
    targets: Mapping[str, KnownTarget] | None = None,
    num_particles: int = 8,
    num_runs: int = 20_000,
    key: Key[Array, ""] | None = None,
) -> Report:
    """Judge a sampler by the promises of the contract.

    Args:
        make_sampler: returns the sampler; called once.
        targets: targets of known truth by name; by default four tabular ones (smooth,
            peaked, impossible prefixes, unequal lengths) and a linear-Gaussian one.
        num_particles: N, a number that the sampler can use.
        num_runs: runs on each target; 20,000 notice a bias of about 2 %.
        key: a typed key; the same key gives the same report.

    Returns:
        A `Report`: print it, read `passed`, or call `raise_if_failed()`.
    """
    sampler = make_sampler()
    key = jax.random.key(0) if key is None else key
    key_targets, key_breaking, key_driven = jax.random.split(key, 3)
    if targets is None:
        targets = {name: make() for name, make in EXAMPLES.items()}
        targets["linear-Gaussian"] = LinearGaussianTarget()
    programs = _Programs(sampler, num_particles, num_runs)

    checks: list[Check] = []
    for index, (name, target) in enumerate(targets.items()):
        result = programs(target, jax.random.fold_in(key_targets, index))
        checks += _target_checks(name, target, sampler, result)
    checks.append(_finished_check(programs, key_breaking))
    checks += _zero_weight_checks(programs, key_breaking)
    checks += _driven_checks(sampler, num_particles, key_driven)

    once = programs(smooth(), key_breaking)
    again = programs(smooth(), key_breaking)
    checks.append(_compiled_check(programs, key_breaking, once))
    same = _same((once.particles, once.state), (again.particles, again.state))
    detail = "same key, same run" if same else "the same key gave two different runs"
    checks.append(Check("reproducible", same, detail))
    return Report(tuple(checks))
