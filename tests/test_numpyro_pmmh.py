"""Particle marginal Metropolis-Hastings: posteriors by quadrature and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from numpyro_programs import GAUSSIAN, OBSERVED, gaussian
from scipy import stats

from tsi import samplers
from tsi.errors import ConfigurationError
from tsi.numpyro import PMMH, ModelArguments, parameters, program_target
from tsi.samplers.parts.potentials import product
from tsi.targets.examples import unequal_lengths
from tsi.targets.linear_gaussian import LinearGaussianTarget
from tsi.targets.tabular import TabularTarget

KEY = jax.random.key(0)
SMC = samplers.smc(potential=product())
CHAINS = 200


def mcmc(kernel, samples=300, warmup=200, chains=CHAINS):
    return MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=samples,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
        jit_model_args=True,
    )


def z_scores(features, truth, precision):
    """Of chains' means, [chains, samples] each; chains are independent."""
    means = np.stack([np.asarray(f, np.float64).mean(1) for f in features])
    error = means.std(1, ddof=1) / np.sqrt(means.shape[1])
    assert (error < precision).all()
    return (means.mean(1) - truth) / error


def start(params):
    return jnp.zeros(())


def step(t, x, params):
    """A state space model whose parameters are not known."""
    x = numpyro.sample("x", dist.Normal(params["decay"] * x, params["scale"]))
    noise = GAUSSIAN.noise_scale
    numpyro.sample("y", dist.Normal(x, noise), obs=params["y"][t])
    numpyro.deterministic("energy", x**2)
    return x


PROGRAM = program_target(start, step, max_steps=4)


def prior(y):
    """Both priors have a Jacobian: of a logistic and of an exponential map."""
    decay = numpyro.sample("decay", dist.Uniform(-1, 1))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    numpyro.deterministic("spread", scale**2)
    return {"decay": decay, "scale": scale, "y": y}


def kalman_posterior():
    """Means of decay, scale < 0.4, scale and the last state, by quadrature."""
    decays = np.linspace(-1, 1, 41)[:-1] + 0.025
    scales = np.linspace(0, 4, 101)[:-1] + 0.02
    log_joint, last = np.empty((40, 100)), np.empty((40, 100))
    for i, decay in enumerate(decays):
        for j, scale in enumerate(scales):
            known = LinearGaussianTarget(
                np.asarray(OBSERVED, np.float64),
                decay=decay,
                initial_scale=scale,
                transition_scale=scale,
                noise_scale=GAUSSIAN.noise_scale,
            ).kalman()
            log_joint[i, j] = known.log_evidence + stats.halfnorm.logpdf(scale)
            last[i, j] = known.mean
    mass = np.exp(log_joint) / np.exp(log_joint).sum()
    d, s = decays[:, None], scales[None]
    return np.array(
        [(mass * f).sum() for f in (d + 0 * s, (s < 0.4) + 0 * d, s + 0 * d, last)]
    )


class EstimatedAnew(PMMH):
    """Wrong: judges a proposal by a new estimate of the present state's evidence."""

    def _move(self, state, arguments):
        key = jax.random.fold_in(jax.random.fold_in(state.rng_key, 1), state.iteration)
        again = self._system(key, dict(state.z), arguments)
        state = state._replace(log_evidence=again.log_evidence)
        return super()._move(state, arguments)


def gaussian_scores(kernel, precision=0.02):
    run = mcmc(kernel)
    run.run(KEY, OBSERVED)
    samples = run.get_samples(group_by_chain=True)
    np.testing.assert_allclose(samples["spread"], samples["scale"] ** 2, rtol=1e-5)
    np.testing.assert_allclose(samples["energy"], samples["x"] ** 2, rtol=1e-4)
    scale = samples["scale"]
    features = (samples["decay"], scale < 0.4, scale, samples["x"][..., -1])
    return z_scores(features, kalman_posterior(), precision)


@pytest.mark.long
def test_parameters_and_paths_have_the_quadrature_of_the_kalman_likelihood():
    # Few particles: the posterior is exact for any number of them.
    scores = gaussian_scores(PMMH(SMC, PROGRAM, prior, num_particles=4))
    assert np.abs(scores).max() < 4


