"""Promises of the sampler contract that need no truth: inputs made to break it.

The parts of `tsi.bench.conformance.check_sampler` that hold for every sampler, with or
without a target.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.batch import batch
from tsi.bench.known_truth import KnownTarget
from tsi.bench.source_lines import blamed
from tsi.explorer import Explorer
from tsi.run import Run, run
from tsi.sampler import Sampler
from tsi.targets.examples import smooth, unequal_lengths
from tsi.targets.tabular import TabularTarget

NUM_PROBLEMS = 3
NUM_STEPS = 6
MOST_AT_ONCE = 2_000
"""Runs of one call of a compiled program: what fits a cache, and is enough where runs
are compared with runs."""


class Check(NamedTuple):
    """One promise of the contract.

    Attributes:
        promise: its name.
        passed: whether it is kept; None if it was skipped.
        detail: the evidence, or why it was skipped.
        where: the function, file and line that broke it, where they are known.
    """

    promise: str
    passed: bool | None
    detail: str
    where: str = ""


class Programs:
    """Compiled runs of one sampler; tabular targets of one shape share a program.

    Args:
        sampler: the sampler.
        num_particles: N.
        num_runs: of a call; they are run some at a time.
    """

    def __init__(
        self, sampler: Sampler | Explorer, num_particles: int, num_runs: int
    ) -> None:
        self.sampler, self.num_particles = sampler, num_particles
        self.num_runs = num_runs
        calls = -(-num_runs // MOST_AT_ONCE)
        self.at_once = -(-num_runs // calls)
        self.programs: dict[Any, Callable[..., Run]] = {}
        self.kept: list[Any] = []

    def __call__(self, target: KnownTarget, key: Key[Array, ""]) -> Run:
        """`num_runs` runs under `split(key, num_runs)`."""
        keys = jax.random.split(key, self.num_runs)
        # A last call that is not full takes some keys again.
        places = np.arange(self.at_once)
        starts = range(0, self.num_runs, self.at_once)
        parts = [
            self._some(target, keys[(places + start) % self.num_runs])
            for start in starts
        ]
        if len(parts) == 1:
            return parts[0]

        def join(*leaves: Any) -> Any:
            whole = np.concatenate([_numbers(leaf) for leaf in leaves])
            return jnp.asarray(whole[: self.num_runs])

        return jax.tree.map(join, *parts)

    def few(self, target: KnownTarget, key: Key[Array, ""]) -> Run:
        """The runs of one call: the first of those that `num_runs` would be."""
        return self._some(target, jax.random.split(key, self.num_runs)[: self.at_once])

    def _some(self, target: KnownTarget, keys: Key[Array, "R"]) -> Run:
        params: Any = getattr(target, "params", None)
        plain = type(target) is TabularTarget
        kind = params.log_potentials.shape if plain else id(target)
        if kind not in self.programs:
            # An address is a name only as long as its object lives.
            self.kept.append(target)
            self.programs[kind] = jax.jit(
                jax.vmap(
                    lambda key, params: run(
                        self.sampler, target, key, self.num_particles, params
                    ),
                    in_axes=(0, None),
                )
            )
        return self.programs[kind](keys, params)


def _numbers(leaf: Any) -> np.ndarray:
    """An array in NumPy; of keys, their data."""
    is_key = jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def has_nan(tree: Any) -> bool:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return any(np.isnan(leaf).any() for leaf in leaves if leaf.dtype.kind == "f")


def same(
    first: Any, second: Any, tolerance: float = 0.0, *, equal_nan: bool = False
) -> bool:
    """Whether two states agree: integers exactly, floats within a tolerance."""

    def agree(a: Any, b: Any) -> bool:
        a, b = _numbers(a), _numbers(b)
        if a.dtype.kind != "f":
            return bool(np.array_equal(a, b))
        return bool(
            np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=equal_nan)
        )

    return all(jax.tree.leaves(jax.tree.map(agree, first, second)))


def finished_check(programs: Programs, key: Key[Array, ""]) -> Check:
    """Whether runs stay the same whatever finished particles are told."""
    quiet, noisy = unequal_lengths(), unequal_lengths()
    expected = programs.few(quiet, key)
    for idle in (7.0, np.nan):
        noisy.idle = idle
        result = programs.few(noisy, key)
        unchanged = same(
            (expected.state.log_weights, expected.state.log_evidence),
            (result.state.log_weights, result.state.log_evidence),
            1e-6,
        ) and same(expected.particles, result.particles)
        if not unchanged:
            return Check(
                "finished",
                False,
                f"telling {idle} for particles that had finished changes the run",
            )
    return Check("finished", True, "what a finished particle is told changes nothing")


NO_WEIGHT = {"-inf": -np.inf, "NaN": np.nan, "+inf": np.inf}
"""Log potentials that make a weight zero; the last two are no weights at all."""


def zero_weight_checks(programs: Programs, key: Key[Array, ""]) -> list[Check]:
    """Whether steps without any weight are survived, and their evidence is zero."""
    claim = programs.sampler.path_log_weight
    checks = []
    for name, value in NO_WEIGHT.items():
        for step in (0, 1, 3):
            target = smooth()
            target.log_potentials[step] = value
            result = programs.few(target, key)
            log_evidence = np.asarray(result.state.log_evidence)
            bad = ""
            if has_nan((result.state.log_weights, log_evidence)):
                bad = "log weights or evidence are NaN"
            if not bad and claim is not None:
                power = getattr(programs.sampler, "power", 1.0)
                truth = target.truth(claim, power=power).log_evidence
                if truth == -np.inf and not np.all(log_evidence == -np.inf):
                    bad = "the evidence is zero and its estimate is not"
                if truth == np.inf or np.isnan(truth):
                    bad = f"path_log_weight of such a path is {truth}, and not -inf"
            if bad:
                detail = f"potentials all {name} at step {step}: {bad}"
                checks.append(Check("zero weights", False, detail))
    survived = "potentials of -inf, NaN and +inf are survived"
    return checks or [Check("zero weights", True, survived)]


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
) -> tuple[Any, tuple[Any, Any, Array]]:
    """Ask and tell without a target: the last state, and what each step made of it.

    Of each step, [T]: the state before it, the state after ask, the ancestors.
    """
    fold = jax.random.fold_in
    fold = jax.vmap(fold, (0, None)) if keys.ndim else fold

    def step(state: Any, row: tuple[Array, ...]) -> tuple[Any, tuple[Any, Any, Array]]:
        t, *rest = row
        asked, ancestors = sampler.ask(fold(keys, t), state)
        told, _ = sampler.tell(fold(keys, t), asked, *rest)
        return told, (state, asked, ancestors)

    state = sampler.init(keys, num_particles)
    return jax.lax.scan(step, state, (jnp.arange(len(told[0])), *told))


def driven_checks(
    sampler: Sampler, num_particles: int, key: Key[Array, ""]
) -> list[Check]:
    """Ancestors and batching, driven by made-up numbers."""
    key_told, key_problems = jax.random.split(key)
    shape = (NUM_STEPS, NUM_PROBLEMS, num_particles)
    told = _synthetic(key_told, shape)
    keys = jax.random.split(key_problems, NUM_PROBLEMS)
    flat = tuple(array.reshape(NUM_STEPS, -1) for array in told)
    lifted = batch(sampler, NUM_PROBLEMS)
    together = jax.jit(lambda k, f: _drive(lifted, k, num_particles, f))(keys, flat)
    drive = jax.jit(lambda k, f: _drive(sampler, k, num_particles, f))
    broken, differs = "", ("", "")
    for problem in range(NUM_PROBLEMS):
        alone = drive(keys[problem], tuple(array[:, problem] for array in told))
        _, (befores, _, ancestors) = alone
        for t in range(NUM_STEPS):
            weights = np.asarray(befores.log_weights[t])
            parents = np.asarray(ancestors[t])
            moved = parents != np.arange(num_particles)
            if parents.dtype != np.int32 or parents.shape != (num_particles,):
                broken = f"ancestors are {parents.dtype} of shape {parents.shape}"
            elif parents.min() < 0 or parents.max() >= num_particles:
                broken = f"ancestors outside [0, {num_particles}) at step {t}"
            elif np.isinf(weights[parents[moved]]).any():
                broken = f"a particle of zero weight was copied at step {t}"
        if not differs[0]:
            differs = _difference(alone, together, problem, num_particles)
    detail, part = differs
    return [
        Check(
            "ancestors",
            not broken,
            broken or "valid, never of no weight",
            blamed(sampler, "ask") if broken else "",
        ),
        Check(
            "batched",
            not detail,
            detail or "each problem as if alone",
            blamed(sampler, part) if part else "",
        ),
    ]


def _difference(
    alone: tuple[Any, Any], together: tuple[Any, Any], problem: int, size: int
) -> tuple[str, str]:
    """The first thing that differs in a batch, and the function that made it."""
    last, (befores, askeds, ancestors) = alone
    last_of_all, (all_befores, all_askeds, all_ancestors) = together
    mine = all_ancestors.reshape(NUM_STEPS, NUM_PROBLEMS, -1)[:, problem]
    mine -= problem * size
    for t in range(NUM_STEPS):
        for part, own, batched in (
            ("tell" if t else "init", befores, all_befores),
            ("ask", askeds, all_askeds),
        ):
            there = jax.tree.map(lambda leaf, t=t: leaf[t, problem], batched)
            here = jax.tree.map(lambda leaf, t=t: leaf[t], own)
            if not same(here, there, 1e-5, equal_nan=True):
                return f"the state of problem {problem} differs at step {t}", part
        if not np.array_equal(mine[t], ancestors[t]):
            return f"ancestors of problem {problem} differ at step {t}", "ask"
    there = jax.tree.map(lambda leaf: leaf[problem], last_of_all)
    if not same(last, there, 1e-5, equal_nan=True):
        return f"the last state of problem {problem} differs from its own run", "tell"
    return "", ""


def compiled_check(programs: Programs, key: Key[Array, ""], result: Run) -> Check:
    """Whether the first of the mapped runs `result` is the run of its key alone."""
    first = jax.random.split(key, programs.num_runs)[0]
    # The target's tables are arguments in the mapped program and constants here.
    alone = run(programs.sampler, smooth(), first, programs.num_particles)
    mapped = jax.tree.map(lambda leaf: leaf[0], result)
    unchanged = same(alone.particles, mapped.particles) and same(
        alone.state, mapped.state, 1e-5
    )
    detail = (
        "jit and vmap change nothing" if unchanged else "jit and vmap change the run"
    )
    return Check("compiled", unchanged, detail)
