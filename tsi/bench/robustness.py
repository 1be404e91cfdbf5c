"""Checks of the sampler contract that need no known target, on adversarial inputs.

These are the parts of `tsi.bench.conformance.check_sampler` that apply to every
sampler, with or without a target.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.batch import batch
from tsi.bench.known_truth import KnownTarget
from tsi.bench.source_lines import places_of_functions
from tsi.explorer import Explorer
from tsi.run import Run, run
from tsi.sampler import Sampler
from tsi.targets.examples import smooth, unequal_lengths
from tsi.targets.tabular import TabularTarget

NUM_PROBLEMS = 3
NUM_STEPS = 6
MAX_AT_ONCE = 2_000
"""Runs per call of a compiled program: few enough for a cache, and enough for checks
that compare runs with runs."""


class Check(NamedTuple):
    """One promise of the contract.

    Attributes:
        promise: its name.
        passed: whether it is kept; None if it was skipped.
        detail: the evidence, or why it was skipped.
        where: the function, file and line that broke it, if known.
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
        num_runs: number of runs; they are split into calls.
    """

    def __init__(
        self, sampler: Sampler | Explorer, num_particles: int, num_runs: int
    ) -> None:
        self.sampler, self.num_particles = sampler, num_particles
        self.num_runs = num_runs
        calls = -(-num_runs // MAX_AT_ONCE)
        self.at_once = -(-num_runs // calls)
        self.programs: dict[Any, Callable[..., Run]] = {}
        self.targets: list[Any] = []

    def __call__(self, target: KnownTarget, key: Key[Array, ""]) -> Run:
        """`num_runs` runs under `split(key, num_runs)`."""
        keys = jax.random.split(key, self.num_runs)
        # The last call is padded with keys from the start.
        places = np.arange(self.at_once)
        starts = range(0, self.num_runs, self.at_once)
        parts = [
            self._call(target, keys[(places + start) % self.num_runs])
            for start in starts
        ]
        if len(parts) == 1:
            return parts[0]

        def join(*leaves: Any) -> Any:
            whole = np.concatenate([_numbers(leaf) for leaf in leaves])
            return jnp.asarray(whole[: self.num_runs])

        return jax.tree.map(join, *parts)

    def first_call(self, target: KnownTarget, key: Key[Array, ""]) -> Run:
        """The runs of the first call only."""
        return self._call(target, jax.random.split(key, self.num_runs)[: self.at_once])

    def _call(self, target: KnownTarget, keys: Key[Array, "R"]) -> Run:
        params: Any = getattr(target, "params", None)
        is_tabular = type(target) is TabularTarget
        kind = params.log_potentials.shape if is_tabular else id(target)
        if kind not in self.programs:
            # An id identifies an object only while the object lives.
            self.targets.append(target)
            self.programs[kind] = self.compile(target)
        return self.programs[kind](keys, params)

    def compile(
        self, target: KnownTarget, options: dict[str, Any] | None = None
    ) -> Callable[..., Run]:
        """A program of many runs: a function of their keys and the parameters.

        Args:
            target: its shapes are those of the parameters.
            options: compiler options, in place of those of the process.
        """
        return jax.jit(
            jax.vmap(
                lambda key, params: run(
                    self.sampler, target, key, self.num_particles, params
                ),
                in_axes=(0, None),
            ),
            compiler_options=options,
        )


def _numbers(leaf: Any) -> np.ndarray:
    """A NumPy array; for keys, an array of their data."""
    is_key = jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def has_nan(tree: Any) -> bool:
    """Whether a float leaf of a tree has a NaN."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return any(np.isnan(leaf).any() for leaf in leaves if leaf.dtype.kind == "f")


def states_agree(
    first: Any, second: Any, tolerance: float = 0.0, *, equal_nan: bool = False
) -> bool:
    """Whether two states agree: integers exactly, floats within a tolerance."""

    def leaves_agree(a: Any, b: Any) -> bool:
        a, b = _numbers(a), _numbers(b)
        if a.dtype.kind != "f":
            return bool(np.array_equal(a, b))
        return bool(
            np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=equal_nan)
        )

    return all(jax.tree.leaves(jax.tree.map(leaves_agree, first, second)))


