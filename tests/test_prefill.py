"""Long prompts, read in chunks: the same keys and values, in less memory."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_engine
import tiny_language as tiny
from flax import nnx
from jax.extend.core import jaxprs_in_params

from tsi import samplers
from tsi.engine.prompt_reader import PromptReader
from tsi.engine.sizing import memory as memory_module
from tsi.engine.sizing import sizes as sizes_module
from tsi.errors import ConfigurationError
from tsi.models import attention
from tsi.models.attention import View, attend_in_blocks, attend_part
from tsi.models.decoder import LanguageModel, positions_of
from tsi.models.decoder_config import SlidingWindow
from tsi.models.prefill import prefill_bytes, read_prompts
from tsi.models.rotary import Rope
from tsi.reasoning import target as reasoning
from tsi.reasoning.particles import ReasoningParams
from tsi.rewards import process_reward as rewards

LONG, LENGTHS = 1136, (1136, 700, 3)
CONFIGS = {
    "plain": tiny.config(),
    "windows": tiny.config(
        sliding_window=SlidingWindow(600, (True, False), Rope(20.0)),
        attention_softcap=4.0,
    ),
}


def prompts_of(length=LONG, lengths=LENGTHS):
    draw = np.random.default_rng(0)
    tokens = jnp.asarray(draw.integers(1, 20, (len(lengths), length)), jnp.int32)
    return tokens, jnp.arange(length) < jnp.asarray(lengths)[:, None]


def whole(trunk, tokens, mask):
    return trunk(tokens, positions_of(tokens), mask)[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_read_in_chunks_has_the_same_keys_and_values(name):
    trunk = LanguageModel(CONFIGS[name], rngs=nnx.Rngs(0)).trunk
    tokens, mask = prompts_of()
    left = jax.jit(whole)(trunk, tokens, mask)
    right = jax.jit(read_prompts)(trunk, tokens, mask)
    np.testing.assert_array_equal(left.positions, right.positions)
    keys = [np.moveaxis(x.keys, -1, 2)[:, mask] for x in (left, right)]
    values = [np.moveaxis(x.values, 3, 2)[:, mask] for x in (left, right)]
    np.testing.assert_allclose(*keys, atol=2e-5)
    np.testing.assert_allclose(*values, atol=2e-5)
    assert np.abs(keys[0]).max() > 1


def test_reading_ends_with_the_longest_prompt_of_a_batch():
    trunk = LanguageModel(tiny.config(), rngs=nnx.Rngs(0)).trunk
    tokens, mask = prompts_of(lengths=(3, 200))
    keys = read_prompts(trunk, tokens, mask).keys
    # Three chunks of 384, of which the first holds both prompts.
    assert np.abs(keys[..., 383]).min(axis=(0, 2)).max() > 0
    assert not np.any(keys[..., 384:])


def shapes_in(jaxpr):
    """Shapes of all that a program computes, loops and branches included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.shape
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_in(inner)


def test_no_scores_of_whole_prompts_and_no_logits_are_computed():
    config = tiny.config(vocab_size=5000)
    trunk = LanguageModel(config, rngs=nnx.Rngs(0)).trunk
    tokens, mask = prompts_of()
    found = {}
    for read in (whole, read_prompts):
        shapes = list(shapes_in(jax.make_jaxpr(read)(trunk, tokens, mask).jaxpr))
        found[read] = sum(shape.count(LONG) > 1 for shape in shapes)
        assert not any(config.vocab_size in shape for shape in shapes)
    assert found[whole] > 0
    assert found[read_prompts] == 0


@pytest.mark.parametrize(("prompts", "length"), [(1, 512), (2, 1024), (1, 4096)])
def test_memory_is_bounded_as_stated(prompts, length):
    config = tiny.config(width=128, hidden=256, head_width=32)
    make = lambda: LanguageModel(config, rngs=nnx.Rngs(0)).trunk  # noqa: E731
    like = jax.ShapeDtypeStruct
    arguments = (
        nnx.eval_shape(make),
        like((prompts, length), jnp.int32),
        like((prompts, length), jnp.bool_),
    )

    def peak(read):
        plan = jax.jit(read).lower(*arguments).compile().memory_analysis()
        return plan.temp_size_in_bytes + plan.output_size_in_bytes

    bound, taken = prefill_bytes(config, prompts, length, 4), peak(read_prompts)
    assert taken <= bound <= 2 * taken
    if length == 4096:
        assert peak(whole) > 8 * taken


