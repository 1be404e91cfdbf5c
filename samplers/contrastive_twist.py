"""Contrastive twist learning (CTL): fit a twist to the prefixes of good solutions.

With sigma the target and pi_t in proportion to p G_{1:t} psi_t what twisted SMC aims
at after step t, the objective and its gradient are

    L(theta) = sum_t KL(sigma(x_{1:t}) || pi_t(x_{1:t})),
    -grad L = sum_t E_sigma[grad log psi_t] - E_{pi_t}[grad log psi_t].

L is least at the exact twist, if that is in the family, and convex in theta if psi is
log-linear. Both expectations come from one run of twisted SMC under the present theta.
Its particles after step t weigh W_t under pi_t; under sigma they weigh what the
descendants of each weigh in the end,

    V_T = W_T,    V_{t-1}^i = sum_{j: a_t^j = i} V_t^j.

The gradient is self-normalised: a bias of order 1 / N moves where theta comes to rest,
but not what twisted SMC targets with it. Early steps have few distinct ancestors left
at the end, and learn slowly if N is small.

Differences: [1] takes positives and negatives from runs of their own, or positives from
exact samples. Where solutions end at different steps, an ended one is its own prefix,
with psi = 1, which also fixes the constant of psi_t; if all end together, psi_t is
determined up to a constant for each step.

References:
    [1] Zhao et al. 2024, arXiv 2404.17546, Section 4.1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from tsi.run import turn
from tsi.samplers.twisted_smc import twisted_smc
from tsi.step_keys import AnyKey, single_key
from tsi.twists.learned import LearnedTwist
from tsi.twists.twisted_target import TwistedParams, TwistedTarget


class Contrast(NamedTuple):
    """What one run shows of all its unfinished prefixes.

    Attributes:
        features: of each particle after each step, [T, N, D].
        weights: V_t - W_t, zero where a particle has finished, [T, N].
        log_evidence: of the run.
    """

    features: Float[Array, "T N D"]
    weights: Float[Array, "T N"]
    log_evidence: Float[Array, ""]


class TwistFit(NamedTuple):
    """A fitted twist.

    Attributes:
        theta: its parameters.
        log_evidence: of the run behind each update, [U]; its mean rises towards the
            log evidence, and its spread falls, as the twist gets better.
    """

    theta: Any
    log_evidence: Float[Array, "U"]


def contrast(
    key: AnyKey,
    target: Any,
    twist: LearnedTwist,
    theta: Any,
    num_particles: int,
    params: Any = None,
    *,
    accumulate: str = "product",
) -> Contrast:
    """Run twisted SMC under theta and weigh its prefixes against each other.

    A run that lost all weight shows nothing: its weights are zero.

    Args:
        key: of either style.
        target: the target within.
        twist: the family.
        theta: parameters of the twist to run with.
        num_particles: N.
        params: the target's.
        accumulate: "product" or "last", as in
            `tsi.twists.twisted_target.TwistedTarget`.
    """
    sampler = twisted_smc()
    twisted = TwistedTarget(target, twist.log_twist, accumulate)
    both = TwistedParams(params, theta)
    key_init, key_steps = jax.random.split(single_key(key))
    state = sampler.init(jax.random.fold_in(key_init, 0), num_particles)
    particles = twisted.init(jax.random.fold_in(key_init, 1), num_particles, both)

    def forwards(carry: tuple, t: Array) -> tuple[tuple, tuple]:
        state, particles = carry
        state, particles, info = turn(
            sampler, twisted, key_steps, t, state, particles, both
        )
        live = ~twisted.finished(particles)
        seen = twist.features(t, particles.particles, params)
        # What is read off a finished particle may be anything, NaN too.
        seen = jnp.where(live[:, None], seen, 0.0)
        present = jnp.exp(state.log_weights) / num_particles
        return (state, particles), (seen, present, live, info.ancestors)

    def backwards(weights: Array, ancestors: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(weights).at[ancestors].add(weights), weights

    (state, _), (features, present, live, ancestors) = jax.lax.scan(
        forwards, (state, particles), jnp.arange(twisted.max_steps, dtype=jnp.int32)
    )
    _, in_the_end = jax.lax.scan(backwards, present[-1], ancestors, reverse=True)
    counts = live & (state.log_evidence > -jnp.inf)
    weights = jnp.where(counts, in_the_end - present, 0.0)
    return Contrast(features, weights, state.log_evidence)


def contrastive_loss(
    theta: Any, apply: Callable[..., Array], shown: Contrast
) -> Float[Array, ""]:
    """A number whose gradient at the run's theta estimates that of L.

    Args:
        theta: the twist's parameters.
        apply: as in `tsi.twists.learned.LearnedTwist`.
        shown: a run under the same theta.
    """
    steps = jnp.arange(shown.weights.shape[0])
    log_psi = jax.vmap(apply, (None, 0, 0))(theta, steps, shown.features)
    return -jnp.sum(shown.weights * log_psi)


def fit_twist(
    key: AnyKey,
    target: Any,
    twist: LearnedTwist,
    theta: Any,
    optimiser: optax.GradientTransformation,
    num_particles: int,
    num_updates: int,
    params: Any = None,
    *,
    accumulate: str = "product",
) -> TwistFit:
    """Descend the contrastive objective, one run of twisted SMC an update.

    Pure, so that it may be jitted and vmapped over keys or parameters.

    Args:
        key: of either style; update u runs under `fold_in(key, u)`.
        target: any target that has `max_steps`.
        twist: the family.
        theta: where to start, a pytree of float arrays.
        optimiser: from optax; a learning rate that decays averages the noise out.
        num_particles: N of each run.
        num_updates: how many runs.
        params: the target's.
        accumulate: "product" or "last", as in
            `tsi.twists.twisted_target.TwistedTarget`.
    """
    key = single_key(key)

    def update(carry: tuple, u: Array) -> tuple[tuple, Array]:
        theta, moments = carry
        shown = contrast(
            jax.random.fold_in(key, u),
            target,
            twist,
            theta,
            num_particles,
            params,
            accumulate=accumulate,
        )
        slopes = jax.grad(contrastive_loss)(theta, twist.apply, shown)
        changes, moments = optimiser.update(slopes, moments, theta)
        return (optax.apply_updates(theta, changes), moments), shown.log_evidence

    start = (theta, optimiser.init(theta))
    (theta, _), log_evidence = jax.lax.scan(update, start, jnp.arange(num_updates))
    return TwistFit(theta, log_evidence)
