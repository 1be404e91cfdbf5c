"""Forced ends: densities by enumeration, replays, and what is refused."""

import functools
import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from forced_paths import (
    END,
    LIMITS,
    VOCABULARY,
    A,
    B,
    boundary,
    enumerate_target,
    params,
)
from long_runs import jit_optimised
from scipy import stats

from tsi.decoding.forced_end import ForcedEnd
from tsi.errors import ConfigurationError
from tsi.reasoning.store import ReasoningStore
from tsi.run import run
from tsi.samplers import best_of_n, smc

CASES = {
    "the token limit": (LIMITS, ForcedEnd(), {}),
    "the step limit": (
        {"max_step_tokens": 3, "max_tokens": 6, "max_steps": 2},
        ForcedEnd(),
        {},
    ),
    "a string": (
        {"max_step_tokens": 3, "max_tokens": 5, "max_steps": 5},
        ForcedEnd((B,), 2),
        {},
    ),
    "a string over a step's end": (
        {"max_step_tokens": 4, "max_tokens": 6, "max_steps": 3},
        ForcedEnd((B, A, B), 1),
        {},
    ),
    "a string in the last step": (
        {"max_step_tokens": 4, "max_tokens": 8, "max_steps": 2},
        ForcedEnd((A, B), 2),
        {},
    ),
    "several ends": (
        {**LIMITS, "max_steps": 3},
        ForcedEnd(),
        {"vocabulary": 4, "ends": (END, B)},
    ),
    "a least length": (
        {"max_step_tokens": 4, "max_tokens": 6, "max_steps": 2},
        ForcedEnd((A,), 2),
        {"least": 2},
    ),
    "a stop string": (
        LIMITS,
        ForcedEnd(),
        {"vocabulary": 3, "stop_string": "bb"},
    ),
}


@functools.cache
def case(name):
    limits, forced, settings = CASES[name]
    ends = settings.get("ends", (END,))
    stop = settings.get("stop_string", "")
    size = settings.get("vocabulary", VOCABULARY)
    strings = [stop.encode()] if stop else []
    least = settings.get("least", 1)
    edges = boundary(size, ends, stop_strings=strings, min_step_tokens=least)
    target = tiny.target(boundary=edges, forced_end=forced, **limits)
    return target, params(size), ends, stop


ROWS = 512


@functools.cache
def steps_of(name):
    """Both ways to write a step, as programs that the tests of a case share."""
    store = ReasoningStore(case(name)[0])
    return jax.jit(store.propose), jax.jit(store.replay)


def write(name, p):
    """Rows after each number of steps, the first without any; and all corrections."""
    store, (propose, _) = ReasoningStore(case(name)[0]), steps_of(name)
    written = [store.gather(store.init(None, ROWS, p), jnp.arange(ROWS))]
    corrections = np.zeros(ROWS)
    for t in range(store.max_steps):
        key, steps = jax.random.key(t), jnp.full(ROWS, t)
        rows, correction = propose(key, steps, written[-1], p)
        written.append(rows)
        corrections += np.asarray(correction)
    return written, corrections


def unpenalised(p):
    """A penalty that changes nothing, for the programs of those that have one."""
    return p._replace(repetition_penalty=jnp.float32(1.0))


def masses_of(found):
    return {x: np.exp(log_p + odds) for x, (log_p, _, odds) in found.items()}


def test_without_a_string_the_token_limit_gives_the_policy_that_finishes():
    target, p, *_ = case("the token limit")
    finishing = {
        (*body, END)
        for length in range(target.max_tokens)
        for body in itertools.product((A, B), repeat=length)
    }
    assert enumerate_target(target, p).keys() == finishing


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_densities_of_both_are_those_of_enumeration(name):
    target, p, ends, stop = case(name)
    found = enumerate_target(target, p, ends, stop)
    # The proposal is a distribution over the target's solutions.
    total = sum(np.exp(log_p - gap) for log_p, gap, _ in found.values())
    assert total == pytest.approx(1.0, abs=1e-4)
    assert sum(np.exp(log_p) for log_p, *_ in found.values()) < 0.999

    written, corrections = write(name, unpenalised(p))
    rows = jax.device_get(written[-1])
    assert bool(rows.finished.all())
    assert not bool(rows.truncated.any())
    seen = Counter()
    for row in range(ROWS):
        tokens = tuple(rows.tokens[row, : int(rows.lengths[row])].tolist())
        log_p, gap, odds = found[tokens]
        assert float(rows.log_prob[row]) == pytest.approx(log_p, abs=1e-4)
        assert float(rows.log_prob[row] - rows.log_proposal[row]) == pytest.approx(
            gap, abs=1e-4
        )
        assert corrections[row] == pytest.approx(gap, abs=1e-4)
        assert float(rows.log_odds[row]) == pytest.approx(odds, abs=2e-4)
        seen[tokens] += 1
    assert len(seen) > 4
    assert any(gap < -0.1 for tokens in seen for _, gap, _ in [found[tokens]])
    # And each is drawn as often as the proposal says; rare ones are counted together.
    q = {x: math.exp(log_p - gap) for x, (log_p, gap, _) in found.items()}
    cells = {x: x if ROWS * share > 5 else "rare" for x, share in q.items()}
    drawn, expected = Counter(), Counter()
    for x, cell in cells.items():
        drawn[cell] += seen[x]
        expected[cell] += ROWS * q[x] / sum(q.values())
    counts = [(drawn[cell], number) for cell, number in expected.items()]
    assert stats.chisquare(*np.transpose(counts)).pvalue > 1e-3


@functools.cache
def many_runs(target):
    return jit_optimised(
        jax.vmap(lambda key, p: run(smc(), target, key, 64, p), in_axes=(0, None))
    )


