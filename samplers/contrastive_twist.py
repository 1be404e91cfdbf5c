"""Contrastive twist learning (CTL): fit a twist to the prefixes of good solutions.

Let sigma be the target, and pi_t, proportional to p G_{1:t} psi_t, the target of
twisted SMC after step t. The objective and its gradient are

    L(theta) = sum_t KL(sigma(x_{1:t}) || pi_t(x_{1:t})),
    -grad L = sum_t E_sigma[grad log psi_t] - E_{pi_t}[grad log psi_t].

If the exact twist is in the family, L is minimal there. L is convex in theta if psi is
log-linear. Both expectations come from one run of twisted SMC with the current theta.
After step t its particles have weights W_t under pi_t. Under sigma the weight of a
particle is the sum of the final weights of its descendants,

    V_T = W_T,    V_{t-1}^i = sum_{j: a_t^j = i} V_t^j.

The gradient estimate is self-normalised: its bias of order 1 / N changes the theta to
which the fit converges, but not the target of twisted SMC with that theta. Early steps
have few distinct ancestors at the end, so they are learned slowly if N is small.

Differences: [1] takes positives and negatives from separate runs, or positives from
exact samples. A finished solution counts as a prefix with psi = 1. If solutions
finish at different steps, this fixes the scale of psi_t; if all finish at the same
step, each psi_t is determined only up to a constant factor.

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
    """Features and weights of all unfinished prefixes of one run.

    Attributes:
        features: of each particle after each step, [T, N, D].
        weights: V_t - W_t, zero for finished particles, [T, N].
        log_evidence: of the run.
    """

    features: Float[Array, "T N D"]
    weights: Float[Array, "T N"]
    log_evidence: Float[Array, ""]


class TwistFit(NamedTuple):
    """A fitted twist.

    Attributes:
        theta: its parameters.
        log_evidence: of the run of each update, [U]. As the twist improves, its mean
            rises towards the log evidence and its variance falls.
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
    """Run twisted SMC with theta and compute the contrastive weights of its prefixes.

    If the run loses all weight, the contrastive weights are zero.

    Args:
        key: of either style.
        target: the target without the twist.
        twist: the family of twists.
        theta: parameters of the twist.
        num_particles: N.
        params: parameters of the target.
        accumulate: "product" or "last", as in
            `tsi.twists.twisted_target.TwistedTarget`.
    """
    sampler = twisted_smc()
    twisted = TwistedTarget(target, twist.log_twist, accumulate)
    twisted_params = TwistedParams(params, theta)
    key_init, key_steps = jax.random.split(single_key(key))
    state = sampler.init(jax.random.fold_in(key_init, 0), num_particles)
    particles = twisted.init(
        jax.random.fold_in(key_init, 1), num_particles, twisted_params
    )

    def step_forwards(carry: tuple, t: Array) -> tuple[tuple, tuple]:
        state, particles = carry
        state, particles, info = turn(
            sampler, twisted, key_steps, t, state, particles, twisted_params
        )
        is_unfinished = ~twisted.finished(particles)
        features = twist.features(t, particles.particles, params)
        # The features of a finished particle are arbitrary and may be NaN.
        features = jnp.where(is_unfinished[:, None], features, 0.0)
        current_weights = jnp.exp(state.log_weights) / num_particles
        return (state, particles), (
            features,
            current_weights,
            is_unfinished,
            info.ancestors,
        )

    def step_backwards(weights: Array, ancestors: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(weights).at[ancestors].add(weights), weights

    (state, _), (features, current_weights, is_unfinished, ancestors) = jax.lax.scan(
        step_forwards,
        (state, particles),
        jnp.arange(twisted.max_steps, dtype=jnp.int32),
    )
    _, final_weights = jax.lax.scan(
        step_backwards, current_weights[-1], ancestors, reverse=True
    )
    has_contrast = is_unfinished & (state.log_evidence > -jnp.inf)
    weights = jnp.where(has_contrast, final_weights - current_weights, 0.0)
    return Contrast(features, weights, state.log_evidence)


def contrastive_loss(
    theta: Any, apply: Callable[..., Array], sample: Contrast
) -> Float[Array, ""]:
    """A surrogate loss: its gradient at the theta of the run estimates that of L.

    Args:
        theta: parameters of the twist.
        apply: as in `tsi.twists.learned.LearnedTwist`.
        sample: the result of `contrast` with the same theta.
    """
    steps = jnp.arange(sample.weights.shape[0])
    log_psi = jax.vmap(apply, (None, 0, 0))(theta, steps, sample.features)
    return -jnp.sum(sample.weights * log_psi)


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
    """Minimise the contrastive objective, with one run of twisted SMC per update.

    A pure function, which can be jitted, and vmapped over keys or parameters.

    Args:
        key: of either style; update u uses `fold_in(key, u)`.
        target: any target that has `max_steps`.
        twist: the family of twists.
        theta: initial parameters, a pytree of float arrays.
        optimiser: from optax; a decaying learning rate averages out the noise.
        num_particles: N of each run.
        num_updates: number of updates.
        params: parameters of the target.
        accumulate: "product" or "last", as in
            `tsi.twists.twisted_target.TwistedTarget`.
    """
    key = single_key(key)

    def update(carry: tuple, u: Array) -> tuple[tuple, Array]:
        theta, moments = carry
        sample = contrast(
            jax.random.fold_in(key, u),
            target,
            twist,
            theta,
            num_particles,
            params,
            accumulate=accumulate,
        )
        gradients = jax.grad(contrastive_loss)(theta, twist.apply, sample)
        changes, moments = optimiser.update(gradients, moments, theta)
        return (optax.apply_updates(theta, changes), moments), sample.log_evidence

    start = (theta, optimiser.init(theta))
    (theta, _), log_evidence = jax.lax.scan(update, start, jnp.arange(num_updates))
    return TwistFit(theta, log_evidence)
