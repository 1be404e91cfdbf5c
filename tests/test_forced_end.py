"""Forced ends: densities by enumeration, replays, batches, and what is refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from flax import nnx

from tsi.boundary import step_boundary
from tsi.forced_end import ForcedEnd
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.reasoning import ReasoningParams
from tsi.run import run
from tsi.samplers import best_of_n, smc

END, A, B = 0, 1, 2
VOCABULARY = 3
LIMITS = {"max_step_tokens": 2, "max_tokens": 4, "max_steps": 4}


def boundary(vocabulary=VOCABULARY, ends=(END,), **settings):
    letters = [letter.encode() for letter in tiny.ALPHABET[: vocabulary - 1]]
    return step_boundary([b"", *letters], b"a", ends, **settings)


def params(vocabulary=VOCABULARY, **changes):
    """Models that are small and rewards that differ little, for many runs."""
    small = {"width": 8, "hidden": 8, "num_layers": 1, "num_heads": 2}
    config = tiny.config(vocabulary, num_kv_heads=1, **small)
    policy = LanguageModel(config, rngs=nnx.Rngs(0))
    reward = RewardModel(config, rngs=nnx.Rngs(1))
    whole = ReasoningParams(policy, reward, tiny.prompts("ab"), jnp.float32(1.0))
    return whole._replace(**changes)


class Path:
    """A solution by the words of the module's text: a string, then an end."""

    def __init__(self, target, ends, stop_string=""):
        self.target, self.ends, self.stop_string = target, ends, stop_string
        self.tokens, self.forced = (), ()
        self.step = self.place = 0
        self.left, self.due, self.over = None, False, False

    def allowed(self):
        """Tokens that may come next, or None for all."""
        target, forced, n = self.target, self.target.forced_end, len(self.tokens)
        last = self.step == target.max_steps - 1
        left = self.left
        if left is None and (
            n == target.max_tokens - forced.reserve or (last and self.place == 0)
        ):
            left = forced.string
        if left:
            return {left[0]}, left
        at_end = n == target.max_tokens - 1
        at_end |= last and (self.place == target.max_step_tokens - 1 or self.due)
        return ({*self.completing()} if at_end else None), left

    def completing(self):
        text = tiny.decode(list(self.tokens))
        size = len(self.target.boundary.stops)
        for token in range(size):
            whole = text + (tiny.decode([token]) if token not in self.ends else "")
            if token in self.ends or (
                self.stop_string and whole.endswith(self.stop_string)
            ):
                yield token

    def then(self, token):
        allowed, left = self.allowed()
        new = object.__new__(Path)
        new.__dict__ |= self.__dict__
        new.tokens = (*self.tokens, token)
        if allowed is not None:
            new.forced = (*self.forced, (len(self.tokens), tuple(allowed)))
        new.left = left[1:] if left else left
        new.over = token in {*self.completing()}
        new.place, last = self.place + 1, self.step == self.target.max_steps - 1
        ended = token == A and not (last and left)
        new.due = self.due or (last and ended)
        cut = new.place == self.target.max_step_tokens
        if cut or (ended and not last):
            new.step, new.place = self.step + 1, 0
        return new


def support(path):
    """All solutions of the target."""
    if path.over:
        return [path]
    size = len(path.target.boundary.stops)
    allowed, _ = path.allowed()
    tokens = range(size) if allowed is None else sorted(allowed)
    return [whole for token in tokens for whole in support(path.then(token))]


def enumerate_target(target, p, ends=(END,), stop_string=""):
    """Log p, log p - log q and log-odds of every solution, by its tokens."""
    paths = support(Path(target, ends, stop_string))
    rows = [("ab", list(path.tokens)) for path in paths]
    log_p, log_odds = tiny.uncached(p, rows)
    prefixes = sorted({path.tokens[:at] for path in paths for at, _ in path.forced})
    size = len(target.boundary.stops)
    asked = [("ab", [*prefix, v]) for prefix in prefixes for v in range(size)]
    after, _ = tiny.uncached(p, asked) if asked else (np.zeros(0), None)
    after = dict(zip(prefixes, after.reshape(-1, size), strict=True))
    found = {}
    for path, log_prob, odds in zip(paths, log_p, log_odds, strict=True):
        correction = 0.0
        for at, allowed in path.forced:
            by_token = after[path.tokens[:at]]
            correction += np.logaddexp.reduce(by_token[list(allowed)])
            correction -= np.logaddexp.reduce(by_token)
        found[path.tokens] = (log_prob, correction, odds)
    return found


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
        {"vocabulary": 4, "ends": (END, 3)},
    ),
    "a stop string": (
        LIMITS,
        ForcedEnd((A,), 1),
        {"vocabulary": 3, "stop_string": "bb"},
    ),
}


def case(name):
    limits, forced, settings = CASES[name]
    ends = settings.get("ends", (END,))
    stop = settings.get("stop_string", "")
    size = settings.get("vocabulary", VOCABULARY)
    strings = [stop.encode()] if stop else []
    edges = boundary(size, ends, stop_strings=strings)
    target = tiny.target(boundary=edges, forced_end=forced, **limits)
    return target, params(size), ends, stop


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


@pytest.mark.parametrize("name", CASES)
def test_densities_of_both_are_those_of_enumeration(name):
    target, p, ends, stop = case(name)
    found = enumerate_target(target, p, ends, stop)
    # The proposal is a distribution over the target's solutions.
    total = sum(np.exp(log_p - gap) for log_p, gap, _ in found.values())
    assert total == pytest.approx(1.0, abs=1e-4)
    assert sum(np.exp(log_p) for log_p, *_ in found.values()) < 0.999

    size = 512
    run_once = jax.jit(lambda key, p: run(best_of_n(), target, key, size, p))
    result = run_once(jax.random.key(0), p)
    rows = result.particles
    assert bool(rows.finished.all())
    assert not bool(rows.truncated.any())
    seen = set()
    for row in range(size):
        tokens = tuple(np.asarray(rows.tokens)[row, : int(rows.lengths[row])].tolist())
        log_p, gap, odds = found[tokens]
        assert float(rows.log_prob[row]) == pytest.approx(log_p, abs=1e-4)
        assert float(rows.log_prob[row] - rows.log_proposal[row]) == pytest.approx(
            gap, abs=1e-4
        )
        log_weight = float(result.state.log_weights[row] + result.state.log_evidence)
        log_reward = -np.logaddexp(0.0, -odds)
        assert log_weight == pytest.approx(gap + log_reward, abs=2e-4)
        seen.add(tokens)
    assert len(seen) > 4
    assert any(gap < -0.1 for tokens in seen for _, gap, _ in [found[tokens]])


@functools.cache
def many_runs(target):
    return jax.jit(
        jax.vmap(lambda key, p: run(smc(), target, key, 64, p), in_axes=(0, None))
    )


@pytest.mark.parametrize("name", CASES)
def test_evidence_and_posterior_are_those_of_enumeration(name):
    target, p, ends, stop = case(name)
    masses = masses_of(enumerate_target(target, p, ends, stop))
    evidence, number = sum(masses.values()), 400
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
