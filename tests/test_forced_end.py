"""Forced ends: densities by enumeration, replays, batches, and what is refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_engine
import tiny_language as tiny
from flax import nnx

from tsi import samplers
from tsi.decoding.boundary import step_boundary
from tsi.decoding.forced_end import ForcedEnd
from tsi.decoding.truncation import Truncation
from tsi.engine.engine import Engine
from tsi.engine.sizing import sizes as sizes_module
from tsi.errors import ConfigurationError
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
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
        ended &= new.place >= (self.target.boundary.min_tokens or 1)
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
    seen = set()
    for row in range(ROWS):
        tokens = tuple(rows.tokens[row, : int(rows.lengths[row])].tolist())
        log_p, gap, odds = found[tokens]
        assert float(rows.log_prob[row]) == pytest.approx(log_p, abs=1e-4)
        assert float(rows.log_prob[row] - rows.log_proposal[row]) == pytest.approx(
            gap, abs=1e-4
        )
        assert corrections[row] == pytest.approx(gap, abs=1e-4)
        assert float(rows.log_odds[row]) == pytest.approx(odds, abs=2e-4)
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


def test_a_proposal_of_another_temperature_is_corrected_for():
    target, p, ends, stop = case("a string in the last step")
    found = enumerate_target(target, p, ends, stop)
    expected = sum(np.exp(a) / (1 + np.exp(-odds)) for a, _, odds in found.values())
    warm = p._replace(proposal_temperature=jnp.float32(1.5))
    size = 16384
    many = jax.jit(lambda key, p: run(best_of_n(), target, key, size, p))
    result = many(jax.random.key(2), warm)
    state, rows = result.state, result.particles
    weights = np.exp(np.asarray(state.log_weights + state.log_evidence, np.float64))
    error = weights.std() / np.sqrt(size)
    assert abs(weights.mean() - expected) < 4 * error
    assert 4 * error < 0.03 * expected
    gaps = np.asarray(rows.log_prob - rows.log_proposal)
    rewards = np.asarray(jax.nn.log_sigmoid(rows.log_odds))
    np.testing.assert_allclose(np.log(weights), gaps + rewards, atol=2e-4)


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


SAMPLERS = {
    "a particle filter": samplers.particle_filter(),
    "SMC": samplers.smc(),
    "particle Gibbs": samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True),
    "tree search": samplers.mcts(),
    "power sampling": samplers.power_sampling(alpha=2.0),
}


@functools.cache
def forcing_engine(max_rows):
    policy, reward = tiny.models(sharpness=1.0)
    string = tuple(tiny.encode("bcd"))
    limits = {"max_step_tokens": 6, "max_tokens": 16, "max_steps": 5}
    target = tiny.target(forced_end=ForcedEnd(string, 3), **limits)
    settings = {"repetition_penalty": 1.3, "temperature": 0.9, "max_rows": max_rows}
    models = {"encode": tiny.encode, "decode": tiny.decode}
    return Engine(target, policy, reward, **models, **settings)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_engine_draws_as_tsi_run_in_any_batch(monkeypatch, name):
    sampler, runner = SAMPLERS[name], forcing_engine(2048)
    target, policy, reward = runner.target, runner.policy, runner.reward_model
    key, size = jax.random.key(4), 8

    def results(runner):
        problems = test_engine.PROBLEMS
        return runner.run(sampler, key, problems, size, extract=test_engine.extract)

    together = results(runner)
    alone = jax.jit(lambda key, p: run(sampler, target, key, size, p))
    for problem, result in zip(test_engine.PROBLEMS, together, strict=True):
        p = ReasoningParams(
            policy,
            reward,
            tiny.prompts(problem.prompt),
            jnp.float32(0.9),
            repetition_penalty=jnp.float32(1.3),
        )
        final = alone(jax.random.fold_in(key, problem.id), p)
        rows = zip(final.particles.tokens, final.particles.lengths, strict=True)
        assert [tiny.decode(row[:n].tolist()) for row, n in rows] == result.texts
        weights = np.asarray(final.state.log_weights)
        np.testing.assert_allclose(weights, result.log_weights, atol=1e-3)
        gaps = np.asarray(final.particles.log_prob - final.particles.log_proposal)
        np.testing.assert_allclose(gaps, result.particles.log_corrections, atol=1e-3)
        assert result.diagnostics.num_truncated == 0
        long = [text for text in result.texts if len(text) > 11]
        assert all("bcd" in text for text in long)
    assert any(len(text) > 11 for result in together for text in result.texts)
    for constant, value in {"CHEAP": 0, "BURST": 2, "READS": 2}.items():
        monkeypatch.setattr(sizes_module, constant, value)
    for left, right in zip(together, results(forcing_engine(8)), strict=True):
        test_engine.same(left, right)
        np.testing.assert_allclose(
            left.particles.log_corrections, right.particles.log_corrections, atol=1e-4
        )


def test_what_the_policy_cannot_write_has_no_weight():
    policy, reward = tiny.models(sharpness=1.0)
    # Never the likeliest token for these prompts.
    target = tiny.target(forced_end=ForcedEnd(tuple(tiny.encode("q")), 3))
    runner = Engine(
        target,
        policy,
        reward,
        encode=tiny.encode,
        decode=tiny.decode,
        truncation=Truncation(top_k=2),
    )
    problems, key = test_engine.PROBLEMS, jax.random.key(0)
    dead = 0
    for sampler in (samplers.smc(), samplers.quest(0.5)):
        results = runner.run(sampler, key, problems, 8, extract=test_engine.extract)
        for result in results:
            cut = result.particles.truncated
            np.testing.assert_array_equal(
                np.isneginf(result.particles.log_corrections), cut
            )
            for text, answer in zip(
                np.array(result.texts)[cut], np.array(result.answers)[cut], strict=True
            ):
                # It ends there, and not when it would have.
                assert (text[-1], answer) == ("q", None)
            assert result.diagnostics.num_invalid == 0
            assert not np.isnan(result.log_weights).any()
            if cut.all():
                assert "forced" in result.notes[0]
            dead += cut.sum()
    assert dead > 20


@pytest.mark.parametrize(
    ("forced", "words"),
    [
        (ForcedEnd((1,) * 7, 1), "has 7 tokens, 1 are reserved"),
        (ForcedEnd((1, 2), 5), "a step has at most 6"),
        (ForcedEnd((1, 2), 0), "answer_tokens is 0"),
        (ForcedEnd((1, 20)), r"the ids \[20\], which are no tokens"),
        (ForcedEnd((1, 19)), r"the ids \[19\], which are no tokens"),
        (ForcedEnd((1, 0)), "contains an end token or a stop string"),
        (ForcedEnd((2, 2)), "contains an end token or a stop string"),
    ],
)
def test_what_cannot_be_forced_is_refused(forced, words):
    edges = boundary(20, padding=[19], stop_strings=[b"bb"])
    with pytest.raises(ConfigurationError, match=rf"{words}.*\.$"):
        tiny.target(boundary=edges, forced_end=forced)
