"""What users of numpyro expect of a kernel and of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from every_sampler import all_samplers
from numpyro.infer.mcmc import MCMCKernel
from numpyro_kernels import (
    KERNELS,
    KEY,
    METROPOLIS,
    SHORT,
    SMC,
    TARGET,
    both,
    explorer_kernel,
    mcmc,
    pmmh_kernel,
    same,
    start,
    step,
)
from numpyro_programs import OBSERVED

import tsi
from tsi import samplers
from tsi.errors import ConfigurationError, TsiError, UnknownNameError
from tsi.numpyro import PMMH, ExplorerKernel, ModelArguments, program_target
from tsi.numpyro.extra_fields import check_extra_fields
from tsi.numpyro.named_fields import NamedValues
from tsi.targets.examples import unequal_lengths

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


@pytest.mark.parametrize(
    "kernel",
    [
        explorer_kernel(),
        pmmh_kernel(),
        PMMH(SMC, TARGET),
        PMMH(SMC, TARGET, lambda y: y),
        ExplorerKernel(METROPOLIS, program_target(lambda: 0.0, step, max_steps=4)),
    ],
    ids=["explorer", "prior", "no prior", "lambda", "step alone"],
)
def test_a_run_names_the_argument_that_a_program_lacks(kernel):
    sentence = "missing a required argument: 'y'.*give the run"
    with pytest.raises(ConfigurationError, match=sentence):
        kernel.init(KEY, 0, None, (), {})
    with pytest.raises(ConfigurationError, match=sentence):
        numpyro.handlers.seed(TARGET.model, 0)()


def test_a_run_without_arguments_gives_none_to_params_alone():
    given = []

    def begin(params):
        given.append(params)
        return jnp.zeros(())

    def go_on(t, x, y=3.0):
        given.append(y)
        return numpyro.sample("x", dist.Normal(x, 1.0))

    def end(t, x):
        return x > 9.0

    target = program_target(begin, go_on, max_steps=2, end=end)
    ExplorerKernel(METROPOLIS, target).init(KEY, 0, None, (), {})
    assert {None, 3.0} == set(given)


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


# Deterministic sites, and what else is collected


@pytest.mark.long
@both
def test_latent_and_deterministic_sites_are_samples(make):
    run = mcmc(make(), chains=2)
    run.run(KEY, OBSERVED)
    samples = run.get_samples(group_by_chain=True)
    assert samples["x"].shape == samples["square"].shape == (2, 8, 4)
    np.testing.assert_allclose(samples["square"], samples["x"] ** 2, rtol=1e-5)
    np.testing.assert_array_equal(samples["first"], np.full((2, 8), OBSERVED[0]))


@pytest.mark.long
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


class Started(MCMCKernel):
    """A kernel that has made its first state, which it only checks."""

    sample_field = "sample"

    def __init__(self, kernel, chains):
        keys = jax.random.split(KEY, chains) if chains > 1 else KEY
        self.state = kernel.init(keys, 0, None, (OBSERVED,), {})

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        check_extra_fields(self.state, self.sample_field)
        return self.state

    def sample(self, state, model_args, model_kwargs):
        raise AssertionError("a move has begun")


ATTRIBUTES = ("count", "index", "_fields", "_replace", "__class__", "keys", "0", "")
PREFIXES = {
    "explorer": ("", "exploration.", "exploration.state.", "sample."),
    "pmmh": ("", "walk.", "z.", "sample."),
}


@pytest.mark.parametrize("chains", [1, 2])
@pytest.mark.parametrize("which", KERNELS)
def test_attributes_that_are_no_fields_are_no_extra_fields(which, chains):
    run = mcmc(Started(KERNELS[which](), chains), chains)
    names = [f"{prefix}{name}" for prefix in PREFIXES[which] for name in ATTRIBUTES]
    for name in names:
        wrong = name.split(".")[-1]
        with pytest.raises(UnknownNameError, match=f"'{wrong}'.*Known:"):
            run.run(KEY, OBSERVED, extra_fields=("sample.x", name))
    for name in ("sample.x.shape", "rng_key._impl"):
        with pytest.raises(ConfigurationError, match="has no fields"):
            run.run(KEY, OBSERVED, extra_fields=(name,))


@pytest.mark.parametrize("which", KERNELS)
def test_a_kernel_refuses_fields_with_random_keys(which):
    run = mcmc(Started(KERNELS[which](), 1))
    keyed = ["exploration", "exploration.stored", "exploration.stored.history"]
    offered = []
    for name in ["rng_key", *(keyed if which == "explorer" else [])]:
        with pytest.raises(ConfigurationError, match="random keys") as refused:
            run.run(KEY, OBSERVED, extra_fields=(name,))
        names = str(refused.value).split("without keys: ")[1].rstrip(".").split(", ")
        assert all(n.startswith(name) for n in names) or name == "rng_key"
        offered += names
    with pytest.raises(UnknownNameError) as unknown:
        run.run(KEY, OBSERVED, extra_fields=("none",))
    assert "rng_key" not in str(unknown.value)
    assert not any(name.endswith("key") for name in offered)
    # What is offered can be collected.
    run = mcmc(KERNELS[which]())
    run.run(KEY, OBSERVED, extra_fields=offered)
    assert {"sample", *run.get_extra_fields()} == {"sample", *offered}


def test_a_state_that_mcmc_did_not_ask_for_has_no_extra_fields_to_check():
    inner = explorer_kernel()

    def extra_fields_of_another(extra_fields=("none",)):
        return inner.init(KEY, 0, None, (OBSERVED,), {})

    assert extra_fields_of_another().sample


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


@pytest.mark.long
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
