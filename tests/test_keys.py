"""Every entry takes keys of either style, and says so of what is no key."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_language as tiny
from numpyro.infer import MCMC
from numpyro_programs import gaussian

import tsi
from tsi import samplers
from tsi.bench.conformance import check_sampler, checks_of
from tsi.engine.adaptive import Rounds, run_rounds
from tsi.engine.engine import Engine
from tsi.errors import ConfigurationError
from tsi.experiments.proofs.claims import CLAIMS
from tsi.experiments.tasks import get_task
from tsi.experiments.training.step_labels import label_steps, sample_texts
from tsi.experiments.training.train_value import prefixes_of
from tsi.experiments.worlds.embedded_world import embedded_world
from tsi.explore import explore, start
from tsi.explore import turn as explorer_turn
from tsi.explorer import Explorer, Reply
from tsi.models.loading.catalogue import resolve
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.numpyro import ExplorerKernel, TokenStep
from tsi.problem import Problem
from tsi.run import turn
from tsi.samplers.contrastive_twist import contrast, fit_twist
from tsi.samplers.parts.potentials import product
from tsi.step_keys import single_key, step_keys, typed_key
from tsi.targets.examples import smooth
from tsi.targets.linear_gaussian import LinearGaussianTarget
from tsi.twists.learned import LearnedTwist, last_symbol, log_linear

SEED, TABLE, SMC, CHAIN = 5, smooth(), samplers.smc(), samplers.pimh()
TWIST, THETA = LearnedTwist(log_linear, last_symbol(3)), jnp.zeros((4, 3))
REFERENCE = tsi.run(SMC, TABLE, jax.random.key(0), 1).particles


def test_both_styles_give_one_key_in_any_number():
    for seeds in ([SEED], [0, 1, 2**31]):
        old = jnp.stack([jax.random.PRNGKey(seed) for seed in seeds])
        new = jnp.stack([jax.random.key(seed) for seed in seeds])
        for given in (old, new, np.asarray(old)):
            assert (typed_key(given) == new).all()
    assert typed_key(jax.random.PRNGKey(0)).shape == ()


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_bare_key_is_of_the_kind_that_made_it(kind):
    with jax.default_prng_impl(kind):
        key = jax.random.key(SEED)
        assert (typed_key(jax.random.PRNGKey(SEED)) == key).all()
        assert typed_key(key) is key
    assert (typed_key(jax.random.PRNGKey(SEED)) == jax.random.key(SEED)).all()


@pytest.mark.parametrize(
    "nothing",
    [0, None, "seed", 1.5, jnp.zeros(2), jnp.zeros(3, jnp.uint32), np.arange(2)],
    ids=repr,
)
def test_what_is_no_key_is_a_sentence(nothing):
    with pytest.raises(ConfigurationError, match=r"Give jax\.random\.key\(seed\)"):
        typed_key(nothing)


@pytest.mark.parametrize("new", [jax.random.key, jax.random.PRNGKey])
def test_several_keys_in_place_of_one_are_a_sentence(new):
    with pytest.raises(ConfigurationError, match=r"array of \(3,\).*jax\.vmap"):
        single_key(jax.random.split(new(0), 3))


def empty(explorer=CHAIN):
    return start(explorer, TABLE, jax.random.key(0), 4)


def one_turn(key):
    state = SMC.init(jax.random.key(0), 4)
    particles = TABLE.init(jax.random.key(0), 4)
    return turn(SMC, TABLE, key, 0, state, particles)


@jax.jit
def lifted(key):
    """A batch of one problem; a batch of keys in place of one."""
    keys, batch = typed_key(key)[None], tsi.batch(SMC, 1)
    if key.dtype == jnp.uint32:
        keys = jax.random.key_data(keys)
    state, ancestors = batch.ask(keys, batch.init(keys, 4))
    zeros = jnp.zeros(4)
    return batch.tell(keys, state, zeros, zeros, zeros > 0), ancestors


def token_step(shape):
    def flat(params, tokens, length):
        return jnp.full(3, -jnp.log(3.0))

    tokens, ends = jnp.zeros(4, jnp.int32), jnp.array([True, False, False])
    step = TokenStep(flat, None, tokens, 0, ends, max_tokens=3)
    return lambda key: step.sample(key, shape)


def stepped(target):
    def step(key):
        particles, correction = target.propose(key, 0, target.init(key, 3, None), None)
        return target.finished(particles), correction, target.log_prob(particles, None)

    return step


def drawn_by(scheme):
    return lambda key: scheme(key, jnp.log(jnp.array([0.5, 0.2, 0.3])), 2)


ENTRIES = {
    "run, sampler": lambda key: tsi.run(SMC, TABLE, key, 4),
    "run, explorer": lambda key: tsi.run(CHAIN, TABLE, key, 4),
    "turn": one_turn,
    "step_keys": lambda key: step_keys(key, 3),
    "start": lambda key: start(CHAIN, TABLE, key, 4),
    "explorer's turn": lambda key: jax.jit(
        lambda key: explorer_turn(CHAIN, TABLE, key, empty())
    )(key),
    "explore": lambda key: explore(CHAIN, TABLE, key, 4),
    "evidence_bounds": lambda key: samplers.evidence_bounds(TABLE, key, REFERENCE, 4),
    "contrast": lambda key: contrast(key, TABLE, TWIST, THETA, 4),
    "fit_twist": lambda key: fit_twist(
        key, TABLE, TWIST, THETA, optax.sgd(0.1), 4, num_updates=2
    ),
    "multinomial": drawn_by(samplers.multinomial),
    "systematic": drawn_by(samplers.systematic),
    "stratified": drawn_by(samplers.stratified),
    "residual": drawn_by(samplers.residual),
    "ssp": drawn_by(samplers.ssp),
    "optimal_resampling": drawn_by(samplers.optimal_resampling),
    "top_k_replicate": drawn_by(samplers.top_k_replicate(2)),
    "table": stepped(TABLE),
    "linear-Gaussian": stepped(LinearGaussianTarget()),
    "program": stepped(gaussian()),
    "token step": token_step(()),
    "token steps": token_step((2, 3)),
}


def numbers(tree):
    """Leaves in numpy, keys by what they are made of."""

    def plain(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return [plain(leaf) for leaf in jax.tree.leaves(tree)]


def same(left, right):
    for mine, theirs in zip(numbers(left), numbers(right), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.long
@pytest.mark.parametrize("name", ENTRIES)
def test_an_old_key_gives_what_the_new_one_of_its_seed_gives(name):
    entry = ENTRIES[name]
    found, expected = (entry(new(SEED)) for new in (jax.random.PRNGKey, jax.random.key))
    same(found, expected)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_seed_in_place_of_a_key_is_refused_at_every_entry(name):
    with pytest.raises(ConfigurationError, match="one of JAX's keys"):
        ENTRIES[name](SEED)


@pytest.mark.parametrize("name", CLAIMS)
def test_the_functions_of_every_sampler_take_old_keys_and_refuse_seeds(name):
    sampler, size, key = (
        CLAIMS[name].make(),
        CLAIMS[name].num_particles,
        jax.random.PRNGKey(SEED),
    )
    explores = isinstance(sampler, Explorer)
    limit = (4,) if explores else ()

    def begin(key):
        return sampler.init(key, size, *limit)

    state = jax.eval_shape(begin, key)
    state, asked = jax.eval_shape(sampler.ask, key, state)
    numbers = jnp.zeros(asked.parents.shape if explores else size)
    reply = (numbers, numbers, numbers, numbers > 1.0)
    told = (Reply(*reply),) if explores else reply[1:]
    jax.eval_shape(sampler.tell, key, state, *told)
    for function, rest in ((begin, ()), (sampler.ask, (state,))):
        with pytest.raises(ConfigurationError, match="one of JAX's keys"):
            function(SEED, *rest)
    with pytest.raises(ConfigurationError, match="one of JAX's keys"):
        sampler.tell(SEED, state, *told)


def test_a_batch_of_problems_takes_old_keys():
    same(lifted(jax.random.PRNGKey(SEED)), lifted(jax.random.key(SEED)))


def test_runs_are_mapped_over_old_keys():
    many = jax.jit(jax.vmap(lambda key: tsi.run(SMC, TABLE, key, 4).state))
    old, new = (
        many(jax.random.split(make(SEED), 3))
        for make in (jax.random.PRNGKey, jax.random.key)
    )
    same(old, new)


def test_the_bench_takes_old_keys():
    def first(key):
        checks = checks_of(SMC, targets={"smooth": TABLE}, num_runs=50, key=key)
        return [*itertools.islice(checks, 3)]

    assert first(jax.random.PRNGKey(SEED)) == first(jax.random.key(SEED))
    with pytest.raises(ConfigurationError, match="one of JAX's keys"):
        check_sampler(samplers.smc, key=SEED)


@pytest.mark.long
def test_the_engine_and_what_drives_it_take_old_keys():
    policy, reward = tiny.models()
    engine = Engine(
        tiny.target(), policy, reward, encode=tiny.encode, decode=tiny.decode
    )
    problems = [Problem(3, "abd", "")]
    rounds = Rounds(size=4, max_rounds=2, stop=lambda results: False)
    kwargs = {"extract": lambda text: text[-1:]}

    def texts(key):
        (alone,) = engine.run(SMC, key, problems, 4, **kwargs)
        (merged,) = run_rounds(engine, SMC, key, problems, rounds, **kwargs)
        return alone.texts, alone.log_evidence, merged.texts, merged.log_evidence

    assert texts(jax.random.PRNGKey(SEED)) == texts(jax.random.key(SEED))
    for run in (engine.run, run_rounds):
        first = () if run == engine.run else (engine,)
        last = 4 if run == engine.run else rounds
        with pytest.raises(ConfigurationError, match="one of JAX's keys"):
            run(*first, SMC, SEED, problems, last, **kwargs)


def test_training_takes_old_keys():
    task, world = get_task("chain"), embedded_world("chain", 2, reward="none")
    engine, problems = world.engine, list(world.problems)
    tokenizer = load_tokenizer(resolve("chain-policy"))

    def trained_on(key):
        prefixes = prefixes_of(engine, task, problems, 1, key)
        texts = [problem.prompt for problem in problems]
        writer = (engine.target, engine.policy, tokenizer)
        return prefixes, sample_texts(*writer, key, texts, 1, 32)

    old, new = (trained_on(make(SEED)) for make in (jax.random.PRNGKey, jax.random.key))
    same(old[0], new[0])
    assert old[1] == new[1]
    with pytest.raises(ConfigurationError, match="one of JAX's keys"):
        prefixes_of(engine, task, problems, 1, SEED)
    writer = (engine.target, engine.policy, tokenizer)
    with pytest.raises(ConfigurationError, match="one of JAX's keys"):
        label_steps(*writer, task, SEED, problems, 1, 32)


KERNEL = ExplorerKernel(
    samplers.suffix_metropolis(product(), endless=True),
    TABLE,
    collect=lambda particles: {"symbols": particles.symbols},
)


@pytest.mark.long
@pytest.mark.parametrize("num_chains", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_chains_take_old_keys_and_go_on_with_them(num_chains):
    def chain(make):
        mcmc = MCMC(
            KERNEL,
            num_warmup=2,
            num_samples=5,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
            jit_model_args=True,
        )
        mcmc.run(make(SEED), TABLE.params)
        first = mcmc.get_samples()
        mcmc.post_warmup_state = mcmc.last_state
        mcmc.run(make(SEED + 1), TABLE.params)
        return first, mcmc.get_samples()

    same(chain(jax.random.PRNGKey), chain(jax.random.key))


def test_a_seed_in_place_of_a_chains_key_is_a_sentence():
    with pytest.raises(ConfigurationError, match="one of JAX's keys"):
        KERNEL.init(SEED, 0, None, (TABLE.params,), {})
