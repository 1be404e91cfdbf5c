"""The linear-Gaussian target's closed forms against independent computations."""

import numpy as np
import pytest
from scipy import integrate, stats

from tsi.errors import ConfigurationError
from tsi.samplers.parts.potentials import product, telescoping, uniform
from tsi.targets.linear_gaussian import LinearGaussianTarget


def joint(target):
    """Covariance of the states, from the model's definition."""
    size = target.max_steps
    operator = np.linalg.inv(np.eye(size) - target.decay * np.eye(size, k=-1))
    scales = np.full(size, target.transition_scale**2)
    scales[0] = target.initial_scale**2
    return operator @ np.diag(scales) @ operator.T


def test_the_kalman_filter_equals_the_joint_gaussian():
    target = LinearGaussianTarget()
    states = joint(target)
    observed = states + target.noise_scale**2 * np.eye(target.max_steps)
    truth = target.truth(product("odds").path_log_weight)
    log_evidence = stats.multivariate_normal(cov=observed).logpdf(target.observations)
    np.testing.assert_allclose(truth.log_evidence, log_evidence, rtol=1e-9)
    gain = states[-1] @ np.linalg.inv(observed)
    np.testing.assert_allclose(truth.mean, gain @ target.observations, rtol=1e-9)
    variance = states[-1, -1] - gain @ states[-1]
    np.testing.assert_allclose(truth.variance, variance, rtol=1e-9)


def test_the_telescoping_truth_equals_quadrature():
    target = LinearGaussianTarget()
    truth = target.truth(telescoping("odds").path_log_weight)
    scale = np.sqrt(joint(target)[-1, -1])

    def density(x):
        observation = target.observations[-1]
        likelihood = stats.norm.pdf(observation, x, target.noise_scale)
        return stats.norm.pdf(x, 0.0, scale) * likelihood

    evidence = integrate.quad(density, -10, 10)[0]
    mean = integrate.quad(lambda x: x * density(x), -10, 10)[0] / evidence
    np.testing.assert_allclose(np.exp(truth.log_evidence), evidence, rtol=1e-7)
    np.testing.assert_allclose(truth.mean, mean, rtol=1e-7)


def test_the_quadrature_equals_the_closed_forms():
    target = LinearGaussianTarget()
    for potential in (product("odds"), telescoping("odds"), uniform()):
        weight = potential.path_log_weight
        found, known = target.quadrature(weight), target.truth(weight)
        np.testing.assert_allclose(found, known, atol=1e-5)


def test_the_reward_of_the_last_state_equals_an_integral_over_it():
    target = LinearGaussianTarget()
    truth = target.truth(telescoping("reward").path_log_weight)
    scale = np.sqrt(joint(target)[-1, -1])

    def density(x):
        odds = stats.norm.pdf(target.observations[-1], x, target.noise_scale)
        return stats.norm.pdf(x, 0.0, scale) * odds / (1.0 + odds)

    evidence = integrate.quad(density, -10, 10)[0]
    mean = integrate.quad(lambda x: x * density(x), -10, 10)[0] / evidence
    np.testing.assert_allclose(np.exp(truth.log_evidence), evidence, rtol=1e-5)
    np.testing.assert_allclose(truth.mean, mean, rtol=1e-5)


def test_a_power_of_the_policy_is_another_linear_gaussian_model():
    target, power = LinearGaussianTarget(), 2.5
    sharper = LinearGaussianTarget(
        initial_scale=target.initial_scale / power**0.5,
        transition_scale=target.transition_scale / power**0.5,
    )
    known = sharper.kalman()
    found = target.truth(product("odds").path_log_weight, power=power)
    # The integral of a density's power, for each of the four noises.
    scales = np.array([target.initial_scale] + [target.transition_scale] * 3)
    densities = [
        integrate.quad(lambda x, s=s: stats.norm.pdf(x, 0, s) ** power, -10, 10)[0]
        for s in scales
    ]
    total = known.log_evidence + np.log(densities).sum()
    np.testing.assert_allclose(
        found, known._replace(log_evidence=total), rtol=1e-5, atol=1e-5
    )


def test_the_truth_is_told_only_where_it_is_known():
    target = LinearGaussianTarget()
    assert target.truth(uniform().path_log_weight).log_evidence == 0.0
    longer = LinearGaussianTarget(np.zeros(5))
    assert longer.truth(product("reward").path_log_weight) is None
    assert longer.truth(product("odds").path_log_weight) is not None


def test_scales_must_be_positive():
    with pytest.raises(ConfigurationError, match="positive"):
        LinearGaussianTarget(noise_scale=0.0)
