"""Results come as problems end; what fails or is misused costs no more than itself."""

import inspect
import os
import signal

import jax
import pytest
from test_engine import PROBLEMS, SAMPLER, extract, same, shared_engine

from tsi import samplers
from tsi.engine.concurrency import run_concurrently
from tsi.engine.engine import Engine
from tsi.errors import ConfigurationError, ProblemError
from tsi.problem import Problem

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def runner():
    return shared_engine(16)


@pytest.fixture(scope="module")
def results(runner):
    return runner.run(SAMPLER, KEY, PROBLEMS, 8, extract=extract)


def test_a_stream_hands_out_what_a_run_returns(runner, results):
    told = []
    stream = runner.stream(
        SAMPLER, KEY, PROBLEMS, 8, extract=extract, progress=told.append
    )
    by_id = {result.problem_id: result for result in stream}
    assert len(by_id) == len(PROBLEMS)
    for result in results:
        same(by_id[result.problem_id], result)
    assert [p.ended for p in told] == sorted(p.ended for p in told)
    assert told[0].ended < told[0].problems == len(PROBLEMS)
    spent = sum(result.ledger.generated_tokens for result in results)
    assert told[-1].generated_tokens == spent == runner.report.useful


def test_a_stream_that_is_left_hands_out_what_has_ended(runner, results):
    stream = runner.stream(SAMPLER, KEY, PROBLEMS, 8, extract=extract)
    first = next(stream)
    stream.close()
    same(first, results[first.problem_id])


@pytest.fixture
def pythons_own_handler():
    """Whatever the process that started this one, or a test before, has set."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_between_two_looks_and_loses_no_result(
    runner, results, pythons_own_handler
):
    kept = []

    def press(progress):
        if progress.ended:
            os.kill(os.getpid(), signal.SIGINT)

    stream = runner.stream(SAMPLER, KEY, PROBLEMS, 8, extract=extract, progress=press)
    with pytest.raises(KeyboardInterrupt):
        kept.extend(stream)
    assert signal.getsignal(signal.SIGINT) is pythons_own_handler
    assert 1 <= len(kept) < len(PROBLEMS)
    for result in kept:
        same(result, results[result.problem_id])


def test_an_extract_that_returns_no_text_costs_its_problems(runner):
    sampler = samplers.self_consistency()
    with pytest.raises(ProblemError, match="it returned list") as caught:
        runner.run(sampler, KEY, PROBLEMS, 16, extract=list, temperature=20.0)
    assert set(caught.value.failures) == {problem.id for problem in PROBLEMS}
    assert caught.value.results == ()


def test_an_extract_that_raises_costs_its_problem(runner):
    sampler = samplers.self_consistency()
    results = runner.run(sampler, KEY, PROBLEMS, 16, extract=extract, temperature=20.0)
    whole = [
        {
            text
            for text, cut in zip(r.texts, r.particles.truncated, strict=True)
            if not cut
        }
        for r in results
    ]
    alone = [mine - set().union(*(w for w in whole if w is not mine)) for mine in whole]
    place = max(range(len(results)), key=lambda i: len(alone[i]))
    assert alone[place]

    def fails(text):
        if text in alone[place]:
            raise ZeroDivisionError("no such answer")
        return extract(text)

    name = results[place].problem_id
    sentence = rf"1 problem .* {name} \(ZeroDivision"
    with pytest.raises(ProblemError, match=sentence) as caught:
        runner.run(sampler, KEY, PROBLEMS, 16, extract=fails, temperature=20.0)
    assert set(caught.value.failures) == {name}
    kept = [result for result in results if result.problem_id != name]
    for left, right in zip(caught.value.results, kept, strict=True):
        same(left, right)


@pytest.mark.long
def test_a_temperature_near_zero_is_greedy(runner):
    greedy = runner.run(SAMPLER, KEY, PROBLEMS, 2, extract=extract, temperature=0.0)
    for temperature in (1e-6, 1e-10, 1e-30):
        near = runner.run(
            SAMPLER, KEY, PROBLEMS, 2, extract=extract, temperature=temperature
        )
        assert [r.texts for r in near] == [r.texts for r in greedy]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampler": samplers.smc}, r"given smc; call it: smc\(\)"),
        ({"sampler": 3}, "was given 3"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"temperature": None, "proposal_temperature": "1"}, "temperature is '1'"),
        ({"temperature": True}, "temperature is True"),
        ({"num_particles": 2.5}, "num_particles is 2.5"),
        ({"num_particles": "8"}, "num_particles is '8'"),
        ({"problems": [Problem(1, "", "")]}, "problem 1 has no tokens"),
    ],
)
def test_misuse_is_a_sentence_before_work_begins(runner, changes, sentence):
    arguments = {
        "sampler": SAMPLER,
        "key": KEY,
        "problems": PROBLEMS,
        "num_particles": 4,
        "extract": extract,
    }
    # Without the annotations' checks, as users have it.
    stream = inspect.unwrap(Engine.stream)
    with pytest.raises(ConfigurationError, match=sentence):
        stream(runner, **(arguments | changes))


def numbers(start, more):
    """A lane that hands out numbers until it is stopped."""

    def run(stop):
        for number in range(start, start + more):
            if stop.is_set():
                return
            yield number

    return run


def test_concurrent_lanes_hand_out_all_they_have():
    assert sorted(
        run_concurrently([numbers(0, 5), numbers(5, 0), numbers(5, 7)])
    ) == list(range(12))
    assert list(run_concurrently([numbers(0, 5)])) == list(range(5))


def test_a_lane_that_fails_stops_the_others():
    stopped = []

    def fails(stop):
        yield 0
        raise ZeroDivisionError

    def endless(stop):
        while not stop.is_set():
            yield 1
            stop.wait(0.01)
        stopped.append(True)

    with pytest.raises(ZeroDivisionError):
        list(run_concurrently([endless, fails]))
    assert stopped == [True]
    stream = run_concurrently([endless, endless])
    assert next(stream) == 1
    stream.close()
    assert stopped == [True] * 3
