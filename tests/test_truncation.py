"""What top-k, top-p and min-p keep, beside sorting and transformers' own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from scipy import stats
from test_engine import PROBLEMS, SAMPLER, engine, extract

from tsi.decoding.token_draws import Temperatures, log_prob_of, sample_token
from tsi.decoding.truncation import Truncation, truncate
from tsi.errors import ConfigurationError
from tsi.reasoning.particles import ReasoningParams
from tsi.run import run

RANDOM = np.random.default_rng(0)
LOGITS = (3 * RANDOM.standard_normal((6, 1000))).astype(np.float32)
LOGITS[0, :500] = -np.inf
LOGITS[1] *= 20


def kept_of(logits, temperature=1.0, **truncation):
    arrays = Truncation(**truncation).as_arrays()
    return np.isfinite(truncate(jnp.asarray(logits), jnp.float32(temperature), arrays))


def probabilities(logits):
    p = np.exp(np.asarray(logits, np.float64))
    return p / p.sum()


def by_sorting(logits, temperature, top_k, top_p, min_p):
    """One row, the textbook's way."""
    scores = logits.astype(np.float64) / temperature
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    order = order[: top_k or None]
    p = np.exp(scores - scores.max())
    if top_p is not None:
        before = np.cumsum(p[order]) - p[order]
        order = order[before < top_p * p[order].sum()]
    if min_p is not None:
        order = order[p[order] >= min_p]
    return set(order.tolist())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(
    "parts",
    [
        (1, None, None),
        (50, None, None),
        (700, None, None),
        (None, 0.9, None),
        (None, 0.05, None),
        (None, 0.999, None),
        (None, None, 0.1),
        (20, 0.7, 0.05),
    ],
)
def test_what_is_kept_is_what_sorting_keeps(temperature, parts):
    names = dict(zip(("top_k", "top_p", "min_p"), parts, strict=True))
    kept = kept_of(LOGITS, temperature, **names)
    for row, mine in zip(LOGITS, kept, strict=True):
        assert set(np.flatnonzero(mine).tolist()) == by_sorting(
            row, temperature, *parts
        )


def test_transformers_keeps_the_same():
    torch = pytest.importorskip("torch")
    logits_process = pytest.importorskip("transformers.generation.logits_process")
    scores = torch.tensor(LOGITS[2:] / 0.7)
    for warper in (
        logits_process.TopKLogitsWarper(40),
        logits_process.TopPLogitsWarper(0.8),
        logits_process.MinPLogitsWarper(0.02),
    ):
        scores = warper(None, scores)
    kept = kept_of(LOGITS[2:], 0.7, top_k=40, top_p=0.8, min_p=0.02)
    np.testing.assert_array_equal(np.isfinite(scores.numpy()), kept)


def test_tokens_as_likely_as_the_last_are_kept_too():
    logits = np.log(np.array([[0.4, 0.1, 0.1, 0.1, 0.3]], np.float32))
    assert kept_of(logits, top_k=3)[0].tolist() == [True] * 5
    assert kept_of(logits, top_p=0.75)[0].tolist() == [True] * 5
    assert kept_of(logits, top_p=0.6)[0].tolist() == [True, False, False, False, True]


def test_nothing_is_cut_where_everything_is_kept():
    for whole in (
        {"top_p": 1.0},
        {"min_p": 0.0},
        {"top_k": 10**12},
        {"top_k": 1000},
        {},
    ):
        np.testing.assert_array_equal(kept_of(LOGITS, **whole), np.isfinite(LOGITS))
    assert Truncation(top_p=1.0, min_p=0).as_arrays() == Truncation()


def test_the_most_likely_token_is_always_kept():
    for least in ({"top_k": 1}, {"top_p": 1e-30}, {"min_p": 1.0}):
        for temperature in (0.0, 1e-6, 1.0, 1e6):
            kept = kept_of(LOGITS, temperature, **least)
            assert kept[np.arange(6), LOGITS.argmax(1)].all()


def test_draws_and_their_log_p_are_those_of_the_truncated_policy():
    draws, truncation = 40_000, Truncation(top_k=6, top_p=0.9).as_arrays()
    logits = jnp.asarray(RANDOM.standard_normal((1, 12)), jnp.float32) * 2
    warm = jnp.float32(1.3)
    kept = truncate(logits, warm, truncation)
    p = probabilities(kept[0] / 1.3)
    assert 2 <= np.count_nonzero(p) < 7
    keys = jax.random.split(jax.random.key(3), draws)
    temperatures = Temperatures(warm, None, truncation)
    token, log_p, _ = sample_token(keys, jnp.tile(logits, (draws, 1)), temperatures)
    counts = np.bincount(token, minlength=12)
    assert not counts[p == 0].any()
    some = p > 0
    assert stats.chisquare(counts[some], draws * p[some]).pvalue > 1e-3
    np.testing.assert_allclose(log_p, np.log(p[np.asarray(token)]), atol=1e-5)
    again = log_prob_of(jnp.tile(logits, (12, 1)), jnp.arange(12), warm, truncation)
    np.testing.assert_allclose(np.exp(again), p, atol=1e-6)


