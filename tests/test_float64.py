"""Under `jax_enable_x64` everything runs: weights in float64, models in their own type.

The switch is JAX's own and of the whole process, as users set it: what it leaves behind
in one of the runtime's threads is seen by callbacks to Python.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reading_rewards as kinds
import tiny_language as tiny
from flax import nnx
from numpyro.infer import MCMC
from numpyro_programs import GAUSSIAN, gaussian

import tsi
from tsi import samplers
from tsi.bench.conformance import check_sampler
from tsi.decoding.forced_end import ForcedEnd
from tsi.engine.engine import Engine
from tsi.experiments.proofs.claims import CLAIMS
from tsi.models.heads import ValueHead
from tsi.numpyro import ExplorerKernel
from tsi.problem import Problem
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.rewards.aggregation import Aggregated
from tsi.rewards.policy_value import PolicyValue
from tsi.rewards.process_reward import ProcessReward
from tsi.rewards.reward import NoReward
from tsi.rewards.self_judge import SelfJudge
from tsi.rewards.text_reward import TextReward
from tsi.rewards.verifier import Verifier
from tsi.samplers.contrastive_twist import fit_twist
from tsi.samplers.parts.potentials import product
from tsi.targets.examples import peaked, smooth
from tsi.targets.tabular import TabularParticles, TabularTarget
from tsi.twists.exact import exact_log_twist, table_twist, with_twisted_proposal
from tsi.twists.learned import LearnedTwist, last_symbol, log_linear
from tsi.twists.twisted_target import TwistedTarget
from tsi.twists.value import TwistedVerifier
from tsi.weights import weight_dtype

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def types(tree) -> set[str]:
    """Types of the leaves that are numbers."""
    leaves = jax.tree.leaves(tree)
    return {
        str(leaf.dtype)
        for leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.number) and leaf.dtype != jnp.uint32
    }


def steady() -> TabularTarget:
    """Whatever is written earns the same, numbers that float32 has to round."""
    score = np.log([1.1, 0.9, 1.3])
    return TabularTarget(
        initial=[0.7, 0.3],
        transition=[[0.4, 0.6], [0.9, 0.1]],
        log_potentials=np.repeat(score[:, None], 2, axis=1),
    )


QUICK = (
    "smc",
    "particle_filter",
    "annealed_resampling",
    "finished_branch_smc",
    "tempered_smc",
    "waste_free_smc",
    "particle_gibbs",
    "pimh",
    "suffix_metropolis",
    "mcts",
)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in CLAIMS
    ],
)
def test_every_method_runs_and_is_exact_where_its_estimate_does_not_vary(name):
    claim, table = CLAIMS[name], steady()
    sampler = claim.make()
    run = jax.jit(lambda key: tsi.run(sampler, table, key, claim.num_particles))(KEY)
    assert types(run) == {"float64", "int32"}
    assert np.isfinite(run.state.log_weights).any()
    if sampler.path_log_weight is None or "alpha" in claim.target:
        return
    # Chains at several temperatures are weighed together.
    targets = (sampler.path_log_weight, *getattr(sampler, "auxiliary", ()))
    truth = sum(table.truth(target).log_evidence for target in targets)
    assert abs(float(run.state.log_evidence) - truth) < 1e-13


def test_twists_make_an_estimate_that_is_exact_to_float64():
    table = with_twisted_proposal(smooth())
    twist = table_twist(exact_log_twist(smooth()))
    target = TwistedTarget(table, twist)
    run = jax.jit(lambda key: tsi.run(samplers.twisted_smc(), target, key, 8))(KEY)
    truth = smooth().truth(product().path_log_weight).log_evidence
    # A proposal keeps a share of 1e-12 of the policy.
    assert abs(float(run.state.log_evidence) - truth) < 1e-10
    assert types(run) == {"float64", "int32"}


def test_a_twist_is_learned():
    twist, theta = LearnedTwist(log_linear, last_symbol(3)), jnp.zeros((4, 3))
    fit = jax.jit(
        lambda key, theta: fit_twist(
            key, smooth(), twist, theta, optax.adam(0.1), 16, num_updates=3
        )
    )
    assert types(fit(KEY, theta)) == {"float64"}
    # A network of float32 stays one.
    assert fit(KEY, theta.astype(jnp.float32)).theta.dtype == jnp.float32


def test_bounds_of_the_evidence_take_a_particle_made_of_lists():
    symbols, length = jnp.asarray([[0, 1, 2, 0]]), jnp.asarray([4])
    exact = TabularParticles(symbols, length, jnp.asarray([True]))
    bounds = jax.jit(lambda key: samplers.evidence_bounds(smooth(), key, exact, 4))(KEY)
    assert types(bounds) == {"float64"}


def test_programs_are_weighed_in_float64():
    run = jax.jit(lambda key: tsi.run(samplers.smc(), gaussian(), key, 4))(KEY)
    assert types(run) == {"float64", "int32"}
    assert types(tsi.run(samplers.smc(), GAUSSIAN, KEY, 4)) == {"float64", "int32"}


def test_chains_run_as_numpyro_kernels():
    explorer = samplers.suffix_metropolis(product(), endless=True)
    symbols = {"collect": lambda particles: {"symbols": particles.symbols}}
    mcmc = MCMC(
        ExplorerKernel(explorer, smooth(), **symbols),
        num_warmup=2,
        num_samples=5,
        progress_bar=False,
        jit_model_args=True,
    )
    mcmc.run(KEY, smooth().params)
    assert types(mcmc.get_samples()) == {"float64", "int32"}


@pytest.mark.slow
def test_the_bench_passes_what_it_passes_in_float32():
    check_sampler(
        samplers.smc, targets={"peaked": peaked()}, num_runs=2000
    ).raise_if_failed()


PROBLEMS = [Problem(i, text, "") for i, text in enumerate(kinds.QUESTIONS)]
VALUE = ValueHead(32, rngs=nnx.Rngs(2))


def counted(texts) -> np.ndarray:
    """A number that float32 has to round."""
    return np.array([len(text) / 3 for text in texts])


def checked(question: str, text: str, ended: bool) -> float:
    return counted([text])[0]


TEXT, VERIFIER = TextReward(counted, tiny.decode), Verifier(checked, tiny.decode)
REWARDS = {
    "process": (ProcessReward, lambda: tiny.models()[1]),
    "steps": (lambda: Aggregated(ProcessReward(), "min", 8), lambda: tiny.models()[1]),
    "texts of steps": (lambda: Aggregated(TEXT, "mean", 8), lambda: None),
    "judge": (lambda: SelfJudge((3, 7, 1), 4, 5), lambda: None),
    "value": (PolicyValue, lambda: VALUE),
    "twist": (lambda: TwistedVerifier(TEXT), lambda: VALUE),
    "text": (lambda: TEXT, lambda: None),
    "verifier": (lambda: VERIFIER, lambda: None),
    "none": (NoReward, lambda: None),
    **{
        name: (
            functools.partial(kinds.reward_of, name, width=32, max_steps=8),
            functools.partial(kinds.model_of, name),
        )
        for name in kinds.KINDS
    },
}


def posed(name: str, dtype=jnp.float32):
    """A target with that reward, and parameters whose prompts are made of lists."""
    make_reward, make_model = REWARDS[name]
    target = tiny.target(reward=make_reward())
    prompts = tiny.prompts(*kinds.QUESTIONS)
    prompts = prompts._replace(questions=target.reward.prepare(kinds.QUESTIONS))
    # Flat enough that texts differ.
    policy = tiny.models(sharpness=2.0)[0]
    policy = jax.tree.map(lambda leaf: leaf.astype(dtype), policy)
    params = ReasoningParams(policy, make_model(), prompts, jnp.float32(1.0))
    return target, params


@pytest.mark.long
@pytest.mark.parametrize("stored", [False, True], ids=["rows", "store"])
@pytest.mark.parametrize("name", REWARDS)
def test_a_step_leaves_the_types_of_particles_as_they_were(name, stored):
    target, params = posed(name)
    target = ReasoningStore(target) if stored else target
    before = jax.eval_shape(lambda: target.init(KEY, 2, params))
    assert types((before.log_prob, before.log_odds, before.history)) == {
        "float64",
        "int32",
    }

    def step(rows):
        if stored:
            rows = target.truncate(rows, jnp.zeros(4, jnp.int32), params)
            rows, _ = target.replay(jnp.zeros(4, jnp.int32), rows, rows, params)
        rows, _ = target.propose(KEY, 0, rows, params)
        return target.gather(rows, jnp.arange(4))

    after = jax.eval_shape(step, before)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(
        lambda leaf: leaf.dtype, before
    )


def test_caches_have_the_type_of_the_model():
    target, params = posed("judge", jnp.bfloat16)
    rows = jax.eval_shape(lambda: target.init(KEY, 2, params))
    rows, _ = jax.eval_shape(lambda rows: target.propose(KEY, 0, rows, params), rows)
    assert types(rows.suffix) == types(rows.prompt) == {"bfloat16", "int32"}


def engine(name: str) -> Engine:
    target, params = posed(name)
    names = {"encode": tiny.encode, "decode": tiny.decode, "max_rows": 16}
    return Engine(target, params.policy, params.reward_model, **names)


def solve(name: str, sampler):
    return engine(name).run(
        sampler, KEY, PROBLEMS, 4, extract=lambda text: text[-1:] or None
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["process", "text", "verifier", "texts of steps", "qwen"]
)
def test_the_engine_runs_filters_with_rewards_on_the_device_and_on_the_host(name):
    for result in solve(name, samplers.particle_filter()):
        assert result.log_weights.dtype == np.float64
        assert result.posterior.errors.keys() == result.answer_posterior.keys()
        assert np.isnan(result.rewards).sum() == 0


def test_a_reward_of_the_host_keeps_its_digits():
    for result in solve("text", samplers.best_of_n()):
        assert result.log_weights.dtype == np.float64
        odds = np.log(result.rewards / (1 - result.rewards))
        np.testing.assert_allclose(odds, counted(result.texts), atol=1e-14)


@pytest.mark.long
def test_the_engine_runs_explorers_that_cut_and_repeat():
    explorer = samplers.particle_gibbs(ancestor_sampling=True, num_sweeps=2)
    for result in solve("process", explorer):
        assert result.log_weights.dtype == np.float64


@pytest.mark.long
def test_tokens_are_those_of_float32():
    wide = solve("none", samplers.self_consistency())
    jax.config.update("jax_enable_x64", False)
    narrow = solve("none", samplers.self_consistency())
    assert [r.texts for r in wide] == [r.texts for r in narrow]
    assert len(set(wide[0].texts)) == 4
    assert narrow[0].log_weights.dtype == np.float32
    assert weight_dtype() == jnp.float32


@pytest.mark.long
@pytest.mark.parametrize("forced", [ForcedEnd(), ForcedEnd((2, 3), 2)])
def test_steps_with_a_forced_end_are_drawn_and_repeated(forced):
    policy, reward = tiny.models()
    target = tiny.target(forced_end=forced, max_steps=4, max_tokens=12)
    models = {"encode": tiny.encode, "decode": tiny.decode}
    engine = Engine(target, policy, reward, **models)
    explorer = samplers.particle_gibbs(ancestor_sampling=True, num_sweeps=2)
    (result,) = engine.run(explorer, KEY, [Problem(0, "ab", "")], 4, extract=str)
    assert result.log_weights.dtype == np.float64
    assert np.isfinite(result.log_evidence)
