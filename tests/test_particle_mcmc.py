"""Particle MCMC is exact after any number of sweeps, and its mutants are not."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import chain, judged, other_promises

import tsi
from tsi import samplers
from tsi.bench.robustness import Programs, has_nan
from tsi.bench.unbiasedness import judge_tabular
from tsi.errors import CapabilityError, ConfigurationError
from tsi.samplers import conditional_smc
from tsi.samplers import particle_gibbs as gibbs
from tsi.targets.examples import peaked, smooth, unequal_lengths
from tsi.targets.linear_gaussian import LinearGaussianTarget
from tsi.targets.tabular import TabularTarget
from tsi.weights import CompensatedSum

module = importlib.import_module("tsi.samplers.particle_gibbs")
backward = importlib.import_module("tsi.samplers.backward_sampling")


EXACT = {
    "two sweeps": lambda: gibbs(num_sweeps=2),
    "two particles": lambda: gibbs(particles_per_sweep=2),
    "telescoping": lambda: gibbs(potential=samplers.telescoping(), num_sweeps=2),
    "uniform": lambda: gibbs(potential=samplers.uniform(), num_sweeps=2),
    "systematic": lambda: gibbs(
        particles_per_sweep=4, scheme=conditional_smc.conditional_systematic
    ),
    "adaptive": lambda: gibbs(num_sweeps=2, schedule=samplers.ess_below(0.6)),
    "ancestors": lambda: gibbs(num_sweeps=4, ancestor_sampling=True),
    "ancestors, telescoping": lambda: gibbs(
        potential=samplers.telescoping("reward"), num_sweeps=2, ancestor_sampling=True
    ),
    "backward": lambda: gibbs(num_sweeps=4, backward_sampling=True),
    "backward, telescoping": lambda: gibbs(
        potential=samplers.telescoping(), num_sweeps=2, backward_sampling=True
    ),
    "pimh": lambda: samplers.pimh(num_iterations=4),
    "pimh, telescoping": lambda: samplers.pimh(
        potential=samplers.telescoping(), particles_per_iteration=1
    ),
}


QUICK = ("two sweeps", "telescoping", "pimh")
"""One of each kind; the others compile for half a minute each."""


def quick(names, kept=QUICK):
    """The names, the slower ones marked."""
    return [
        pytest.param(name, marks=[] if name in kept else [pytest.mark.slow])
        for name in names
    ]


@pytest.mark.long
@pytest.mark.parametrize("name", quick(EXACT))
def test_every_finite_chain_is_exact(name):
    report = judged(EXACT[name]())
    report.raise_if_failed()
    assert sum(check.passed is True for check in report.checks) == 8


@pytest.mark.long
@pytest.mark.parametrize(
    "name", quick(["two sweeps", "ancestors", "backward", "pimh"], ["ancestors"])
)
def test_continuous_steps_agree_with_the_kalman_filter(name):
    report = judged(EXACT[name](), {"linear-Gaussian": LinearGaussianTarget})
    report.raise_if_failed()
    assert len(report.checks) == 2


@pytest.mark.long
@pytest.mark.parametrize(
    "name", quick(["two sweeps", "ancestors", "pimh"], ["two sweeps"])
)
def test_the_other_promises_are_kept(name):
    other_promises(EXACT[name](), 8).raise_if_failed()


ENDLESS = {
    "plain": lambda: gibbs(endless=True),
    "ancestors": lambda: gibbs(endless=True, ancestor_sampling=True),
    "backward": lambda: gibbs(endless=True, backward_sampling=True),
    "pimh": lambda: samplers.pimh(endless=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDLESS)
def test_endless_chains_overwrite_their_store_and_stay_exact(name):
    explorer = chain(ENDLESS[name](), 6)
    tables = {"peaked": peaked, "unequal lengths": unequal_lengths}
    judged(explorer, tables, num_particles=2).raise_if_failed()
    run = tsi.run(explorer, smooth(), jax.random.key(0), 2)
    assert run.particles.symbols.shape == (2, 4)
    assert int(run.state.iteration) == 6


def test_the_sample_describes_the_reference():
    target = unequal_lengths()
    explorer = chain(gibbs(endless=True), 5)
    state = tsi.run(explorer, target, jax.random.key(3), 4).state
    sample = state.sample
    score = samplers.product().path_log_weight(
        state.reference.log_potentials, state.reference.step_mask
    )
    assert float(sample.log_density) == pytest.approx(
        float(score + sample.log_prob), abs=1e-5
    )
    assert int(sample.length) == int(state.reference.length) > 0
    codes, log_p = target.paths()
    lengths = (codes >= 0).sum(1)
    known = log_p[lengths == int(sample.length)]
    assert np.abs(known - float(sample.log_prob)).min() < 1e-5


@pytest.mark.slow
def test_a_long_chain_forgets_its_start_and_is_stationary():
    """Plain time averages, without the evidence of the start."""
    target, sweeps, size, burn = peaked(), 40, 3, 10
    explorer = gibbs(num_sweeps=sweeps)
    run = Programs(explorer, sweeps * size, 2000)(target, jax.random.key(0))
    truth = target.truth(explorer.path_log_weight)._replace(log_evidence=0.0)
    kept = slice(burn * size, None)
    measure = judge_tabular(
        target,
        truth,
        run.particles.symbols[:, kept],
        run.state.log_weights[:, kept],
        np.zeros(2000),
    )
    assert measure.p_value > 1e-3


def renewed(**settings):
    """How often the first symbol of the reference is another one a sweep later."""
    sweeps = 12
    explorer = gibbs(num_sweeps=sweeps, **settings)
    symbols = Programs(explorer, 2 * sweeps, 1000)(
        smooth(), jax.random.key(0)
    ).particles.symbols
    references = np.asarray(symbols)[:, 2::2, 0]
    return np.mean(references[:, 1:] != references[:, :-1])


@pytest.mark.slow
def test_ancestor_and_backward_sampling_renew_what_plain_particle_gibbs_cannot():
    plain = renewed()
    assert renewed(ancestor_sampling=True) > 1.3 * plain
    assert renewed(backward_sampling=True) > 1.3 * plain


# Mutants: each is one mistake that an author could make.


def independent_sweeps():
    """Every sweep is plain SMC: the reference is not kept."""
    good, zero = gibbs(endless=True), jnp.zeros((), jnp.int32)

    def ask(key, state):
        asked, request = good.ask(key, state._replace(iteration=zero))
        return asked._replace(iteration=state.iteration), request

    def tell(key, state, reply):
        told, info = good.tell(key, state._replace(iteration=zero), reply)
        first = state.iteration == 0
        evidence = jnp.where(first, told.log_evidence, state.log_evidence)
        iteration = state.iteration + told.iteration
        return told._replace(iteration=iteration, log_evidence=evidence), info

    return chain(good._replace(ask=ask, tell=tell), 6)


def test_a_reference_that_is_not_kept_is_caught():
    report = judged(independent_sweeps(), {"peaked": peaked}, num_particles=2)
    assert {check.promise for check in report.failures} == {"posterior, peaked"}


def _mutated_reference(change):
    weigh = conditional_smc.weigh

    def mutant(sweep, reply, potential, conditional, reference, **options):
        changed = reference._replace(log_potentials=change(reference))
        return weigh(sweep, reply, potential, conditional, changed, **options)

    return lambda patch: patch.setattr(conditional_smc, "weigh", mutant)


def _last(reference):
    end = reference.log_potentials[jnp.maximum(reference.length - 1, 0)]
    return jnp.full_like(reference.log_potentials, end)


def weights_not_reset(patch):
    fork = conditional_smc.fork

    def mutant(key, sweep, *rest, **named):
        forked = fork(key, sweep, *rest, **named)
        weights = sweep.smc.log_weights[forked.smc.ancestors]
        smc = forked.smc._replace(log_weights=weights, log_base=weights)
        return forked._replace(smc=smc)

    patch.setattr(conditional_smc, "fork", mutant)


def past_by_weight_alone(patch):
    def mutant(state, pasts, log_weights, step, score):
        return jnp.where(state.possible, log_weights, -jnp.inf)

    for place in (module, backward):
        patch.setattr(place, "log_past_weights", mutant)


def past_without_the_probability_of_the_future(patch):
    right = module.log_past_weights

    def mutant(state, *rest):
        zeros = jnp.zeros_like(state.joined.log_probs)
        joined = state.joined._replace(log_probs=zeros)
        return right(state._replace(joined=joined), *rest)

    for place in (module, backward):
        patch.setattr(place, "log_past_weights", mutant)


def past_weighed_twice(patch):
    right = module.log_past_weights

    def mutant(state, pasts, log_weights, step, score):
        return right(state, pasts, 2.0 * log_weights, step, score)

    patch.setattr(backward, "log_past_weights", mutant)


def repeated_steps_without_a_correction(patch):
    patch.delattr(TabularTarget, "log_proposal")


def systematic_without_its_condition(patch):
    def mutant(key, log_weights, conditional):
        drawn = samplers.systematic(key, log_weights, log_weights.shape[0])
        return drawn.at[0].set(jnp.where(conditional, 0, drawn[0]))

    patch.setattr(conditional_smc, "conditional_systematic", mutant)


MUTANTS = {
    "one step ahead": (
        _mutated_reference(lambda r: jnp.roll(r.log_potentials, -1)),
        "two particles",
    ),
    "final reward at every step": (_mutated_reference(_last), "two particles"),
    "weights not reset": (weights_not_reset, "two particles"),
    "ancestor by weight alone": (past_by_weight_alone, "ancestors"),
    "ancestor without its future": (
        past_without_the_probability_of_the_future,
        "ancestors",
    ),
    "backward by weight alone": (past_by_weight_alone, "backward"),
    "backward without its future": (
        past_without_the_probability_of_the_future,
        "backward",
    ),
    "backward weighed twice": (past_weighed_twice, "backward"),
    "repeated without correction": (repeated_steps_without_a_correction, "ancestors"),
    "systematic without condition": (systematic_without_its_condition, "systematic"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_of_particle_gibbs_are_caught(name, monkeypatch):
    mutate, method = MUTANTS[name]
    mutate(monkeypatch)
    report = judged(EXACT[method](), {"peaked": peaked}, num_particles=16)
    assert not report.passed


@pytest.mark.long
def test_pimh_that_accepts_everything_is_caught():
    good = samplers.pimh(particles_per_iteration=2)

    def tell(key, state, reply):
        nothing = CompensatedSum(jnp.full((), -jnp.inf), jnp.zeros(()))
        return good.tell(key, state._replace(log_accepted=nothing), reply)

    report = judged(good._replace(tell=tell), {"peaked": peaked}, num_particles=16)
    assert {check.promise for check in report.failures} == {"posterior, peaked"}


def test_budgets_that_cannot_be_used_are_refused():
    run, key = tsi.run, jax.random.key(0)
    for explorer, size in ((gibbs(num_sweeps=8), 8), (gibbs(num_sweeps=3), 8)):
        with pytest.raises(ConfigurationError, match="at least 2"):
            run(explorer, smooth(), key, size)
    with pytest.raises(ConfigurationError, match="not latest or terminal"):
        gibbs(potential=samplers.terminal())
    with pytest.raises(ConfigurationError, match="num_sweeps or particles_per_sweep"):
        gibbs(num_sweeps=2, particles_per_sweep=2)
    with pytest.raises(ConfigurationError, match="whole past"):
        gibbs(ancestor_sampling=True, backward_sampling=True)
    with pytest.raises(ConfigurationError, match="Leave out scheme and schedule"):
        gibbs(ancestor_sampling=True, schedule=samplers.never)
    target = smooth()
    target.replay = None
    with pytest.raises(CapabilityError, match="replay"):
        run(gibbs(ancestor_sampling=True), target, key, 8)


@pytest.mark.long
@pytest.mark.parametrize("name", ENDLESS)
def test_a_chain_survives_a_dead_start(name):
    target = smooth()
    target.log_potentials[1] = -np.inf
    run = tsi.run(chain(ENDLESS[name](), 3), target, jax.random.key(0), 4)
    assert float(run.state.log_evidence) == -np.inf
    assert not has_nan((run.state.log_weights, run.state.sample.log_prob))
