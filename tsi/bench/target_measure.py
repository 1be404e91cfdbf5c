"""Means of a target's numbers, and the independence of its particles.

The means of p/q and of p/q times weights are estimated by plain importance sampling,
without a sampler of the package.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from scipy import special

from tsi.bench.known_truth import truth_of
from tsi.bench.robustness import Check
from tsi.bench.target_walk import Outputs, Walker, rows_of
from tsi.bench.unbiasedness import exact_z

MAX_Z, MIN_P = 4.0, 3e-5


def _z(log_weights: np.ndarray) -> float:
    """Standard errors between a mean weight and one."""
    weights = np.exp(log_weights)
    error = float(weights.std(ddof=1)) / np.sqrt(len(weights))
    return exact_z(float(weights.mean()) - 1.0, error)


def _draw(
    walker: Walker, key: Key[Array, ""], num_draws: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p - log q, log potentials and the step mask, [num_draws, T] each."""
    particles = walker.start(jax.random.fold_in(key, 0), num_draws)
    finished = np.zeros(num_draws, bool)
    excess, potentials, step_mask = [], [], []
    for t in range(walker.limit):
        particles, outputs = walker.step(walker.key_of(key, t), t, particles)
        step_mask.append(~finished)
        excess.append(np.where(finished, 0.0, np.asarray(outputs.log_corrections)))
        potentials.append(np.where(finished, 0.0, np.asarray(outputs.log_potentials)))
        finished = np.asarray(outputs.finished)
        if finished.all():
            break
    columns = (np.stack(rows, axis=1) for rows in (excess, potentials, step_mask))
    return tuple(columns)  # type: ignore[return-value]


def proposal_check(walker: Walker, key: Key[Array, ""], num_draws: int) -> Check:
    """Whether the mean of p/q under q is one, as it must be for any p and q."""
    excess, _, _ = _draw(walker, key, num_draws)
    z = _z(np.asarray(excess, np.float64).sum(1))
    detail = f"p/q is one on average: z = {z:+.2f}"
    if abs(z) < MAX_Z:
        return Check("proposal", True, detail)
    return Check("proposal", False, f"p/q is not one on average: z = {z:+.2f}")


def independence_check(walker: Walker, key: Key[Array, ""], num_draws: int) -> Check:
    """Whether particles with one prefix draw their steps independently.

    Neighbours, and particles half the number apart, must draw the same step as often as
    two of all particles do. If they share random numbers, they agree more often.
    """
    size = num_draws - num_draws % 2
    if size < 2:
        return Check("independence", None, "fewer than two draws")
    particles = walker.start(jax.random.fold_in(key, 0), size)
    for t in range(min(walker.limit, 2)):
        # All continue the first particle.
        particles = walker.gather(particles, jnp.zeros(size, jnp.int32))
        if np.asarray(walker.target.finished(particles)).all():
            break
        particles, outputs = walker.step(walker.key_of(key, t), t, particles)
        names = _number_rows(particles, outputs, size)
        shares = np.bincount(names) / size
        # Of two different particles; a pair of equal ones always agrees.
        expected = (np.sum(shares**2) * size - 1.0) / (size - 1.0)
        half = size // 2
        for what, first, second in (
            ("neighbours", names[::2], names[1::2]),
            ("particles far apart", names[:half], names[half:]),
        ):
            agreements = float(np.sum(first == second))
            p_value = min(
                special.bdtrc(agreements - 1.0, half, expected) if agreements else 1.0,
                special.bdtr(agreements, half, expected),
            )
            if p_value < MIN_P:
                detail = (
                    f"of {half} pairs of {what} with one prefix, {agreements:.0f} draw "
                    f"the same in step {t}, and {half * expected:.0f} would by chance "
                    f"(p = {p_value:.1g}); draw the numbers of particle i from "
                    "fold_in(key, i)"
                )
                return Check("independence", False, detail)
    return Check("independence", True, "particles with one prefix draw independently")


def _number_rows(particles: Any, outputs: Outputs, size: int) -> np.ndarray:
    """A number for each particle, equal if and only if the particles are equal."""
    leaves = [*rows_of(particles, size, slice(None)), *map(np.asarray, outputs)]
    rows = [leaf.reshape(size, -1).view(np.uint8).reshape(size, -1) for leaf in leaves]
    return np.unique(np.concatenate(rows, axis=1), axis=0, return_inverse=True)[
        1
    ].ravel()


def truth_check(target: Any, params: Any, key: Key[Array, ""], num_draws: int) -> Check:
    """Whether importance sampling finds the evidence that a target states."""
    if getattr(target, "truth", None) is None:
        return Check("truth", None, "the target has no truth")
    walker = Walker(target, params, None)
    excess, potentials, step_mask = _draw(walker, key, num_draws)
    scores = []
    for name, path_log_weight in PATH_WEIGHTS.items():
        truth = truth_of(target, path_log_weight)
        if truth is None or not np.isfinite(truth.log_evidence):
            continue
        arguments = jnp.asarray(potentials, jnp.float32), jnp.asarray(step_mask)
        log_weights = np.asarray(path_log_weight(*arguments), np.float64) + excess.sum(
            1
        )
        z = _z(log_weights - truth.log_evidence)
        if abs(z) > MAX_Z:
            detail = f"its evidence for {name} is not what its draws say: z = {z:+.2f}"
            return Check("truth", False, detail)
        scores.append(f"{name} z = {z:+.2f}")
    if not scores:
        return Check("truth", None, "the target does not know these path weights")
    return Check("truth", True, ", ".join(scores))


def _sum_of_all(log_potentials: Array, step_mask: Array) -> Array:
    return jnp.sum(jnp.where(step_mask, log_potentials, 0.0), axis=-1)


def _last_potential(log_potentials: Array, step_mask: Array) -> Array:
    last = jnp.sum(step_mask, axis=-1) - 1
    return jnp.take_along_axis(log_potentials, last[..., None], axis=-1)[..., 0]


def _zero(log_potentials: Array, step_mask: Array) -> Array:
    return jnp.zeros(log_potentials.shape[:-1])


PATH_WEIGHTS = {
    "all potentials": _sum_of_all,
    "the last": _last_potential,
    "none": _zero,
}
"""Path weights for which a target's truth is tested."""
