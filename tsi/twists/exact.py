"""The exact twist of a tabular target, and the proposal that goes with it.

The recursion, computed backwards from the last step, with x' the next symbol,

    psi_t(x) = sum_x' p(x' | x) G_{t+1}(x') psi_{t+1}(x'),    psi = 1 where paths end,

gives the expected product of the future potentials, given the current symbol. If only
the last potential counts, G is that potential where a path ends and 1 elsewhere. With
steps drawn from q(x' | x) in proportion to p(x' | x) G(x') psi(x'), all weights are
equal and the evidence estimate has no variance.

References:
    [1] Guarniero, Johansen and Lee 2017, arXiv 1511.06286.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tsi.targets.tabular import TabularParticles, TabularTarget
from tsi.weights import weight_dtype

SAFETY = 1e-12
"""Share of the policy in a proposal, which must allow every step of the policy."""


def _log_tables(
    target: TabularTarget, accumulate: str
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the twist psi and of G psi, both [T, K]."""
    ends = np.zeros((target.max_steps, target.num_symbols), bool)
    ends[-1] = True
    if target.end is not None:
        ends[:, target.end] = True
    gains = target.log_potentials
    if accumulate != "product":
        gains = np.where(ends, gains, 0.0)
    twist, values = np.zeros_like(gains), gains.copy()
    with np.errstate(divide="ignore"):
        log_transition = np.log(target.transition)
    for t in range(target.max_steps - 2, -1, -1):
        future = np.logaddexp.reduce(log_transition + values[t + 1], axis=-1)
        future += target.log_scale[t + 1]
        twist[t] = np.where(ends[t], 0.0, future)
        values[t] = gains[t] + twist[t]
    return twist, values


def exact_log_twist(
    target: TabularTarget, accumulate: str = "product"
) -> Float[np.ndarray, "T K"]:
    """log psi_t(k), -inf where all future potentials are zero.

    Args:
        target: the target.
        accumulate: "product" or "last", as in
            `tsi.twists.twisted_target.TwistedTarget`.
    """
    return _log_tables(target, accumulate)[0]


def table_twist(log_table: Any) -> Callable[..., Array]:
    """A twist for `TwistedTarget` from a table of log psi_t(k), [T, K]."""

    def log_twist(
        t: Int[Array, "..."] | int, particles: TabularParticles, params: Any = None
    ) -> Float[Array, "N"]:
        rows = jnp.arange(particles.symbols.shape[0])
        last = particles.symbols[rows, jnp.maximum(particles.length - 1, 0)]
        step = jnp.minimum(t, len(log_table) - 1)
        return jnp.asarray(log_table, weight_dtype())[step, last]

    return log_twist


def with_twisted_proposal(
    target: TabularTarget, accumulate: str = "product"
) -> TabularTarget:
    """The same target with steps proposed in proportion to p G psi.

    Where G psi is zero for every continuation, the proposal is the policy. Elsewhere it
    is a mixture with a share `SAFETY` of the policy, which is too small to matter in
    practice.
    """
    _, log_worth = _log_tables(target, accumulate)

    def tilt(policy: np.ndarray, log_worth: np.ndarray) -> np.ndarray:
        # Relative to the largest value among allowed symbols, against overflow.
        best = np.where(policy > 0.0, log_worth, -np.inf).max(-1, keepdims=True)
        relative = log_worth - np.where(np.isfinite(best), best, 0.0)
        q = policy * np.exp(np.minimum(relative, 0.0))
        total = q.sum(-1, keepdims=True)
        q = np.divide(q, total, out=policy.copy(), where=total > 0.0)
        return (1.0 - SAFETY) * q + SAFETY * policy

    transition = np.broadcast_to(
        target.transition, (target.max_steps, *target.transition.shape)
    )
    return TabularTarget(
        target.initial,
        target.transition,
        target.log_potentials,
        end=target.end,
        proposal_initial=tilt(target.initial, log_worth[0]),
        proposal_transition=tilt(transition, log_worth[:, None, :]),
        log_scale=target.log_scale,
        idle=target.idle,
    )
