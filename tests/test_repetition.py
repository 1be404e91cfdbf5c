"""The repetition penalty: one policy in draws, replays, proposals and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_engine
import tiny_language as tiny

from tsi import samplers
from tsi.decoding.repetition import mark_seen, mark_seen_within, penalise
from tsi.decoding.truncation import Truncation
from tsi.engine.engine import Engine
from tsi.engine.sizing import sizes as sizes_module
from tsi.errors import ConfigurationError
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.run import run

PENALTY = 1.7
PROMPTS = ("hello", "bad")


def params(**changes) -> ReasoningParams:
    policy, reward = tiny.models(sharpness=2.0)
    plain = ReasoningParams(policy, reward, tiny.prompts(*PROMPTS), jnp.float32(0.9))
    return plain._replace(repetition_penalty=jnp.float32(PENALTY), **changes)


@jax.jit
def whole(policy, sequences):
    return policy(sequences)


def log_p_of(p: ReasoningParams, prompt: str, tokens: list[int]) -> float:
    """Log p of a solution, token by token, in NumPy."""
    read, total = tiny.encode(prompt), 0.0
    sequence = np.zeros((1, 40), np.int32)
    sequence[0, : len(read + tokens)] = read + tokens
    logits_of = np.asarray(whole(p.policy, sequence)[0], np.float64)
    for token in tokens:
        logits = logits_of[len(read) - 1].copy()
        for seen in set(read):
            logits[seen] *= 1 / PENALTY if logits[seen] > 0 else PENALTY
        if p.truncation is not None:
            logits[logits < np.sort(logits)[-p.truncation.top_k]] = -np.inf
        logits /= float(p.temperature)
        total += logits[token] - np.logaddexp.reduce(logits)
        read.append(token)
    return total


def test_logits_of_either_sign_become_smaller():
    logits, seen = jnp.asarray([2.0, -2.0, 2.0, -2.0]), jnp.asarray([1, 1, 0, 0], bool)
    found = penalise(logits, seen, jnp.float32(4.0))
    assert found.tolist() == [0.5, -8.0, 2.0, -2.0]


def test_what_has_been_seen_is_what_was_read():
    prompts, lengths = jnp.asarray([[3, 1, 9], [2, 2, 5]]), jnp.asarray([2, 3])
    tokens = jnp.asarray([[4, 4, 0], [6, 1, 0], [0, 0, 0], [7, 0, 1]])
    seen = mark_seen(prompts, lengths, tokens, jnp.asarray([1, 2, 0, 3]), 8)
    found = [np.flatnonzero(row).tolist() for row in seen]
    assert found == [[1, 3, 4], [1, 3, 6], [2, 5], [0, 1, 2, 5, 7]]
    later = mark_seen_within(
        seen[:2], jnp.asarray([[6, 4, 6], [0, 7, 5]]), jnp.asarray([3, 1])
    )
    found = [[np.flatnonzero(at).tolist() for at in row] for row in later]
    assert found[0] == [[1, 3, 4], [1, 3, 4, 6], [1, 3, 4, 6]]
    assert found[1] == [[1, 3, 6], [0, 1, 3, 6], [0, 1, 3, 6]]


@pytest.mark.long
@pytest.mark.parametrize("truncation", [None, Truncation(top_k=5)])
def test_log_p_of_what_is_written_and_repeated_is_the_penalised_policys(truncation):
    p = params(truncation=truncation)
    store, size = ReasoningStore(tiny.target()), 24
    empty = store.gather(store.init(None, size, p), jnp.arange(2 * size))
    propose, replay = jax.jit(store.propose), jax.jit(store.replay)
    rows, again = empty, empty
    for t in range(store.max_steps):
        keys = jax.random.split(jax.random.key(t), 2)
        rows, _ = propose(keys, jnp.full(2 * size, t), rows, p)
    for t in range(store.max_steps):
        again, _ = replay(jnp.full(2 * size, t), again, rows, p)
    np.testing.assert_allclose(again.log_prob, rows.log_prob, atol=2e-4)
    texts = set()
    for row in range(2 * size):
        tokens = np.asarray(rows.tokens)[row, : int(rows.lengths[row])].tolist()
        expected = log_p_of(p, PROMPTS[row // size], tokens)
        assert float(rows.log_prob[row]) == pytest.approx(expected, abs=2e-3)
        texts.add(tiny.decode(tokens))
    assert len(texts) > size


def test_a_proposal_is_corrected_to_the_penalised_policy():
    p = params(proposal_temperature=jnp.float32(1.3))
    store, size = ReasoningStore(tiny.target()), 8
    empty = store.gather(store.init(None, size, p), jnp.arange(2 * size))
    keys, zeros = jax.random.split(jax.random.key(0), 2), jnp.zeros(2 * size, jnp.int32)
    rows, correction = jax.jit(store.propose)(keys, zeros, empty, p)
    warmer = p._replace(temperature=p.proposal_temperature, proposal_temperature=None)
    for row in range(2 * size):
        tokens = np.asarray(rows.tokens)[row, : int(rows.lengths[row])].tolist()
        prompt = PROMPTS[row // size]
        expected = log_p_of(p, prompt, tokens) - log_p_of(warmer, prompt, tokens)
        assert float(correction[row]) == pytest.approx(expected, abs=2e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    "sampler",
    [
        samplers.particle_filter(),
        samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True),
    ],
)
def test_the_engine_draws_as_tsi_run_in_any_batch(monkeypatch, sampler):
    policy, reward = tiny.models(sharpness=2.0)
    models = {"encode": tiny.encode, "decode": tiny.decode}
    target, key = tiny.target(), jax.random.key(4)

    def results(**changes):
        settings = {"repetition_penalty": PENALTY, "temperature": 0.9, **changes}
        runner = Engine(target, policy, reward, **models, **settings)
        problems = test_engine.PROBLEMS
        return runner.run(sampler, key, problems, 8, extract=test_engine.extract)

    together = results()
    assert max(len(set(result.texts)) for result in together) > 2
    if sampler.__class__.__name__ == "Sampler":
        alone = jax.jit(lambda key, p: run(sampler, target, key, 8, p))
        for problem, result in zip(test_engine.PROBLEMS, together, strict=True):
            p = params()._replace(prompts=tiny.prompts(problem.prompt))
            final = alone(jax.random.fold_in(key, problem.id), p)
            rows = zip(final.particles.tokens, final.particles.lengths, strict=True)
            assert [tiny.decode(row[:n].tolist()) for row, n in rows] == result.texts
    for constant, value in {"CHEAP": 0, "BURST": 2, "READS": 2}.items():
        monkeypatch.setattr(sizes_module, constant, value)
    for left, right in zip(together, results(max_rows=8), strict=True):
        test_engine.same(left, right)


@pytest.mark.parametrize("penalty", [0, -1.0, float("inf"), float("nan"), "1.1"])
def test_a_penalty_must_be_a_positive_number(penalty):
    policy, reward = tiny.models()
    models = {"encode": tiny.encode, "decode": tiny.decode}
    unchecked = Engine.__init__.__wrapped__
    with pytest.raises(ConfigurationError, match=r"^repetition_penalty is .*\.$"):
        unchecked(
            object.__new__(Engine),
            tiny.target(),
            policy,
            reward,
            **models,
            repetition_penalty=penalty,
        )
