"""What users of numpyro expect of a kernel and of a model."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, Predictive
from numpyro.infer.util import log_density
from numpyro_programs import GAUSSIAN, OBSERVED, gaussian

import tsi
from tsi import samplers
from tsi.errors import ConfigurationError, TsiError, UnknownNameError
from tsi.explorer import Explorer
from tsi.numpyro import PMMH, ExplorerKernel, ModelArguments, program_target
from tsi.numpyro.named_fields import NamedValues
from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import product
from tsi.targets.examples import unequal_lengths
from tsi.twists.twisted_target import TwistedTarget

KEY = jax.random.key(0)
METROPOLIS = samplers.suffix_metropolis(product(), endless=True)
SMC = samplers.smc(potential=product())


def start(y, scale=0.6):
    numpyro.deterministic("first", y[0])
    return jnp.zeros(())


def step(t, x, y, scale=0.6):
    x = numpyro.sample("x", dist.Normal(0.8 * x, scale))
    numpyro.deterministic("square", x**2)
    numpyro.sample("y", dist.Normal(x, 0.9), obs=y[t])
    return x


TARGET = program_target(start, step, max_steps=4)


def prior(y):
    return ModelArguments((y,), {"scale": numpyro.sample("s", dist.HalfNormal(1.0))})


def explorer_kernel():
    return ExplorerKernel(METROPOLIS, TARGET)


def pmmh_kernel():
    return PMMH(SMC, TARGET, prior, num_particles=4)


KERNELS = {"explorer": explorer_kernel, "pmmh": pmmh_kernel}
both = pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS)


def mcmc(kernel, chains=1, samples=8, **changes):
    settings = {"num_warmup": 4, "chain_method": "vectorized", "progress_bar": False}
    return MCMC(kernel, num_samples=samples, num_chains=chains, **(settings | changes))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Arguments


def samples_of(*args, jit_model_args=False, **kwargs):
    run = mcmc(explorer_kernel(), jit_model_args=jit_model_args)
    run.run(KEY, *args, **kwargs)
    return dict(run.get_samples())


@pytest.fixture(scope="module")
def samples_of_one_argument():
    return samples_of(OBSERVED)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        pytest.param((), {"y": OBSERVED}, marks=pytest.mark.slow),
        ((OBSERVED, 0.6), {}),
        pytest.param(
            (OBSERVED,),
            {"scale": 0.6, "jit_model_args": True},
            marks=pytest.mark.slow,
        ),
        ((), {"y": OBSERVED, "scale": 0.6, "jit_model_args": True}),
    ],
)
def test_arguments_reach_the_programs_as_numpyro_passes_them(
    args, kwargs, samples_of_one_argument
):
    for name, values in samples_of(*args, **kwargs).items():
        np.testing.assert_allclose(values, samples_of_one_argument[name], rtol=1e-5)


def test_an_argument_matters_and_may_be_called_params():
    kernel = explorer_kernel()

    def square(*args, **kwargs):
        state = kernel.init(KEY, 0, None, args, kwargs)
        return kernel.sample(state, args, kwargs).sample["square"]

    assert not np.allclose(square(OBSERVED, scale=2.0), square(OBSERVED))
    table = ExplorerKernel(METROPOLIS, unequal_lengths())
    params = unequal_lengths().params
    same(
        table.init(KEY, 0, None, (), {"params": params}).exploration,
        table.init(KEY, 0, None, (params,), {}).exploration,
    )


def test_arguments_that_a_program_does_not_take_are_named():
    with pytest.raises(ConfigurationError, match=r"start.*sigma"):
        explorer_kernel().init(KEY, 0, None, (OBSERVED,), {"sigma": 1.0})
    bare = program_target(lambda y: 0.0, lambda t, x: x, max_steps=2)
    with pytest.raises(ConfigurationError, match="too many positional"):
        tsi.run(SMC, bare, KEY, 2, OBSERVED)


def test_a_guided_program_and_one_with_an_end_take_them_too():
    def guide(t, x, y, scale):
        numpyro.sample("x", dist.Normal(0.5 * x + 0.4 * y[t], scale))

    def end(t, x, y, scale):
        return x > scale

    target = program_target(start, step, max_steps=4, proposal=guide, end=end)
    arguments = ModelArguments((OBSERVED,), {"scale": 0.5})
    particles = tsi.run(SMC, target, KEY, 64, arguments).particles
    x, length = np.asarray(particles.history.latents["x"]), particles.length
    assert set(np.asarray(length)) > {1, 2}
    early = np.asarray(length) < 4
    assert (x[np.arange(64), np.asarray(length) - 1][early] > 0.5).all()


# Keys


def test_an_old_style_key_starts_the_same_chain_and_goes_on():
    """Of PMMH; explorers' chains are in test_keys."""
    kernel, arguments = pmmh_kernel(), ((OBSERVED,), {})
    typed, old = (
        kernel.init(make(3), 0, None, *arguments)
        for make in (jax.random.key, jax.random.PRNGKey)
    )
    same(typed._replace(rng_key=None), old._replace(rng_key=None))
    resumed = old._replace(rng_key=jax.random.PRNGKey(4))
    after = jax.eval_shape(lambda state: kernel.sample(state, *arguments), resumed)
    assert after.z.keys() == old.z.keys()


