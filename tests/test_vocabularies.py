"""Vocabularies that are padded: what is drawn, who reads it, whose tokens agree."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
import tokenizers
from flax import nnx
from small_checkpoints import bpe_tokenizer
from test_engine import extract
from tokenizers import AddedToken

from tsi import samplers
from tsi.decoding.boundary import step_boundary
from tsi.decoding.vocabularies import boundary_of
from tsi.engine.engine import Engine
from tsi.errors import ConfigurationError
from tsi.experiments.tasks import get_task
from tsi.experiments.training.train_policy import task_tokenizer, tiny_config
from tsi.experiments.worlds.embedded_world import embedded_world
from tsi.loading.model_checks import check_same_tokens, same_tokens
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.loading.checkpoint import save
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.problem import Problem
from tsi.reasoning.particles import ReasoningParams
from tsi.rewards.reward import NoReward
from tsi.run import run

REAL, ROWS = 15, 20
TEXTS = [b"", *(letter.encode() for letter in tiny.ALPHABET)]
PADDED = step_boundary(TEXTS, b"c", [0], padding=range(REAL, ROWS))


@pytest.mark.long
def test_padding_is_never_drawn_and_has_no_share_of_p():
    policy, _ = tiny.models(sharpness=1.0)
    target = tiny.target(boundary=PADDED, reward=NoReward())
    params = ReasoningParams(policy, None, tiny.prompts("hello"), jnp.float32(1.0))
    sampler = samplers.self_consistency()
    final = jax.jit(lambda key: run(sampler, target, key, 64, params))(
        jax.random.key(0)
    )
    rows = final.particles
    tokens, lengths = np.asarray(rows.tokens), np.asarray(rows.lengths)
    # Of some 500 tokens, a quarter would have been padding.
    assert lengths.sum() > 300
    assert tokens.max() == REAL - 1
    prompt = tiny.encode("hello")
    sequences = np.zeros((64, 40), np.int32)
    sequences[:, : len(prompt)] = prompt
    sequences[:, len(prompt) : len(prompt) + tokens.shape[1]] = tokens
    logits = np.asarray(policy(jnp.asarray(sequences)), np.float64)[..., :REAL]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, length in enumerate(lengths):
        places = np.arange(length) + len(prompt)
        expected = log_p[row, places - 1, tokens[row, :length]].sum()
        assert rows.log_prob[row] == pytest.approx(expected, abs=1e-3)
    # A step that is repeated to be scored has the density that it was drawn with.
    store = target.as_store()
    start = store.init(None, 64, params)
    zeros = jnp.zeros(64, jnp.int32)
    _, again = jax.jit(store.replay)(zeros, start, rows, params)
    np.testing.assert_allclose(again, rows.history.log_prob[:, 0], atol=1e-4)


def test_a_reward_model_needs_rows_for_what_may_be_drawn_and_no_more():
    policy, _ = tiny.models()
    arguments = {"encode": tiny.encode, "decode": tiny.decode}
    for size in (REAL, ROWS, ROWS + 8):
        reward = RewardModel(tiny.config(size), rngs=nnx.Rngs(1))
        Engine(tiny.target(boundary=PADDED), policy, reward, **arguments)
        if size >= ROWS:
            Engine(tiny.target(), policy, reward, **arguments)
        else:
            with pytest.raises(ConfigurationError, match="go up to 19, and lacks rows"):
                Engine(tiny.target(), policy, reward, **arguments)
    _, small = tiny.models(REAL - 1)
    with pytest.raises(ConfigurationError, match="go up to 14, and lacks rows"):
        Engine(tiny.target(boundary=PADDED), policy, small, **arguments)
    short = tiny.target(boundary=tiny.boundary(REAL))
    with pytest.raises(ConfigurationError, match="knows 15 token ids and the policy"):
        Engine(short, policy, small, **arguments)


@pytest.mark.long
def test_a_smaller_reward_model_scores_what_a_padded_policy_writes():
    policy, reward = tiny.models()
    smaller = RewardModel(tiny.config(REAL), rngs=nnx.Rngs(1))
    cut = jax.tree.map(
        lambda leaf: leaf[:REAL] if leaf.shape[:1] == (ROWS,) else leaf,
        nnx.state(reward),
    )
    nnx.update(smaller, cut)
    assert smaller.trunk.embedding[...].shape[0] == REAL
    models = {"encode": tiny.encode, "decode": tiny.decode}
    target, sampler = tiny.target(boundary=PADDED), samplers.smc()
    engines = [Engine(target, policy, model, **models) for model in (reward, smaller)]
    key, problems = jax.random.key(4), [Problem(0, "bad", "")]
    settings = {"extract": extract, "temperature": 4.0}
    results = [e.run(sampler, key, problems, 8, **settings)[0] for e in engines]
    assert results[0].texts == results[1].texts
    assert len(set(results[0].texts)) > 2
    np.testing.assert_allclose(results[0].rewards, results[1].rewards, atol=1e-5)
    # A prompt, too, must be of tokens that both have: "o" is 15.
    with pytest.raises(ConfigurationError, match="'x' has the token ids 15, and a"):
        engines[1].check([Problem("x", "hello", "")])
    engines[0].check([Problem("x", "hello", "")])


@pytest.mark.parametrize("padding", [[0], [20], [-1]])
def test_end_tokens_and_ids_out_of_range_are_no_padding(padding):
    with pytest.raises(ConfigurationError, match="cannot be padding"):
        step_boundary(TEXTS, b"c", [0], padding=padding)


def changed(change) -> Tokenizer:
    tokenizer = bpe_tokenizer()
    change(tokenizer.backend)
    return Tokenizer(tokenizer.backend, eos_ids=[2])


def with_more(backend):
    backend.add_special_tokens([AddedToken("<extra_0>", special=True)])
    backend.add_tokens(["therefore"])


def test_a_reward_model_may_know_more_tokens_but_none_otherwise():
    plain, more = bpe_tokenizer(), changed(with_more)
    check_same_tokens(plain, more, "small", "large")
    assert same_tokens(plain, bpe_tokenizer())
    assert not same_tokens(plain, more)
    last = plain.num_ids
    with pytest.raises(
        ConfigurationError, match=f"{last} is '<extra_0>' there and nothing here"
    ):
        check_same_tokens(more, plain, "large", "small")


def exchanged(left: str, right: str) -> Tokenizer:
    """The tokenizer with the ids of two tokens exchanged."""
    state = json.loads(bpe_tokenizer().backend.to_str())
    ids = state["model"]["vocab"]
    ids[left], ids[right] = ids[right], ids[left]
    for token in state["added_tokens"]:
        token["id"] = ids[token["content"]]
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    return Tokenizer(backend, eos_ids=[2])


def test_tokens_of_other_bytes_or_control_tokens_of_other_names_are_refused():
    plain = bpe_tokenizer()
    for names in (("a", "b"), ("<|im_start|>", "<|im_end|>")):
        other = exchanged(*names)
        with pytest.raises(ConfigurationError, match="has another tokenizer than"):
            check_same_tokens(plain, other, "policy", "reward")
        assert not same_tokens(plain, other)


def test_ids_that_the_tokenizer_has_not_are_padding():
    tokenizer = bpe_tokenizer()
    size = tokenizer.num_ids
    boundary = boundary_of(tokenizer, size + 9, b"\n", [2])
    np.testing.assert_array_equal(np.flatnonzero(boundary.padding), size + np.arange(9))
    assert boundary_of(tokenizer, size, b"\n", [2]).padding is None
    # An end token is drawn even if only the model's configuration knows it.
    boundary = boundary_of(tokenizer, size + 2, b"\n", [2, size + 1])
    assert np.flatnonzero(boundary.padding).tolist() == [size]


def test_strings_that_no_text_can_contain_are_refused():
    plain = bpe_tokenizer()
    size = plain.num_ids
    with pytest.raises(ConfigurationError, match=r"the control token <\|im_end\|>"):
        boundary_of(plain, size, b"\n", [2], stop_strings=[b"x<|im_end|>"])
    letters = task_tokenizer(get_task("chain"))
    with pytest.raises(ConfigurationError, match=r"no token with the byte b' '"):
        boundary_of(letters, letters.num_ids, [b"=", b"## Step"], letters.eos_ids)


@pytest.mark.long
@pytest.mark.parametrize(("of_policy", "of_reward"), [(32, 24), (24, 40)])
def test_models_of_one_tokenizer_padded_apart_run_together(
    tmp_path, of_policy, of_reward
):
    task = get_task("chain")
    tokenizer = task_tokenizer(task)
    sizes = {"policy": of_policy, "reward": of_reward}
    for seed, (name, kind) in enumerate(
        {"policy": LanguageModel, "reward": RewardModel}.items()
    ):
        config = tiny_config(task, tokenizer, width=16, hidden=16, num_layers=1)
        config = dataclasses.replace(config, vocab_size=sizes[name])
        model = kind(config, rngs=nnx.Rngs(seed))
        save(model, config, tmp_path / name, tokenizer=tokenizer)
    world = embedded_world(
        "chain",
        2,
        policy=str(tmp_path / "policy"),
        reward=f"head:{tmp_path / 'reward'}",
    )
    padding = world.engine.target.boundary.padding
    assert int(padding.sum()) == of_policy - tokenizer.vocab_size
    results = world.engine.run(
        samplers.best_of_n(),
        jax.random.key(0),
        world.problems,
        4,
        extract=world.extract,
    )
    for result in results:
        assert np.isfinite(result.rewards).all()
        assert np.ptp(result.rewards) > 0