def finished_check(programs: Programs, key: Key[Array, ""]) -> Check:
    """Whether the log potentials of finished particles do not affect a run."""
    target, other = unequal_lengths(), unequal_lengths()
    expected = programs.first_call(target, key)
    for idle in (7.0, np.nan):
        other.idle = idle
        result = programs.first_call(other, key)
        unchanged = states_agree(
            (expected.state.log_weights, expected.state.log_evidence),
            (result.state.log_weights, result.state.log_evidence),
            1e-6,
        ) and states_agree(expected.particles, result.particles)
        if not unchanged:
            return Check(
                "finished",
                False,
                f"numbers of {idle} for finished particles change the run",
            )
    return Check("finished", True, "numbers for finished particles change nothing")


NO_WEIGHT = {"-inf": -np.inf, "NaN": np.nan, "+inf": np.inf}
"""Log potentials and corrections of weight zero; the last two are invalid."""


def zero_weight_checks(programs: Programs, key: Key[Array, ""]) -> list[Check]:
    """Whether a step at which all weights are zero gives evidence zero and no NaN.

    Weights are zero by the potential, or by the correction log p - log q.
    """
    checks = []
    for name, value in NO_WEIGHT.items():
        for step in (0, 1, 3):
            by_potential, by_correction = smooth(), smooth()
            by_potential.log_potentials[step] = value
            by_correction.log_scale[step] = value
            for what, target in (
                ("potentials", by_potential),
                ("corrections", by_correction),
            ):
                violation = _find_weight(programs, target, key)
                if violation:
                    detail = f"{what} all {name} at step {step}: {violation}"
                    checks.append(Check("zero weights", False, detail))
    detail = "potentials and corrections of -inf, NaN and +inf are survived"
    return checks or [Check("zero weights", True, detail)]


def _find_weight(programs: Programs, target: TabularTarget, key: Key[Array, ""]) -> str:
    """What is wrong with runs on a table without weight; empty if nothing is."""
    claim = programs.sampler.path_log_weight
    result = programs.first_call(target, key)
    log_evidence = np.asarray(result.state.log_evidence)
    if has_nan((result.state.log_weights, log_evidence)):
        return "log weights or evidence are NaN"
    if claim is None:
        return ""
    # An invalid correction has weight zero whatever the path weight says.
    truth = -np.inf
    if np.all(np.isfinite(target.log_scale)):
        power = getattr(programs.sampler, "power", 1.0)
        truth = target.truth(claim, power=power).log_evidence
    if truth == np.inf or np.isnan(truth):
        return f"path_log_weight of such a path is {truth}, and not -inf"
    if truth == -np.inf and not np.all(log_evidence == -np.inf):
        return "the evidence is zero and its estimate is not"
    return ""


def _synthetic_replies(
    key: Key[Array, ""], shape: tuple[int, ...]
) -> tuple[Array, ...]:
    """Random potentials, corrections and finished flags, [T, ..., N]."""
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
    sampler: Sampler, keys: Any, num_particles: int, replies: tuple[Array, ...]
) -> tuple[Any, tuple[Any, Any, Array]]:
    """Ask and tell without a target.

    Returns the last state and, for each step [T], the state before it, the state after
    ask, and the ancestors.
    """
    fold = jax.random.fold_in
    fold = jax.vmap(fold, (0, None)) if keys.ndim else fold

    def step(state: Any, row: tuple[Array, ...]) -> tuple[Any, tuple[Any, Any, Array]]:
        t, *rest = row
        state_after_ask, ancestors = sampler.ask(fold(keys, t), state)
        state_after_tell, _ = sampler.tell(fold(keys, t), state_after_ask, *rest)
        return state_after_tell, (state, state_after_ask, ancestors)

    state = sampler.init(keys, num_particles)
    return jax.lax.scan(step, state, (jnp.arange(len(replies[0])), *replies))