@pytest.mark.slow
@both
def test_old_style_keys_give_the_same_chains(make):
    typed, old = mcmc(make(), chains=2), mcmc(make(), chains=2)
    typed.run(jax.random.key(3), OBSERVED)
    old.run(jax.random.PRNGKey(3), OBSERVED)
    same(typed.get_samples(), old.get_samples())
    # A chain resumed with an old-style key goes on.
    first = old.get_samples()["x"]
    old.post_warmup_state = old.last_state
    old.run(jax.random.PRNGKey(3), OBSERVED)
    assert not np.array_equal(old.get_samples()["x"], first)


# Pickles


@pytest.mark.parametrize(
    ("make", "chains"),
    [
        pytest.param(explorer_kernel, 1, marks=pytest.mark.slow),
        (explorer_kernel, 2),
        pytest.param(pmmh_kernel, 2, marks=pytest.mark.slow),
    ],
)
def test_a_kernel_and_its_mcmc_pickle_before_and_after_a_run(make, chains):
    whole = mcmc(pickle.loads(pickle.dumps(make())), chains)
    fresh = pickle.loads(pickle.dumps(mcmc(make(), chains)))
    for run in (whole, fresh):
        run.run(KEY, OBSERVED)
    same(whole.get_samples(), fresh.get_samples())
    copy = pickle.loads(pickle.dumps(fresh))
    same(copy.get_samples(), whole.get_samples())
    for run in (whole, copy):
        run.post_warmup_state = run.last_state
        run.run(run.last_state.rng_key, OBSERVED)
    same(copy.get_samples(), whole.get_samples())
    assert not np.array_equal(copy.get_samples()["x"], fresh.get_samples()["x"])
    state = pickle.loads(pickle.dumps(copy.last_state))
    with pytest.raises(UnknownNameError, match="nothing"):
        state["nothing"]


POTENTIALS = (
    product(),
    samplers.telescoping("softmax"),
    samplers.terminal(),
    samplers.latest(),
    samplers.uniform(),
)


def all_samplers():
    """Every sampler of the package by name, as its constructor makes it."""
    for name in sorted(set(samplers.__all__)):
        for arguments in ((), (product(),), (4,), (samplers.multinomial,)):
            try:
                value = getattr(samplers, name)(*arguments)
            except Exception:
                continue
            if isinstance(value, Sampler | Explorer):
                yield name, value
                break


