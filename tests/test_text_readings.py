"""Reward models that read text, between the engine's programs: what `tsi.run` gives."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reading_rewards as kinds
import test_engine
import test_reward_engine as engines
import tiny_language as tiny
from flax import nnx

from tsi import samplers
from tsi.decoding.boundary import step_boundary
from tsi.engine.engine import Engine
from tsi.engine.lane import Lane
from tsi.engine.meters.clock import Timed
from tsi.engine.outcome import flops_of
from tsi.engine.sizing import sizes as sizes_module
from tsi.engine.text_readings import TextReadings
from tsi.errors import ConfigurationError, ProblemError
from tsi.models.decoder import LanguageModel
from tsi.models.heads import SequenceScorer, ValueScorer
from tsi.models.prefill import prefill_bytes
from tsi.models.tokens.char_tokenizer import char_tokenizer
from tsi.problem import Problem
from tsi.reasoning.particles import ReasoningParams
from tsi.rewards.formats import OutcomeFormat, SkyworkFormat
from tsi.rewards.formatted import FormattedReward
from tsi.run import run

KEY = jax.random.key(3)
FILTER = samplers.particle_filter()
EXPLORERS = {
    "tree": samplers.mcts(),
    "repeats": samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True),
}


@functools.cache
def shared_engine(name) -> Engine:
    """One that tests share, for those that count and patch no programs."""
    return engines.engine(name, 1.0)


def results(name, sampler, problems=engines.PROBLEMS, runner=None):
    runner = shared_engine(name) if runner is None else runner
    return runner.run(sampler, KEY, problems, 4, extract=test_engine.extract)


def check_against_run(name, sampler, result):
    """Particle by particle, and what the ledger says of the reward model."""
    runner = shared_engine(name)
    problem = engines.PROBLEMS[result.problem_id]
    prompts = tiny.prompts(problem.prompt)
    asked = runner.target.reward.prepare([problem.prompt])
    params = ReasoningParams(
        runner.policy,
        runner.reward_model,
        prompts._replace(questions=asked),
        jnp.float32(1.0),
    )
    alone = jax.jit(lambda key, params: run(sampler, runner.target, key, 4, params))
    final = alone(jax.random.fold_in(KEY, problem.id), params)
    rows = final.particles
    texts = [
        tiny.decode(row[:n].tolist())
        for row, n in zip(np.asarray(rows.tokens), rows.lengths, strict=True)
    ]
    assert texts == result.texts
    rewards = jax.nn.sigmoid(rows.log_odds)
    np.testing.assert_allclose(result.rewards, rewards, atol=1e-4)
    np.testing.assert_allclose(final.state.log_weights, result.log_weights, atol=1e-3)
    return final


@pytest.mark.long
@pytest.mark.parametrize("name", kinds.KINDS)
def test_forks_read_what_they_read_within_one_program(name):
    result = results(name, FILTER)[0]
    assert len(set(result.texts)) > 1
    assert (result.steps.ancestors != np.arange(4)).any()
    final = check_against_run(name, FILTER, result)
    cost = final.particles.cost
    np.testing.assert_array_equal(result.slots.reward_tokens, cost.reward_read)
    config = kinds.model_of(name).config
    flops = flops_of(config, cost.reward_read, cost.reward_context)
    np.testing.assert_allclose(result.slots.reward_flops, flops, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ["rlhflow", "likelihood"])
@pytest.mark.parametrize("explorer", EXPLORERS)
def test_explorers_read_what_they_read_within_one_program(name, explorer):
    sampler = EXPLORERS[explorer]
    result = results(name, sampler)[0]
    assert len(set(result.texts)) > 1
    check_against_run(name, sampler, result)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "rlhflow",
        # Read by the same programs, with another format.
        pytest.param("math-shepherd", marks=pytest.mark.slow),
        "likelihood",
    ],
)
@pytest.mark.parametrize("explorer", EXPLORERS)
def test_batches_and_company_change_no_reading(monkeypatch, name, explorer):
    sampler = EXPLORERS[explorer]
    together = results(name, sampler)
    for constant, value in {"CHEAP": 0, "READS": 2, "BURST": 3}.items():
        monkeypatch.setattr(sizes_module, constant, value)
    alone = results(name, sampler, engines.PROBLEMS[::-1])[::-1]
    for left, right in zip(together, alone, strict=True):
        test_engine.same(left, right)
        np.testing.assert_allclose(left.rewards, right.rewards, atol=1e-4)


WORDS = [Problem(i, word, "") for i, word in enumerate(("hello", "bad", "fin", "ode"))]


class Failing:
    """A format that fails on the second step of one question."""

    def __init__(self, format):
        self.format = format

    def __getattr__(self, name):
        return getattr(self.format, name)

    def render(self, question, steps, ended):
        if question == "fin" and len(steps) > 1 and not self.spares:
            raise ConfigurationError("The tokenizer cannot spell this.")
        return self.format.render(question, steps, ended)

    spares = False


@functools.cache
def failing_engine() -> Engine:
    runner = engines.engine("skywork", 1.0)
    runner.target.reward.format = Failing(runner.target.reward.format)
    return runner


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "reads"), [("filter", 1), ("filter", 8), ("repeats", 3), ("tree", 2)]
)
def test_a_text_that_cannot_be_rendered_costs_its_problem(monkeypatch, name, reads):
    sampler = EXPLORERS.get(name, FILTER)
    monkeypatch.setattr(sizes_module, "CHEAP", 0)
    monkeypatch.setattr(sizes_module, "READS", reads)
    lanes, release = [], Lane._release

    def watch(self, places):
        release(self, places)
        lanes.append(self)

    monkeypatch.setattr(Lane, "_release", watch)
    runner, arguments = failing_engine(), (sampler, KEY, WORDS, 4)
    with pytest.raises(ProblemError, match="1 problem failed: 2 ") as caught:
        runner.run(*arguments, extract=test_engine.extract)
    assert caught.value.steps[2] >= 2
    assert "cannot spell this" in caught.value.tracebacks[2]
    assert "in render" in caught.value.tracebacks[2]
    for lane in lanes:
        for pool in lane.store.pools:
            assert pool.tables.num_used == 0
        assert (lane.store.readers._transcripts == None).all()  # noqa: E711
    Failing.spares = True
    try:
        whole = runner.run(*arguments, extract=test_engine.extract)
    finally:
        Failing.spares = False
    kept = [result for result in whole if result.problem_id != 2]
    for left, right in zip(caught.value.results, kept, strict=True):
        test_engine.same(left, right)


@pytest.mark.long
def test_a_text_without_room_has_no_weight_and_others_go_on():
    whole = results("qwen", FILTER)
    size = max(
        len(kinds.reward_of("qwen").format.render("hello", steps, False).tokens)
        for steps in whole[0].particles.step_texts
    )
    runner = engines.engine("qwen", 1.0, max_tokens=size - 1)
    with pytest.warns(match="no weight because|weight zero"):
        tight = results("qwen", FILTER, runner=runner)
    assert tight[0].diagnostics.num_invalid > 0
    assert np.isfinite(tight[0].log_weights).any()


class Watched:
    """A program whose first call shows what it is made of."""

    def __init__(self, name, program, seen):
        self.name, self.program, self.seen = name, program, seen

    def __call__(self, *arguments):
        if self.name not in self.seen:
            self.seen[self.name] = self.program.lower(*arguments).as_text()
        return self.program(*arguments)

    def __getattr__(self, name):
        return getattr(self.program, name)


@pytest.mark.long
def test_no_program_calls_back(monkeypatch):
    runner, seen = engines.engine("rlhflow", 1.0), {}
    for programs in (runner._programs[0], runner._programs[0].texts):
        for called, program in list(vars(programs).items()):
            if isinstance(program, Timed):
                name = (type(programs).__name__, called)
                watched = Watched(name, program.program, seen)
                monkeypatch.setattr(program, "program", watched)
    for sampler in (FILTER, EXPLORERS["repeats"]):
        results("rlhflow", sampler, runner=runner)
    assert {("TextPrograms", "read"), ("Programs", "end_step")} <= seen.keys()
    assert not [called for called, text in seen.items() if "callback" in text]
    # Within one program there is one.
    prompts = tiny.prompts("hello")._replace(
        questions=runner.target.reward.prepare(["hello"])
    )
    params = ReasoningParams(
        runner.policy, runner.reward_model, prompts, jnp.float32(1.0)
    )
    alone = jax.jit(lambda key, params: run(FILTER, runner.target, key, 2, params))
    assert "callback" in alone.lower(KEY, params).as_text()


@pytest.mark.long
def test_programs_are_found_again_by_another_process():
    """What a process has compiled is forgotten here, but for what it keeps on disk."""
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    once, events = results("skywork", FILTER), []

    def listen(event, **_):
        events.append(event.rpartition("/")[2])

    jax.clear_caches()
    jax.monitoring.register_event_listener(listen)
    try:
        again = results("skywork", FILTER, runner=engines.engine("skywork", 1.0))
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert events.count("cache_hits") > 10
    assert events.count("cache_misses") == 0
    for left, right in zip(once, again, strict=True):
        test_engine.same(left, right)


LETTERS = char_tokenizer("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \n")


@pytest.mark.long
@pytest.mark.parametrize(
    ("format", "model"),
    [(OutcomeFormat, SequenceScorer), (SkyworkFormat, ValueScorer)],
)
def test_a_reward_with_the_policys_tokenizer_reads_what_is_written_once(format, model):
    config = tiny.config(LETTERS.vocab_size, max_length=160, num_labels=1)
    policy = LanguageModel(config, rngs=nnx.Rngs(0))
    reward = FormattedReward(
        format(LETTERS), LETTERS.decode, max_steps=8, max_tokens=160
    )
    texts = [LETTERS.token_bytes(id) for id in range(LETTERS.vocab_size)]
    target = tiny.target(
        boundary=step_boundary(texts, b"\n", LETTERS.eos_ids, padding=[0]),
        reward=reward,
        max_step_tokens=32,
        max_tokens=96,
        max_steps=8,
        log_truncation=0.0,
    )
    runner = Engine(
        target,
        policy,
        model(config, rngs=nnx.Rngs(3)),
        encode=LETTERS.encode,
        decode=LETTERS.decode,
    )
    problems = [Problem(0, "bad face", ""), Problem(1, "a", "")]
    for sampler in (FILTER, EXPLORERS["tree"]):
        found = runner.run(sampler, KEY, problems, 8, extract=test_engine.extract)
        written = sum(int(result.slots.generated_tokens.sum()) for result in found)
        read = sum(int(result.slots.reward_tokens.sum()) for result in found)
        assert written > 100
        assert 0.8 * written < read <= 1.1 * written


TWO_DEVICES = """
import json, jax
import test_reward_engine as engines
import test_text_readings as readings
from tsi.engine.text_readings import TextReadings

