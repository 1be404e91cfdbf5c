"""Numbers: float32 logits, caches narrower than the weights, drawn and replayed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_engine
import tiny_language as tiny
from flax import nnx
from jax.extend.core import jaxprs_in_params

from tsi import samplers
from tsi.errors import ConfigurationError
from tsi.models import heads
from tsi.models.decoder import LanguageModel, RewardModel, with_cache_dtype
from tsi.models.partition import memory
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.rewards.reward import NoReward

NARROW = jnp.bfloat16


def last_product(function, *arguments):
    """The type of a program's last matrix product."""

    def products(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation.outvars[0].aval.dtype
            for inner in jaxprs_in_params(equation.params):
                yield from products(inner)

    return list(products(jax.make_jaxpr(function)(*arguments).jaxpr))[-1]


def narrow(make, **changes):
    config = tiny.config(num_labels=2, **changes)
    return make(config, rngs=nnx.Rngs(0), dtype=NARROW)


SCORERS = (
    RewardModel,
    heads.SequenceScorer,
    heads.OutcomeScorer,
    heads.ProcessScorer,
    heads.ValueScorer,
)
FUNCTIONS = {
    "tied": narrow(LanguageModel).logits,
    "head": narrow(LanguageModel, tied=False).logits,
    "value": heads.ValueHead(32, rngs=nnx.Rngs(0), dtype=NARROW).log_odds,
    "token": lambda x: heads.token_log_odds(narrow(LanguageModel), x, 1, 2),
    **{make.__name__: narrow(make).log_odds for make in SCORERS},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_logits_of_narrow_weights_are_float32_sums(name):
    hidden = jnp.ones((3, 32), NARROW)
    assert last_product(FUNCTIONS[name], hidden) == jnp.float32
    assert FUNCTIONS[name](hidden).dtype == jnp.float32


def test_logits_of_narrow_weights_are_not_rounded():
    model = narrow(LanguageModel)
    hidden = jax.random.normal(jax.random.key(0), (5, 32)).astype(NARROW) * 8
    matrix = np.asarray(model.trunk.embedding[...], np.float64)
    exact = np.asarray(hidden, np.float64) @ matrix.T
    np.testing.assert_allclose(model.logits(hidden), exact, atol=1e-4)
    assert np.abs(exact - exact.astype(NARROW)).max() > 0.02


def rolled_out(policy):
    """Six rows of many tokens, and the same read again, step by step."""
    target = tiny.target(
        reward=NoReward(), max_step_tokens=24, max_tokens=120, max_steps=12
    )
    store = ReasoningStore(target)
    params = ReasoningParams(
        policy, None, tiny.prompts("hello", "bad"), jnp.float32(1.0)
    )

    @jax.jit
    def both(params):
        def draw(t, rows):
            return target.propose(jax.random.key(t), t, rows, params)[0]

        def read(t, rows):
            return store.replay(jnp.full(6, t), rows, drawn, params)[0]

        first = store.init(None, 3, params)
        drawn = jax.lax.fori_loop(0, target.max_steps, draw, first)
        return drawn, jax.lax.fori_loop(0, target.max_steps, read, first)

    drawn, read = both(params)
    np.testing.assert_array_equal(drawn.tokens, read.tokens)
    return drawn, read


def of_steps(particles):
    return np.diff(particles.history.log_prob, prepend=0.0, axis=1)


@pytest.mark.parametrize("cache", [None, "bfloat16"])
def test_drawn_and_replayed_log_p_agree_to_1e_5_per_token(cache):
    config = tiny.config(max_length=300)
    policy = LanguageModel(config, rngs=nnx.Rngs(0))
    # Flat, and with an end token that is rare, so that rollouts are long.
    policy.trunk.embedding[0] = policy.trunk.embedding[0] * 0 - 0.3
    policy = policy if cache is None else with_cache_dtype(policy, cache)
    drawn, read = rolled_out(policy)
    tokens = np.diff(drawn.step_ends, prepend=0, axis=1)
    taken = tokens > 0
    assert drawn.lengths.sum() > 150
    assert drawn.lengths.max() > 50
    difference = np.abs(of_steps(drawn) - of_steps(read))
    assert (difference[taken] / tokens[taken]).max() < 1e-5


def test_a_narrow_cache_takes_half_the_memory_and_changes_little():
    policy = LanguageModel(tiny.config(), rngs=nnx.Rngs(0))
    half = with_cache_dtype(policy, "bfloat16")
    assert policy.trunk.cache_dtype == jnp.float32
    assert half.trunk.cache_dtype == NARROW
    assert half.trunk.dtype == jnp.float32
    tokens = jnp.asarray([tiny.encode("hellobadgem")])
    found = [jax.nn.log_softmax(model(tokens)) for model in (policy, half)]
    difference = np.abs(np.subtract(*found))
    assert 1e-6 < difference.max() < 2e-2
    caches = [
        model.trunk(tokens, jnp.arange(11)[None])[1][:2] for model in (policy, half)
    ]
    whole, narrow = (memory(cache).total for cache in caches)
    assert narrow * 2 == whole


@pytest.mark.long
def test_the_engine_keeps_its_caches_in_another_type():
    engine = test_engine.engine(16, cache_dtype="bfloat16")

    def run(engine):
        return engine.run(
            samplers.particle_filter(),
            jax.random.key(7),
            test_engine.PROBLEMS[:2],
            4,
            extract=test_engine.extract,
        )

    left, right = run(engine), run(test_engine.shared_engine(16))
    for narrow, wide in zip(left, right, strict=True):
        # Random numbers are the same, and few thresholds lie between both.
        assert narrow.texts[0][:3] == wide.texts[0][:3]
        evidence = pytest.approx(wide.log_evidence, abs=0.5)
        assert narrow.log_evidence == evidence
        assert narrow.log_evidence != wide.log_evidence
    prefill = [test_engine.shared_engine(16).policy, engine.policy]
    sizes = [model.trunk.cache_dtype.itemsize for model in prefill]
    assert sizes == [4, 2]
    assert engine.reward_model.trunk.cache_dtype == NARROW
    with pytest.raises(ConfigurationError, match="cache_dtype is 'int8'; keys"):
        test_engine.engine(16, cache_dtype="int8")