# Several tokens may be forced, or a string, over a step's end. Densities and
# frequencies of the others are tested above.
QUICK = ("several ends", "a stop string", "a string over a step's end")


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in CASES
    ],
)
def test_evidence_and_posterior_are_those_of_enumeration(name):
    target, p, ends, stop = case(name)
    masses = masses_of(enumerate_target(target, p, ends, stop))
    evidence, number = sum(masses.values()), 1000 if name == "several ends" else 400
    runs = many_runs(target)(jax.random.split(jax.random.key(1), number), p)
    assert bool(runs.particles.finished.all())
    weights = np.exp(
        np.asarray(runs.state.log_evidence, np.float64)[:, None]
        + np.asarray(runs.state.log_weights, np.float64)
    )
    assert (weights > 0).all()
    estimates = weights.mean(axis=1)
    error = estimates.std() / np.sqrt(number)
    assert abs(estimates.mean() - evidence) < 4 * error
    assert 4 * error < 0.02 * evidence
    tokens, lengths = map(np.asarray, (runs.particles.tokens, runs.particles.lengths))
    for solution, mass in masses.items():
        padded = np.pad(solution, (0, target.max_tokens - len(solution)))
        hits = (tokens == padded).all(-1) & (lengths == len(solution))
        shares = (weights * hits).mean(axis=1)
        deviation = shares.std() / np.sqrt(number)
        assert abs(shares.mean() - mass) <= 4 * deviation + 1e-6 * evidence


@pytest.mark.long
def test_a_proposal_of_another_temperature_is_corrected_for():
    target, p, ends, stop = case("a string in the last step")
    found = enumerate_target(target, p, ends, stop)
    expected = sum(np.exp(a) / (1 + np.exp(-odds)) for a, _, odds in found.values())
    warm = p._replace(proposal_temperature=jnp.float32(1.5))
    size = 16384
    many = jit_optimised(lambda key, p: run(best_of_n(), target, key, size, p))
    result = many(jax.random.key(2), warm)
    state, rows = result.state, result.particles
    weights = np.exp(np.asarray(state.log_weights + state.log_evidence, np.float64))
    error = weights.std() / np.sqrt(size)
    assert abs(weights.mean() - expected) < 4 * error
    assert 4 * error < 0.03 * expected
    gaps = np.asarray(rows.log_prob - rows.log_proposal)
    rewards = np.asarray(jax.nn.log_sigmoid(rows.log_odds))
    np.testing.assert_allclose(np.log(weights), gaps + rewards, atol=2e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_repeated_step_is_weighed_as_the_drawn_one(name):
    target, p, *_ = case(name)
    p = p._replace(temperature=jnp.float32(1.5), repetition_penalty=jnp.float32(1.1))
    (again, *_, rows), _ = write(name, p)
    _, replay = steps_of(name)
    for t in range(target.max_steps):
        again, log_p = replay(jnp.full(ROWS, t), again, rows, p)
        assert np.isfinite(log_p).all()
    for field in ("tokens", "step_ends", "finished", "truncated", "boundary_state"):
        np.testing.assert_array_equal(getattr(again, field), getattr(rows, field))
    atol = 1e-5 * target.max_tokens
    np.testing.assert_allclose(again.log_prob, rows.log_prob, atol=atol)
    np.testing.assert_allclose(again.log_proposal, rows.log_proposal, atol=atol)
    assert float(jnp.max(jnp.abs(rows.log_prob - rows.log_proposal))) > 0.1


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_step_under_another_past_is_weighed_by_enumeration_or_impossible(name):
    target, p, ends, stop = case(name)
    found = enumerate_target(target, p, ends, stop)
    store, (_, replay), p = ReasoningStore(target), steps_of(name), unpenalised(p)
    written, _ = write(name, p)
    # Each row begins as it did and goes on as the next one.
    order = jnp.roll(jnp.arange(ROWS), 1)
    sources = store.gather(written[-1], order)
    rows, possible = written[1], np.ones(ROWS, bool)
    for t in range(1, store.max_steps):
        rows, log_p = replay(jnp.full(ROWS, t), rows, sources, p)
        possible &= np.isfinite(log_p)
    whole = possible & np.asarray(rows.finished)
    joined = 0
    for row in np.flatnonzero(whole):
        tokens = tuple(np.asarray(rows.tokens)[row, : int(rows.lengths[row])].tolist())
        log_prob, gap, _ = found[tokens]
        assert float(rows.log_prob[row]) == pytest.approx(log_prob, abs=1e-4)
        assert float(rows.log_prob[row] - rows.log_proposal[row]) == pytest.approx(
            gap, abs=1e-4
        )
        own = np.asarray(written[-1].tokens)[row, : int(written[-1].lengths[row])]
        joined += tokens != tuple(own.tolist())
    assert whole.sum() > 10
    assert joined > 0 or possible.all()


@pytest.mark.parametrize(
    ("forced", "words"),
    [
        (ForcedEnd((1,) * 7, 1), "has 7 tokens, 1 are reserved"),
        (ForcedEnd((1, 2), 5), "a step has at most 6"),
        (ForcedEnd((1, 2), 0), "answer_tokens is 0"),
        (ForcedEnd((1, 20)), r"the ids \[20\], which are not tokens"),
        (ForcedEnd((1, 19)), r"the ids \[19\], which are not tokens"),
        (ForcedEnd((1, 0)), "contains an end token or a stop string"),
        (ForcedEnd((2, 2)), "contains an end token or a stop string"),
    ],
)
def test_what_cannot_be_forced_is_refused(forced, words):
    edges = boundary(20, padding=[19], stop_strings=[b"bb"])
    with pytest.raises(ConfigurationError, match=rf"{words}.*\.$"):
        tiny.target(boundary=edges, forced_end=forced)