def test_short_prompts_compile_to_one_pass():
    trunk = LanguageModel(tiny.config(), rngs=nnx.Rngs(0)).trunk
    tokens, mask = prompts_of(512)
    texts = [
        jax.jit(lambda *x, read=read: read(*x)).lower(trunk, tokens, mask).as_text()
        for read in (whole, read_prompts)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("size", [1024, 1500])
def test_attention_in_blocks_is_attention(monkeypatch, size):
    monkeypatch.setattr(attention, "KEYS_AT_ONCE", 256)
    keys = jax.random.split(jax.random.key(0), 4)
    queries = jax.random.normal(keys[0], (4, 3, 2, 2, 8))
    cached = (
        jax.random.normal(keys[1], (2, 2, 8, size)),
        jax.random.normal(keys[2], (2, 2, size, 8)),
    )
    mask = jax.random.bernoulli(keys[3], 0.3, (2, 1, 2, 3, 1, size))
    # One query sees nothing, and no query sees anything of the second block.
    mask = mask.at[0, :, 0, 0].set(False).at[..., 256:512].set(False)
    for softcap in (None, 2.0):
        parts = [
            attention(queries, *cached, View(mask), softcap)
            for attention in (attend_part, attend_in_blocks)
        ]
        left, right = (part.mixed / part.total[..., None] for part in parts)
        seen = np.ones(left.shape[:2], bool)
        seen[0, 0] = False
        np.testing.assert_allclose(left[seen], right[seen], atol=1e-6)
        log_totals = [part.peak + jnp.log(part.total) for part in parts]
        np.testing.assert_allclose(*(x[seen] for x in log_totals), rtol=1e-6)
        assert float(jnp.max(parts[1].peak[0, 0])) == float(np.float32(-1e30))


def test_blocks_that_nobody_sees_are_not_read():
    queries, mask = jnp.ones((1, 2, 1, 1, 8)), np.zeros((1, 1, 1, 2, 1, 2048), bool)
    mask[..., :100] = True
    keys, values = jnp.ones((1, 1, 8, 2048)), np.ones((1, 1, 2048, 8), np.float32)
    # A product of zero weights with NaN would be NaN.
    values[:, :, 512:] = np.nan
    part = attend_in_blocks(queries, keys, jnp.asarray(values), View(jnp.asarray(mask)))
    np.testing.assert_allclose(part.mixed / part.total[..., None], 1.0, rtol=1e-6)


def test_policy_and_reward_read_prompts_so(monkeypatch):
    policy, reward = tiny.models()
    text = ("hello" * 230)[:LONG]
    params = ReasoningParams(
        policy, reward, tiny.prompts(text, "bad", width=LONG), jnp.float32(1.0)
    )

    def caches():
        particles = tiny.target().init(None, 1, params)
        return particles.prompt, particles.reward_state.prompt

    chunked = jax.jit(caches)()
    for module in (reasoning, rewards):
        monkeypatch.setattr(module, "read_prompts", whole)
    for left, right in zip(chunked, jax.jit(lambda: caches())(), strict=True):
        np.testing.assert_array_equal(left.mask, right.mask)
        assert left.mask[0].sum() in (LONG, LONG - 1)
        both = [np.moveaxis(x.keys, -1, 2)[:, left.mask] for x in (left, right)]
        np.testing.assert_allclose(*both, atol=2e-5)


def test_the_engine_says_what_reading_takes_and_refuses_what_does_not_fit(monkeypatch):
    engine = test_engine.shared_engine(16)
    run = lambda: engine.run(  # noqa: E731
        samplers.self_consistency(),
        jax.random.key(0),
        test_engine.PROBLEMS,
        4,
        extract=test_engine.extract,
    )
    run()
    # Five problems' prompts of a bucket of 16, of policy and reward model.
    bound = 2 * prefill_bytes(engine.policy.config, 8, 16, 4)
    assert engine.report.prefill_bytes == bound
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 100_000)
    with pytest.raises(
        ConfigurationError, match=r"a prompt of 16 tokens takes 0\.18 MB"
    ):
        run()


@pytest.mark.long
def test_a_batch_of_prompts_is_free_before_the_next_is_read(monkeypatch):
    """The first stays, since the pools take their shapes from it."""
    monkeypatch.setattr(sizes_module, "PREFILL", 1)
    read, batches, alive = PromptReader._read, [], []

    def watch(*arguments):
        gc.collect()
        alive.append([n for n, batch in enumerate(batches) if batch() is not None])
        batch = read(*arguments)
        batches.append(weakref.ref(jax.tree.leaves(batch.prefill)[0]))
        return batch

    monkeypatch.setattr(PromptReader, "_read", watch)
    runner, problems = test_engine.shared_engine(), test_engine.PROBLEMS
    key, extract = jax.random.key(0), test_engine.extract
    runner.run(samplers.smc(), key, problems, 2, extract=extract)
    assert len(alive) > 2
    assert all(set(numbers) <= {0} for numbers in alive)