def test_every_sampler_and_what_it_is_made_of_pickles():
    made = dict(all_samplers())
    assert len(made) >= 25
    for name, sampler in made.items():
        copy = pickle.loads(pickle.dumps(sampler))
        assert copy.recipe.constructor is getattr(samplers, name)
        assert copy.init is not sampler.init
        assert pickle.dumps(copy) == pickle.dumps(sampler)
    rule = samplers.by_priority(samplers.systematic)
    for value in (*POTENTIALS, rule, samplers.ess_below(0.3), samplers.uct()):
        pickle.loads(pickle.dumps(value))


def test_a_sampler_that_was_changed_does_not_pickle_as_what_it_was():
    changed = SMC._replace(select="argmax", path_log_weight=None)
    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(changed)
    assert pickle.loads(pickle.dumps(SMC)).select == "posterior"


@picklable
def own_sampler(fraction=0.5):
    return samplers.smc(schedule=samplers.ess_below(fraction), potential=product())


def test_an_own_constructor_pickles_once_it_is_said_to():
    copy = pickle.loads(pickle.dumps(own_sampler(fraction=0.25)))
    assert copy.recipe.kwargs == {"fraction": 0.25}
    assert copy.path_log_weight(jnp.ones((1, 3)), jnp.ones((1, 3), bool)) == 3.0


# Deterministic sites, and what else is collected


@both
def test_latent_and_deterministic_sites_are_samples(make):
    run = mcmc(make(), chains=2)
    run.run(KEY, OBSERVED)
    samples = run.get_samples(group_by_chain=True)
    assert samples["x"].shape == samples["square"].shape == (2, 8, 4)
    np.testing.assert_allclose(samples["square"], samples["x"] ** 2, rtol=1e-5)
    np.testing.assert_array_equal(samples["first"], np.full((2, 8), OBSERVED[0]))


def drawn_start(params):
    x = numpyro.sample("x", dist.Normal())
    numpyro.deterministic("square", x**2)
    numpyro.sample("y", dist.Normal(x, 1.0), obs=0.3)
    return x


