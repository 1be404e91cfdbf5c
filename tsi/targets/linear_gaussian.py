"""A linear-Gaussian target, whose exact answers come from the Kalman filter.

    x_1 ~ N(0, initial_scale^2),  x_t = decay x_{t-1} + N(0, transition_scale^2),
    G_t(x_{1:t}) = N(y_t; x_t, noise_scale^2),

with one particle per state path and T observations. With the product potential the
evidence is p(y_{1:T}), and the posterior of the last state is that of the Kalman
filter. With the telescoping potential only the last observation counts, and both are
those of a normal prior with a normal likelihood.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tsi.errors import ConfigurationError
from tsi.step_keys import AnyKey, single_key
from tsi.target import where_rows
from tsi.weights import weight_dtype

NODES, MAX_DIMENSIONS = 24, 4
"""Quadrature: nodes per dimension, and maximum dimensions; 330,000 nodes in total."""


class LinearGaussianParticles(NamedTuple):
    """State paths so far.

    Attributes:
        x: the current state x_t, zero before the first step, [N].
        length: number of steps taken, [N].
        path: all states so far, zero after the last one, [N, T].
    """

    x: Float[Array, "N"]
    length: Int[Array, "N"]
    path: Float[Array, "N T"]


class LinearGaussianTruth(NamedTuple):
    """Log evidence, and mean and variance of the last state under the posterior."""

    log_evidence: float
    mean: float
    variance: float


def _log_normal(x: Array, mean: Array, scale: float) -> Array:
    return jax.scipy.stats.norm.logpdf(x, mean, scale)


def _condition(
    mean: float, variance: float, observation: float, noise: float
) -> LinearGaussianTruth:
    """Condition a normal prior on one noisy observation; also the log evidence."""
    total_variance = variance + noise
    error = observation - mean
    log_evidence = -0.5 * (
        np.log(2 * np.pi * total_variance) + error**2 / total_variance
    )
    gain = variance / total_variance
    return LinearGaussianTruth(
        float(log_evidence), mean + gain * error, (1.0 - gain) * variance
    )


class LinearGaussianTarget:
    """A scalar linear-Gaussian state space model.

    Args:
        observations: y, [T].
        decay: the autoregression coefficient.
        initial_scale: standard deviation of x_1.
        transition_scale: standard deviation of the noise of each step.
        noise_scale: standard deviation of the observations.
        proposal_scale: standard deviation of the proposal for all steps, as a multiple
            of that of the model; 1 proposes from the model itself.

    Raises:
        ConfigurationError: if there are no observations or a scale is not positive.
    """

    def __init__(
        self,
        observations: Any = (0.4, 1.1, -0.3, 0.8),
        *,
        decay: float = 0.8,
        initial_scale: float = 1.0,
        transition_scale: float = 0.6,
        noise_scale: float = 0.9,
        proposal_scale: float = 1.2,
    ) -> None:
        self.observations = np.asarray(observations, np.float64)
        self.decay = decay
        self.initial_scale, self.transition_scale = initial_scale, transition_scale
        self.noise_scale, self.proposal_scale = noise_scale, proposal_scale
        self.max_steps = len(self.observations)
        scales = (initial_scale, transition_scale, noise_scale, proposal_scale)
        if self.max_steps < 1 or min(scales) <= 0:
            raise ConfigurationError(
                "LinearGaussianTarget needs at least one observation and positive "
                f"scales; got {self.max_steps} observations and scales {scales}."
            )

    def init(
        self, key: AnyKey, num_particles: int, params: Any = None
    ) -> LinearGaussianParticles:
        """N empty paths."""
        return LinearGaussianParticles(
            jnp.zeros(num_particles),
            jnp.zeros(num_particles, jnp.int32),
            jnp.zeros((num_particles, self.max_steps)),
        )

    def propose(
        self,
        key: AnyKey,
        t: Int[Array, ""] | Int[Array, "N"] | int,
        particles: LinearGaussianParticles,
        params: Any = None,
    ) -> tuple[LinearGaussianParticles, Float[Array, "N"]]:
        """Extend each path by one state; particle i uses fold_in(key, i)."""
        key, slots = single_key(key), jnp.arange(particles.x.shape[0])
        keys = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots)
        noise = jax.vmap(jax.random.normal)(keys)
        t = jnp.broadcast_to(t, slots.shape)
        scale = jnp.where(t == 0, self.initial_scale, self.transition_scale)
        x = self.decay * particles.x + self.proposal_scale * scale * noise
        log_p = _log_normal(self.proposal_scale * noise, jnp.zeros(()), 1.0)
        log_q = _log_normal(noise, jnp.zeros(()), 1.0) - jnp.log(self.proposal_scale)
        done = self.finished(particles)
        rows = where_rows(done, particles, self._append_state(particles, t, x))
        return rows, jnp.where(done, 0.0, log_p - log_q)

    def _append_state(
        self, particles: LinearGaussianParticles, t: Int[Array, "N"], x: Array
    ) -> LinearGaussianParticles:
        is_current = jnp.arange(self.max_steps) == t[:, None]
        path = jnp.where(is_current, x[:, None], particles.path)
        return LinearGaussianParticles(x, particles.length + 1, path)

    def log_prob(
        self, particles: LinearGaussianParticles, params: Any = None
    ) -> Float[Array, "N"]:
        """The log density of each path so far."""
        return self._log_density(particles, 1.0)

    def log_proposal(
        self, particles: LinearGaussianParticles, params: Any = None
    ) -> Float[Array, "N"]:
        """The log density of each path so far under the proposal."""
        return self._log_density(particles, self.proposal_scale)

    def _log_density(
        self, particles: LinearGaussianParticles, scale_factor: float
    ) -> Float[Array, "N"]:
        path = particles.path
        means = self.decay * jnp.pad(path, ((0, 0), (1, 0)))[:, :-1]
        first = jnp.arange(self.max_steps) == 0
        scales = jnp.where(first, self.initial_scale, self.transition_scale)
        scales = scale_factor * scales
        log_p = jax.scipy.stats.norm.logpdf(path, means, scales)
        step_mask = jnp.arange(self.max_steps) < particles.length[:, None]
        return jnp.sum(jnp.where(step_mask, log_p, 0.0), axis=1)

    def truncate(
        self,
        particles: LinearGaussianParticles,
        depths: Int[Array, "N"],
        params: Any = None,
    ) -> LinearGaussianParticles:
        """The first `depths` states of each path."""
        length = jnp.minimum(particles.length, depths)
        is_kept = jnp.arange(self.max_steps) < length[:, None]
        path = jnp.where(is_kept, particles.path, 0.0)
        last = jnp.take_along_axis(path, jnp.maximum(length - 1, 0)[:, None], axis=1)
        return LinearGaussianParticles(last[:, 0], length, path)

    def replay(
        self,
        t: Int[Array, ""] | Int[Array, "N"] | int,
        particles: LinearGaussianParticles,
        sources: LinearGaussianParticles,
        params: Any = None,
    ) -> tuple[LinearGaussianParticles, Float[Array, "N"]]:
        """Extend each path by state t of its source; also its log density."""
        t = jnp.broadcast_to(t, particles.length.shape)
        place = jnp.minimum(t, self.max_steps - 1)[:, None]
        x = jnp.take_along_axis(sources.path, place, axis=1)[:, 0]
        step_mask = (particles.length < self.max_steps) & (sources.length > t)
        scale = jnp.where(t == 0, self.initial_scale, self.transition_scale)
        log_p = jax.scipy.stats.norm.logpdf(x, self.decay * particles.x, scale)
        extended = self._append_state(particles, t, x)
        rows = where_rows(step_mask, extended, particles)
        return rows, jnp.where(step_mask, log_p, 0.0)

    def log_potential(
        self,
        t: Int[Array, ""] | Int[Array, "N"] | int,
        particles: LinearGaussianParticles,
        params: Any = None,
    ) -> Float[Array, "N"]:
        """log N(y_t; x_t, noise_scale^2)."""
        observation = jnp.asarray(self.observations, weight_dtype())[t]
        return _log_normal(observation, particles.x, self.noise_scale)

    def finished(self, particles: LinearGaussianParticles) -> Bool[Array, "N"]:
        """Whether each path has a state for every observation."""
        return particles.length >= self.max_steps

    def gather(
        self, particles: LinearGaussianParticles, ancestors: Int[Array, "N"]
    ) -> LinearGaussianParticles:
        """The paths at `ancestors`."""
        return jax.tree.map(lambda leaf: leaf[ancestors], particles)

    def prior(self) -> tuple[float, float]:
        """Mean and variance of the last state before any observation."""
        variance = self.initial_scale**2
        for _ in range(self.max_steps - 1):
            variance = self.decay**2 * variance + self.transition_scale**2
        return 0.0, variance

    def kalman(self) -> LinearGaussianTruth:
        """The Kalman filter: exact answers for the product of all potentials."""
        mean, variance, log_evidence = 0.0, self.initial_scale**2, 0.0
        for t, observation in enumerate(self.observations):
            if t > 0:
                mean = self.decay * mean
                variance = self.decay**2 * variance + self.transition_scale**2
            step = _condition(mean, variance, observation, self.noise_scale**2)
            mean, variance = step.mean, step.variance
            log_evidence += step.log_evidence
        return LinearGaussianTruth(log_evidence, mean, variance)

    def truth(
        self, path_log_weight: Callable[..., Any], *, power: float = 1.0
    ) -> LinearGaussianTruth | None:
        """Exact answers for a path weight, in closed form or by quadrature.

        Args:
            path_log_weight: as in `tsi.sampler.Sampler`.
            power: exponent of p in the target.

        Returns:
            The closed form if the target is p times all potentials, times the last one,
            or p itself; otherwise the quadrature, or None if there are too many
            observations for it.
        """
        if power != 1.0:
            return self.quadrature(path_log_weight, power)
        # Identify the path weight by its values at a few generic points.
        probe = jax.random.normal(jax.random.key(0), (7, self.max_steps))
        weight = path_log_weight(probe, jnp.ones(probe.shape, bool))
        if np.allclose(weight, probe.sum(-1), atol=1e-4):
            return self.kalman()
        mean, variance = self.prior()
        if np.allclose(weight, probe[:, -1], atol=1e-4):
            return _condition(
                mean, variance, self.observations[-1], self.noise_scale**2
            )
        if np.allclose(weight, 0.0, atol=1e-6):
            return LinearGaussianTruth(0.0, mean, variance)
        return self.quadrature(path_log_weight)

    def quadrature(
        self, path_log_weight: Callable[..., Any], power: float = 1.0
    ) -> LinearGaussianTruth | None:
        """Exact answers for any smooth path weight, by Gauss-Hermite quadrature.

        The quadrature is over the noise of all steps. p^power is p with narrower noise,
        times a constant.

        Args:
            path_log_weight: as in `tsi.sampler.Sampler`.
            power: exponent of p in the target.

        Returns:
            The answers, or None for more than four observations.
        """
        if self.max_steps > MAX_DIMENSIONS:
            return None
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        grids = np.meshgrid(*[nodes] * self.max_steps, indexing="ij")
        noise = np.stack([grid.ravel() for grid in grids], axis=-1)
        shares = np.meshgrid(*[weights] * self.max_steps, indexing="ij")
        log_weights = np.log(np.stack([s.ravel() for s in shares], axis=-1)).sum(-1)
        log_weights -= self.max_steps / 2 * np.log(2 * np.pi)
        x, log_potentials = np.zeros(len(noise)), []
        for t, observation in enumerate(self.observations):
            scale = self.transition_scale if t else self.initial_scale
            x = self.decay * x + scale / np.sqrt(power) * noise[:, t]
            log_weights += (1 - power) / 2 * np.log(2 * np.pi * scale**2)
            log_weights -= np.log(power) / 2
            error = (observation - x) / self.noise_scale
            constant = np.log(np.sqrt(2 * np.pi) * self.noise_scale)
            log_potentials.append(-0.5 * error**2 - constant)
        potentials = jnp.asarray(np.stack(log_potentials, axis=-1), weight_dtype())
        log_target = path_log_weight(potentials, jnp.ones(potentials.shape, bool))
        log_joint = log_weights + np.asarray(log_target, np.float64)
        log_evidence = float(np.logaddexp.reduce(log_joint))
        posterior = np.exp(log_joint - log_evidence)
        mean = float(posterior @ x)
        return LinearGaussianTruth(
            log_evidence, mean, float(posterior @ (x - mean) ** 2)
        )
