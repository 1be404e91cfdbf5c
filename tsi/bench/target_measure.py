"""Means of a target's numbers: of p/q, and of p/q times weights.

They are estimated by plain importance sampling, without a sampler of the package.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.known_truth import truth_of
from tsi.bench.robustness import Check
from tsi.bench.target_walk import Walker
from tsi.bench.unbiasedness import exact_z

MAX_Z = 4.0


def _z(log_weights: np.ndarray) -> float:
    """Standard errors between a mean weight and one."""
    weights = np.exp(log_weights)
    error = float(weights.std(ddof=1)) / np.sqrt(len(weights))
    return exact_z(float(weights.mean()) - 1.0, error)


def _draw(
    walker: Walker, key: Key[Array, ""], num_draws: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p - log q, log potentials and the mask of live steps, [num_draws, T] each."""
    particles = walker.start(jax.random.fold_in(key, 0), num_draws)
    finished = np.zeros(num_draws, bool)
    excess, potentials, live = [], [], []
    for t in range(walker.limit):
        particles, outputs = walker.step(walker.key_of(key, t), t, particles)
        live.append(~finished)
        excess.append(np.where(finished, 0.0, np.asarray(outputs.log_corrections)))
        potentials.append(np.where(finished, 0.0, np.asarray(outputs.log_potentials)))
        finished = np.asarray(outputs.finished)
        if finished.all():
            break
    columns = (np.stack(rows, axis=1) for rows in (excess, potentials, live))
    return tuple(columns)  # type: ignore[return-value]


def proposal_check(walker: Walker, key: Key[Array, ""], num_draws: int) -> Check:
    """Whether the mean of p/q under q is one, as it must be for any p and q."""
    excess, _, _ = _draw(walker, key, num_draws)
    z = _z(np.asarray(excess, np.float64).sum(1))
    detail = f"p/q is one on average: z = {z:+.2f}"
    if abs(z) < MAX_Z:
        return Check("proposal", True, detail)
    return Check("proposal", False, f"p/q is not one on average: z = {z:+.2f}")


def truth_check(target: Any, params: Any, key: Key[Array, ""], num_draws: int) -> Check:
    """Whether importance sampling finds the evidence that a target states."""
    if getattr(target, "truth", None) is None:
        return Check("truth", None, "the target has no truth")
    walker = Walker(target, params, None)
    excess, potentials, live = _draw(walker, key, num_draws)
    scores = []
    for name, path_log_weight in PATH_WEIGHTS.items():
        known = truth_of(target, path_log_weight)
        if known is None or not np.isfinite(known.log_evidence):
            continue
        arguments = jnp.asarray(potentials, jnp.float32), jnp.asarray(live)
        log_weights = np.asarray(path_log_weight(*arguments), np.float64) + excess.sum(
            1
        )
        z = _z(log_weights - known.log_evidence)
        if abs(z) > MAX_Z:
            detail = f"its evidence for {name} is not what its draws say: z = {z:+.2f}"
            return Check("truth", False, detail)
        scores.append(f"{name} z = {z:+.2f}")
    if not scores:
        return Check("truth", None, "the target does not know these path weights")
    return Check("truth", True, ", ".join(scores))


def _all(log_potentials: Array, live: Array) -> Array:
    return jnp.sum(jnp.where(live, log_potentials, 0.0), axis=-1)


def _last(log_potentials: Array, live: Array) -> Array:
    last = jnp.sum(live, axis=-1) - 1
    return jnp.take_along_axis(log_potentials, last[..., None], axis=-1)[..., 0]


def _none(log_potentials: Array, live: Array) -> Array:
    return jnp.zeros(log_potentials.shape[:-1])


PATH_WEIGHTS = {"all potentials": _all, "the last": _last, "none": _none}
"""Path weights for which a target's truth is tested."""