@pytest.mark.slow
def test_a_missing_jacobian_is_seen(monkeypatch):
    def without(sites, log_jacobians):
        none = {name: jnp.zeros(()) for name in log_jacobians}
        return whole(sites, none)

    whole = parameters._log_density
    monkeypatch.setattr(parameters, "_log_density", without)
    # What is left is improper, and the chains run away.
    kernel = PMMH(SMC, PROGRAM, prior, num_particles=4)
    scores = gaussian_scores(kernel, precision=np.inf)
    assert np.abs(scores).max() > 6


@pytest.mark.slow
def test_an_evidence_estimated_anew_is_seen():
    scores = gaussian_scores(EstimatedAnew(SMC, PROGRAM, prior, num_particles=4))
    assert np.abs(scores).max() > 6


TABLE = unequal_lengths()


def table_prior(params):
    """A discrete parameter, whose prior a continuous one depends on."""
    kind = numpyro.sample("kind", dist.Categorical(jnp.array([0.3, 0.7])))
    sharpness = numpyro.sample("sharpness", dist.Gamma(2.0 + kind, 2.0))
    # Factors and observed sites of the prior count.
    numpyro.sample("seen", dist.Normal(sharpness, 1.0), obs=1.5)
    log_potentials = jnp.where(
        kind == 0, params.log_potentials, params.log_potentials[:, ::-1]
    )
    return params._replace(log_potentials=sharpness * log_potentials)


def enumerated_posterior():
    """Mass of kind 1, mean sharpness, and mass of paths of one and two steps."""
    values = np.linspace(0, 12, 241)[:-1] + 0.025
    mass, lengths = np.empty((2, len(values))), np.empty((2, 2, len(values)))
    for kind, p in enumerate((0.3, 0.7)):
        potentials = TABLE.log_potentials[:, ::-1] if kind else TABLE.log_potentials
        for j, value in enumerate(values):
            table = TabularTarget(
                TABLE.initial, TABLE.transition, value * potentials, end=TABLE.end
            )
            truth = table.truth(product().path_log_weight)
            log_p = stats.gamma.logpdf(value, 2 + kind, scale=0.5)
            log_p += stats.norm.logpdf(1.5, value, 1.0)
            mass[kind, j] = p * np.exp(log_p + truth.log_evidence)
            length = (truth.symbols >= 0).sum(1)
            lengths[kind, :, j] = [truth.posterior[length == n].sum() for n in (1, 2)]
    mass /= mass.sum()
    by_length = (mass[:, None] * lengths).sum((0, 2))
    return np.array([mass[1].sum(), (mass * values).sum(), *by_length])


@pytest.mark.long
def test_discrete_and_continuous_parameters_have_the_enumerated_posterior():
    kernel = PMMH(
        SMC,
        TABLE,
        table_prior,
        num_particles=4,
        collect=lambda particles: {"symbols": particles.symbols},
    )
    run = mcmc(kernel)
    run.run(KEY, TABLE.params)
    samples = run.get_samples(group_by_chain=True)
    length = (np.asarray(samples["symbols"]) >= 0).sum(-1)
    features = (samples["kind"], samples["sharpness"], length == 1, length == 2)
    assert np.abs(z_scores(features, enumerated_posterior(), 0.02)).max() < 4