def driven_checks(
    sampler: Sampler, num_particles: int, key: Key[Array, ""]
) -> list[Check]:
    """Checks of ancestors and batching, on synthetic numbers."""
    key_told, key_problems = jax.random.split(key)
    shape = (NUM_STEPS, NUM_PROBLEMS, num_particles)
    replies = _synthetic_replies(key_told, shape)
    keys = jax.random.split(key_problems, NUM_PROBLEMS)
    flat = tuple(array.reshape(NUM_STEPS, -1) for array in replies)
    batched = batch(sampler, NUM_PROBLEMS)
    batched_run = jax.jit(lambda k, f: _drive(batched, k, num_particles, f))(keys, flat)
    drive = jax.jit(lambda k, f: _drive(sampler, k, num_particles, f))
    violation, difference = "", ("", "")
    for problem in range(NUM_PROBLEMS):
        single_run = drive(keys[problem], tuple(array[:, problem] for array in replies))
        _, (states_before, _, ancestors) = single_run
        for t in range(NUM_STEPS):
            weights = np.asarray(states_before.log_weights[t])
            parents = np.asarray(ancestors[t])
            is_moved = parents != np.arange(num_particles)
            if parents.dtype != np.int32 or parents.shape != (num_particles,):
                violation = f"ancestors are {parents.dtype} of shape {parents.shape}"
            elif parents.min() < 0 or parents.max() >= num_particles:
                violation = f"ancestors outside [0, {num_particles}) at step {t}"
            elif np.isinf(weights[parents[is_moved]]).any():
                violation = f"a particle of zero weight was copied at step {t}"
        if not difference[0]:
            difference = _difference(single_run, batched_run, problem, num_particles)
    detail, part = difference
    return [
        Check(
            "ancestors",
            not violation,
            violation or "valid, never of no weight",
            places_of_functions(sampler, "ask") if violation else "",
        ),
        Check(
            "batched",
            not detail,
            detail or "each problem as in its own run",
            places_of_functions(sampler, part) if part else "",
        ),
    ]


def _difference(
    single_run: tuple[Any, Any], batched_run: tuple[Any, Any], problem: int, size: int
) -> tuple[str, str]:
    """The first difference of a batch from single runs, and the function behind it."""
    last, (states_before, states_asked, ancestors) = single_run
    last_of_all, (all_states_before, all_states_asked, all_ancestors) = batched_run
    ancestors_of_problem = all_ancestors.reshape(NUM_STEPS, NUM_PROBLEMS, -1)[
        :, problem
    ]
    ancestors_of_problem -= problem * size
    for t in range(NUM_STEPS):
        for part, states, batched in (
            ("tell" if t else "init", states_before, all_states_before),
            ("ask", states_asked, all_states_asked),
        ):
            in_batch = jax.tree.map(lambda leaf, t=t: leaf[t, problem], batched)
            by_itself = jax.tree.map(lambda leaf, t=t: leaf[t], states)
            if not states_agree(by_itself, in_batch, 1e-5, equal_nan=True):
                return f"the state of problem {problem} differs at step {t}", part
        if not np.array_equal(ancestors_of_problem[t], ancestors[t]):
            return f"ancestors of problem {problem} differ at step {t}", "ask"
    in_batch = jax.tree.map(lambda leaf: leaf[problem], last_of_all)
    if not states_agree(last, in_batch, 1e-5, equal_nan=True):
        return f"the last state of problem {problem} differs from its own run", "tell"
    return "", ""


def compiled_check(programs: Programs, key: Key[Array, ""], result: Run) -> Check:
    """Whether the first of the mapped runs `result` equals a run of its key alone."""
    first = jax.random.split(key, programs.num_runs)[0]
    # The target's tables are arguments in the mapped program and constants here.
    single_run = run(programs.sampler, smooth(), first, programs.num_particles)
    mapped = jax.tree.map(lambda leaf: leaf[0], result)
    unchanged = states_agree(single_run.particles, mapped.particles) and states_agree(
        single_run.state, mapped.state, 1e-5
    )
    detail = (
        "jit and vmap change nothing" if unchanged else "jit and vmap change the run"
    )
    return Check("compiled", unchanged, detail)