where, begin = [], TextReadings._begin

def watch(self, *arguments):
    numbers = begin(self, *arguments)
    where.extend(x.keys.device.id for x in self._pool._extents)
    return numbers

TextReadings._begin = watch
told = []
for device in jax.devices():
    runner = engines.engine("rlhflow", 1.0)
    runner.reward_model = jax.device_put(runner.reward_model, device)
    where.clear()
    found = runner.run(
        readings.FILTER, readings.KEY, engines.PROBLEMS[:1], 4, extract=str
    )
    rewards = [result.rewards.tolist() for result in found]
    told.append([sorted(set(where)), [result.texts for result in found], rewards])
print(json.dumps(told))
"""


@pytest.mark.long
def test_the_reward_model_may_lie_on_another_device():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, two = json.loads(done.stdout.splitlines()[-1])
    assert (one[0], two[0]) == ([0], [1])
    assert one[1] == two[1]
    np.testing.assert_allclose(one[2], two[2], atol=1e-5)


@pytest.mark.long
def test_programs_that_read_text_are_few_and_have_a_price(monkeypatch):
    monkeypatch.setattr(sizes_module, "CHEAP", 0)
    shapes = []
    init = TextReadings.__init__

    def watch(self, *arguments):
        init(self, *arguments)
        shapes.append(self.shapes)

    monkeypatch.setattr(TextReadings, "__init__", watch)
    known = []
    for price in (0.0, 1e30):
        monkeypatch.setattr(sizes_module, "COMPILATION", price)
        results("rlhflow", FILTER, runner=engines.engine("rlhflow", 1.0))
        known.append({shape for one in shapes for shape in one.known})
        shapes.clear()
    cheap, dear = known
    assert 0 < len(dear) < len(cheap) <= 12


@pytest.mark.long
def test_the_bound_of_reading_prompts_counts_those_of_the_reward():
    runner = shared_engine("qwen")
    runner.run(FILTER, jax.random.key(0), WORDS[:1], 2, extract=str)
    questions = runner.target.reward.prepare([WORDS[0].prompt])
    alone = prefill_bytes(
        runner.reward_model.config, 1, questions.tokens.shape[1], 4, cached=4
    )
    assert runner.report.prefill_bytes > alone > 0