@pytest.mark.long
@pytest.mark.parametrize(
    "sampler",
    [
        SMC,
        pytest.param(
            samplers.finished_branch_smc(potential=product()),
            id="explorer",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_without_a_prior_it_is_particle_independent_metropolis_hastings(sampler):
    kernel = PMMH(sampler, gaussian(), num_particles=4)
    run = mcmc(kernel, samples=200, warmup=30)
    run.run(KEY, None)
    x = np.asarray(run.get_samples(group_by_chain=True)["x"], np.float64)[..., -1]
    truth = GAUSSIAN.kalman()
    features, means = (x, (x - truth.mean) ** 2), [truth.mean, truth.variance]
    assert np.abs(z_scores(features, np.array(means), 0.02)).max() < 4


FIELDS = ("z", "log_evidence", "accept_prob", "mean_accept_prob", "num_accepted")


@pytest.mark.long
def test_an_evidence_estimate_is_kept_until_a_proposal_is_accepted():
    run = mcmc(PMMH(SMC, PROGRAM, prior, num_particles=4), 200, 50, chains=2)
    run.warmup(KEY, OBSERVED)
    walk = run.post_warmup_state.walk
    run.run(KEY, OBSERVED, extra_fields=FIELDS)
    extra = run.get_extra_fields(group_by_chain=True)
    moved = np.diff(extra["num_accepted"], axis=1) == 1
    assert 0.02 < moved.mean() < 0.9
    np.testing.assert_array_equal(np.diff(extra["log_evidence"], axis=1) != 0, moved)
    np.testing.assert_array_equal(np.diff(extra["z"]["decay"], axis=1) != 0, moved)
    x = np.asarray(run.get_samples(group_by_chain=True)["x"])
    np.testing.assert_array_equal((np.diff(x, axis=1) != 0).all(-1), moved)
    means = np.cumsum(extra["accept_prob"], axis=1) / np.arange(1, 201)
    np.testing.assert_allclose(extra["mean_accept_prob"], means, rtol=1e-3, atol=1e-5)
    # The walk moved while it warmed up, and not since.
    assert (np.asarray(walk.log_scale) != 0).all()
    for now, then in zip(run.last_state.walk, walk, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.long
def test_a_resumed_chain_goes_on_as_if_it_had_never_stopped():
    def kernel():
        return PMMH(SMC, PROGRAM, prior, num_particles=4)

    whole, parts = mcmc(kernel(), 40, 10, chains=2), mcmc(kernel(), 20, 10, chains=2)
    whole.run(KEY, OBSERVED)
    parts.run(KEY, OBSERVED)
    first = parts.get_samples(group_by_chain=True)
    parts.post_warmup_state = parts.last_state
    parts.run(parts.last_state.rng_key, OBSERVED)
    second = parts.get_samples(group_by_chain=True)
    for name, values in whole.get_samples(group_by_chain=True).items():
        together = np.concatenate([first[name], second[name]], axis=1)
        np.testing.assert_allclose(values, together, rtol=1e-5)


def test_it_starts_where_init_params_says_and_elsewhere_from_the_prior():
    kernel = PMMH(SMC, PROGRAM, prior, num_particles=4)
    given = {"decay": jnp.array(0.3)}
    states = [
        kernel.init(key, 5, given, (OBSERVED,), {}) for key in jax.random.split(KEY)
    ]
    for state in states:
        assert float(state.sample["decay"]) == pytest.approx(np.tanh(0.15), rel=1e-5)
    assert states[0].sample["scale"] != states[1].sample["scale"]
    with pytest.raises(ConfigurationError, match="dekay"):
        kernel.init(KEY, 5, {"dekay": 0.3}, (OBSERVED,), {})


def test_what_has_no_evidence_of_its_own_is_refused():
    for sampler, sentence in (
        (samplers.beam_search(2), "no target"),
        (samplers.pimh(endless=True), "endless"),
        (samplers.parallel_tempering(), "several temperatures"),
        (samplers.smc, "needs a sampler"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            PMMH(sampler, PROGRAM, prior)
    with pytest.raises(ConfigurationError, match="program_target"):
        PMMH(SMC, step, prior)
    with pytest.raises(ConfigurationError, match="positive num_particles"):
        PMMH(SMC, PROGRAM, prior, num_particles=0)
    several = PMMH(SMC, TABLE, lambda a: ModelArguments((a, a), {}))
    with pytest.raises(ConfigurationError, match="one argument"):
        several.init(KEY, 0, None, (TABLE.params,), {})


def test_another_target_than_the_programs_posterior_is_warned_of():
    with pytest.warns(UserWarning, match=r"potential=product\(\)"):
        PMMH(samplers.smc(), PROGRAM, prior)