def test_a_warmer_proposal_draws_what_the_policy_may_write_and_is_corrected():
    draws, truncation = 40_000, Truncation(top_k=5).as_arrays()
    logits = jnp.asarray(RANDOM.standard_normal((1, 12)), jnp.float32) * 2
    both = Temperatures(jnp.float32(0.7), jnp.float32(1.5), truncation)
    keys = jax.random.split(jax.random.key(4), draws)
    token, log_p, log_ratio = sample_token(keys, jnp.tile(logits, (draws, 1)), both)
    kept = truncate(logits, jnp.float32(0.7), truncation)[0]
    p, q = (probabilities(kept / t) for t in (0.7, 1.5))
    counts = np.bincount(token, minlength=12)
    some = q > 0
    assert not counts[~some].any()
    assert stats.chisquare(counts[some], draws * q[some]).pvalue > 1e-3
    chosen = np.asarray(token)
    np.testing.assert_allclose(log_p, np.log(p[chosen]), atol=1e-5)
    np.testing.assert_allclose(log_ratio, np.log(p[chosen] / q[chosen]), atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 2}, "min_p is 2"),
    ],
)
def test_what_truncates_to_nothing_is_refused(wrong, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        Truncation(**wrong).check()


@pytest.fixture(scope="module")
def runner():
    """An engine with a truncation of its own, which runs may override."""
    return engine(truncation=Truncation(top_k=1))


@pytest.mark.long
def test_the_engine_writes_and_weighs_by_the_truncated_policy(runner):
    """Samples are those of `tsi.run`, and each solution's log p is that of what the
    truncated policy may write."""
    key, truncation = jax.random.key(7), Truncation(top_k=2, top_p=0.9)
    sampler, target, everything = SAMPLER, tiny.target(), Truncation()
    arguments = {"extract": extract, "temperature": 20.0}
    whole = runner.run(
        sampler, key, PROBLEMS[:2], 6, truncation=everything, **arguments
    )
    filtered = runner.run(
        sampler, key, PROBLEMS[:2], 6, truncation=truncation, **arguments
    )
    assert [r.texts for r in filtered] != [r.texts for r in whole]
    alone = jax.jit(lambda key, params: run(sampler, target, key, 6, params))
    policy, reward = tiny.models()

    @jax.jit
    def log_p_of(tokens):
        kept = truncate(policy(tokens), jnp.float32(20.0), truncation.as_arrays())
        return jax.nn.log_softmax(kept / 20.0)

    for problem, result in zip(PROBLEMS, filtered, strict=False):
        params = ReasoningParams(
            policy,
            reward,
            tiny.prompts(problem.prompt),
            jnp.float32(20.0),
            truncation=truncation.as_arrays(),
        )
        final = alone(jax.random.fold_in(key, problem.id), params).particles
        rows = list(zip(final.tokens, final.lengths, final.log_prob, strict=True))
        assert [tiny.decode(row[:n].tolist()) for row, n, _ in rows] == result.texts
        prompt = tiny.encode(problem.prompt)
        sequences = np.zeros((len(rows), 40), np.int32)
        for sequence, (row, n, _) in zip(sequences, rows, strict=True):
            sequence[: len(prompt) + n] = [*prompt, *row[:n].tolist()]
        for log_p, (row, n, log_prob) in zip(log_p_of(sequences), rows, strict=True):
            log_p = np.asarray(log_p)[len(prompt) - 1 + np.arange(n), row[:n]]
            assert np.all(np.isfinite(log_p))
            assert float(log_prob) == pytest.approx(float(log_p.sum()), abs=1e-4)


@pytest.mark.long
def test_the_most_likely_token_alone_is_greedy(runner):
    arguments = (SAMPLER, jax.random.key(0), PROBLEMS[:2], 2)
    greedy = runner.run(
        *arguments, extract=extract, temperature=0.0, truncation=Truncation()
    )
    single = runner.run(*arguments, extract=extract)
    assert [r.texts for r in single] == [r.texts for r in greedy]