def short_step(t, x, params):
    rate = numpyro.sample("rate", dist.Gamma(2.0 + x**2, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=OBSERVED[t])
    return numpyro.deterministic("x", x + rate)


SHORT = program_target(
    drawn_start, short_step, max_steps=4, end=lambda t, x, params: x > 3.0
)


def test_deterministic_sites_follow_cuts_and_repeats():
    paths = tsi.run(SMC, SHORT, KEY, 16).particles
    rows = SHORT.truncate(paths, jnp.minimum(paths.length, 1))
    for t in range(1, 4):
        rows, _ = SHORT.replay(t, rows, paths)
    same(SHORT.sites(rows), SHORT.sites(paths))
    sites = SHORT.sites(paths)
    np.testing.assert_allclose(
        sites["x"],
        np.where(
            sites["rate"] > 0,
            sites["initial/x"][:, None] + np.cumsum(sites["rate"], 1),
            0.0,
        ),
        rtol=1e-5,
    )


def test_a_site_called_as_a_number_of_the_chain_is_refused():
    def step_with_own_length(t, x, params):
        return numpyro.sample("length", dist.Normal(x, 1.0))

    target = program_target(
        lambda params: jnp.zeros(()), step_with_own_length, max_steps=2
    )
    with pytest.raises(ConfigurationError, match="length"):
        ExplorerKernel(samplers.pimh("odds", endless=True), target).init(
            KEY, 0, None, (), {}
        )


# Extra fields


@pytest.mark.parametrize(
    ("make", "name", "known"),
    [
        (explorer_kernel, "accepted", r"exploration\.state\.accepted"),
        (explorer_kernel, "exploration.stat", "state"),
        (explorer_kernel, "exploration.state.acepted", "accepted"),
        (explorer_kernel, "exploration.state.current.len", "length"),
        (explorer_kernel, "exploration.stored.history.latents.z", "x"),
        (explorer_kernel, "sample.z", "square"),
        (explorer_kernel, "~sample.z", "square"),
        (pmmh_kernel, "accept_probability", "accept_prob"),
        (pmmh_kernel, "walk.scale", "log_scale"),
        (pmmh_kernel, "z.decay", "s"),
    ],
)
def test_a_wrong_extra_field_is_a_sentence_with_those_there_are(make, name, known):
    wrong = name.split(".")[-1]
    with pytest.raises(UnknownNameError, match=f"'{wrong}'.*Known: .*{known}"):
        mcmc(make()).run(KEY, OBSERVED, extra_fields=(name,))


def test_right_extra_fields_are_collected_and_sites_left_out():
    run = mcmc(explorer_kernel())
    fields = ("exploration.state.current.length", "~sample.square")
    run.run(KEY, OBSERVED, extra_fields=fields)
    assert run.get_extra_fields()[fields[0]].shape == (8, 1)
    assert "square" not in run.get_samples()
    values = NamedValues(a=1, b=2)
    assert (values.pop("a"), values.pop("a", 5)) == (1, 5)
    assert dict(values.copy()) == {"b": 2}


# Defaults


@pytest.mark.parametrize(
    "chain",
    [
        samplers.particle_gibbs(endless=True),
        samplers.particle_gibbs(ancestor_sampling=True, endless=True),
        samplers.particle_gibbs(backward_sampling=True, endless=True),
        samplers.pimh(endless=True),
        samplers.parallel_tempering(endless=True),
        samplers.parallel_tempering(num_temperatures=5, endless=True),
        METROPOLIS,
    ],
)
def test_every_chain_works_at_its_default_number_of_particles(chain):
    kernel = ExplorerKernel(chain, TARGET)
    state = jax.eval_shape(lambda: kernel.init(KEY, 0, None, (OBSERVED,), {}))
    assert state.exploration.state.members.shape[0] in (1, 16)
    jax.eval_shape(lambda s: kernel.sample(s, (OBSERVED,), {}), state)


def starts(sampler):
    target = unequal_lengths()
    try:
        kernel = PMMH(sampler, target)
        jax.eval_shape(lambda k: kernel.init(k, 0, None, (target.params,), {}), KEY)
    except TsiError:
        return False
    return True


def test_every_sampler_with_an_evidence_works_in_pmmh_at_its_default():
    worked = {name for name, sampler in all_samplers() if starts(sampler)}
    names = {name for name, _ in all_samplers()}
    targetless = {name for name, s in all_samplers() if s.path_log_weight is None}
    # Parallel tempering's evidence is that of all its temperatures, and greedy decoding
    # is one particle.
    assert worked == names - targetless - {"parallel_tempering", "greedy"}
    assert {"smc", "particle_filter", "pimh", "particle_gibbs"} < worked
    assert {"beam_search", "dvts", "mcts"} < targetless


def test_a_sampler_in_the_place_of_a_chain_is_told_of_pmmh():
    for wrong, sentence in (
        (samplers.smc(), r"PMMH\(sampler, target\)"),
        (samplers.smc, "needs an explorer"),
        (samplers.mcts(), "endless=True"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            ExplorerKernel(wrong, TARGET)
    with pytest.raises(ConfigurationError, match="program_target"):
        ExplorerKernel(METROPOLIS, step)
    with pytest.warns(UserWarning, match=r"potential=product\(\)"):
        ExplorerKernel(
            samplers.pimh(potential=samplers.telescoping(), endless=True), TARGET
        )


# The whole model


@pytest.mark.parametrize("name", ["plain", "drawn start, end"])
def test_the_whole_model_has_the_densities_of_paths(name):
    target, params = {"plain": (TARGET, OBSERVED), "drawn start, end": (SHORT, None)}[
        name
    ]
    particles = tsi.run(SMC, target, KEY, 16, params).particles
    sites = target.sites(particles, params)
    assert len(set(np.asarray(particles.length))) > 1 or name == "plain"
    known = jax.vmap(lambda v: log_density(target.model, (params,), {}, v)[0])(sites)
    taken = np.arange(4) < np.asarray(particles.length)[:, None]
    log_g = np.where(taken, particles.history.log_potential, 0.0).sum(1)
    log_p = np.asarray(target.log_prob(particles, params))
    np.testing.assert_allclose(known, log_p + log_g, rtol=1e-4)


def test_the_whole_model_predicts():
    run = mcmc(explorer_kernel(), samples=40)
    run.run(KEY, y=OBSERVED)
    samples = run.get_samples()
    model = run.sampler.model
    given = Predictive(model, samples)(KEY, y=OBSERVED)
    np.testing.assert_array_equal(given["y"], np.tile(OBSERVED, (40, 1)))
    np.testing.assert_allclose(given["square"], samples["square"], rtol=1e-5)
    drawn = Predictive(TARGET.unconditioned_model, samples)(KEY, y=OBSERVED)["y"]
    assert drawn.shape == (40, 4)
    # Of its own path's states, and with the program's noise.
    errors = np.asarray(drawn - samples["x"])
    assert 0.7 < errors.std() < 1.1
    before = Predictive(TARGET.unconditioned_model, num_samples=3)(KEY, OBSERVED)
    assert before["x"].shape == (3, 4)


def test_the_whole_model_of_pmmh_has_its_prior():
    run = mcmc(pmmh_kernel())
    run.run(KEY, OBSERVED)
    samples = run.get_samples()
    given = Predictive(run.sampler.unconditioned_model, samples)(KEY, OBSERVED)
    assert given["y"].shape == (8, 4)
    values = {name: samples[name][0] for name in ("s", "x")}
    found, _ = log_density(run.sampler.model, (OBSERVED,), {}, values)
    plain, _ = log_density(TARGET.model, (OBSERVED, values["s"]), {}, values)
    log_p = dist.HalfNormal(1.0).log_prob(values["s"])
    np.testing.assert_allclose(found, plain + log_p, rtol=1e-5)
    assert PMMH(SMC, unequal_lengths()).model is None
    assert ExplorerKernel(METROPOLIS, unequal_lengths()).model is None


def nested(t, x, params):
    _, xs = scan(
        lambda c, _: (numpyro.sample("z", dist.Normal(c, 1.0)),) * 2, x, jnp.arange(3)
    )
    return xs[-1]


def test_a_scan_within_a_step_can_be_drawn_from_but_not_scored():
    target = program_target(lambda params: jnp.zeros(()), nested, max_steps=2)
    drawn = Predictive(target.model, num_samples=2)(KEY, None)
    assert drawn["z"].shape == (2, 2, 3)
    with pytest.raises(ConfigurationError, match="vector site"):
        log_density(target.model, (None,), {}, {"z": drawn["z"][0]})


def test_handlers_around_a_program_act_in_the_whole_model():
    tied = handlers.condition(step, data={"x": jnp.zeros(())})
    target = program_target(start, tied, max_steps=4)
    trace = handlers.trace(handlers.seed(target.model, KEY)).get_trace(OBSERVED)
    assert trace["x"]["is_observed"]
    np.testing.assert_array_equal(trace["x"]["value"], np.zeros(4))


def test_arviz_takes_the_mcmc_of_either_kernel():
    base = pytest.importorskip("arviz_base")
    for make in KERNELS.values():
        run = mcmc(make(), chains=2)
        run.run(KEY, OBSERVED)
        tree = base.from_numpyro(run)
        assert tree["posterior"]["x"].shape == (2, 8, 4)
        np.testing.assert_array_equal(tree["observed_data"]["y"], OBSERVED)


def test_several_arguments_are_refused_where_there_are_no_programs():
    twisted = TwistedTarget(gaussian(), lambda t, particles, params: jnp.zeros(()))
    chain = samplers.suffix_metropolis(samplers.telescoping(), endless=True)
    with pytest.raises(ConfigurationError, match="TwistedTarget takes one argument"):
        ExplorerKernel(chain, twisted).init(KEY, 0, None, (1, 2), {})
    assert GAUSSIAN.max_steps == twisted.max_steps
