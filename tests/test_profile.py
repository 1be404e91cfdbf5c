"""Where a run's time and memory go: parts that sum, bytes counted by hand."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest
import test_engine
import tiny_language as tiny

from tsi import samplers
from tsi.engine.engine import Engine
from tsi.engine.meters.clock import PARTS, Clock, Timed
from tsi.engine.meters.report import (
    CacheBytes,
    Report,
    report_of_groups,
    report_of_runs,
    total,
)
from tsi.engine.sizing import sizes as sizes_module
from tsi.experiments.cli import main
from tsi.experiments.plans.methods import sampler_of
from tsi.experiments.scaling.profiling import Recorder, table_of
from tsi.problem import Problem
from tsi.rewards.reward import NoReward

KEY = jax.random.key(2)


class Hands:
    """A clock's hands, moved by the test."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time

    def move(self, seconds):
        self.time += seconds


@pytest.fixture
def hands():
    return Hands()


def test_nested_parts_are_counted_once_and_sum_to_the_time(hands):
    clock = Clock(now=hands)
    hands.move(1)
    outer = clock.phase("decide")
    hands.move(2)
    inner = clock.phase("repeat")
    hands.move(4)
    assert clock.switch(inner) == "repeat"
    hands.move(8)
    clock.switch(outer)
    hands.move(16)
    seconds = clock.read().seconds
    expected = dict.fromkeys(PARTS, 0.0) | {"host": 17.0, "decide": 10.0, "repeat": 4.0}
    assert seconds == expected
    assert sum(seconds.values()) == hands.time - 100


def test_compilation_is_taken_out_of_the_part_that_it_interrupts(hands):
    clock = Clock(now=hands)
    clock.switch("decode")
    hands.move(3)
    # A program traced in 2 seconds, of which another took 0.5, then lowered in 1.
    clock.note_compilation(0.5)
    hands.move(1)
    clock.note_compilation(2.0)
    hands.move(1)
    clock.note_compilation(1.0)
    hands.move(5)
    clock.switch("reward")
    hands.move(1)
    seconds, compiling = clock.read()
    assert seconds["decode"] == 7
    assert seconds["compile"] == compiling["decode"] == 3
    assert seconds["reward"] == 1
    # What is told of a time before the part began is no more than the part.
    clock.switch("move")
    clock.note_compilation(50.0)
    assert clock.read().seconds["move"] == 0
    assert sum(clock.read().seconds.values()) == hands.time - 100


def test_only_an_exact_clock_waits_for_programs_and_has_them_by_part(hands):
    for exact in (False, True):
        clock = Clock(exact, hands)
        clock.resume()
        clock.phase("decode")
        program = Timed(lambda: hands.move(2), "move")
        program()
        hands.move(1)
        found = clock.read().seconds
        charged = {part: spent for part, spent in found.items() if spent}
        assert charged == ({"move": 2, "host": 1} if exact else {"decode": 3})


def test_compilations_are_told_to_the_clock_of_their_thread():
    mine, other = Clock(), Clock()
    mine.resume()
    mine.switch("reward")

    def work():
        other.resume()
        other.switch("prefill")
        jax.jit(lambda x: jnp.sin(x) * 3.25)(1.0).block_until_ready()
        other.switch("idle")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert other.read().compiling["prefill"] > 0
    assert mine.read().seconds["compile"] == 0


def test_groups_of_devices_sum_to_their_number_times_the_wall_time():
    seconds = [dict.fromkeys(PARTS, 0.0) | {"decode": x, "idle": 1.0} for x in (3, 5)]
    reports = [
        Report(10, 20, 1, part, cache=CacheBytes(4, 2, 9), weight_transfers=3)
        for part in seconds
    ]
    report = report_of_groups(total(reports), wall=8.0, groups=3)
    assert report.parts()["decode"] == pytest.approx(8 / 3)
    # Two seconds of the groups before and after, and all eight of a third.
    assert report.seconds["idle"] == 2 + (3 * 8 - 10)
    assert sum(report.parts().values()) == pytest.approx(report.wall)
    assert report.cache == CacheBytes(8, 4, 18)
    both = report_of_runs([report, report._replace(cache=CacheBytes(50, 1, 60))])
    assert both.useful == 40
    assert both.weight_transfers == 12
    assert both.cache == CacheBytes(50, 1, 60)
    assert sum(both.parts().values()) == pytest.approx(both.wall) == 16


@pytest.mark.long
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("repeats", [False, True])
def test_the_parts_of_a_run_sum_to_its_wall_time(repeats, exact):
    engine, sampler = test_engine.shared_engine(16), test_engine.SAMPLER
    if repeats:
        sampler = samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True)
    settings = {"extract": test_engine.extract, "exact": exact}
    plain = engine.run(
        sampler, KEY, test_engine.PROBLEMS, 8, **settings | {"exact": False}
    )
    results = []
    held = 0.0
    for result in engine.stream(sampler, KEY, test_engine.PROBLEMS, 8, **settings):
        results.append(result)
        # Time that the caller takes is nobody's work.
        began = time.perf_counter()
        time.sleep(0.05)
        held += time.perf_counter() - began
        if len(results) == 2:
            two = held, engine.report
    report = engine.report
    assert sum(report.parts().values()) == pytest.approx(report.wall, abs=1e-9)
    assert min(report.parts().values()) >= 0
    assert report.compiling.keys() <= set(PARTS)
    assert sum(report.compiling.values()) == pytest.approx(report.seconds["compile"])
    assert two[1].seconds["idle"] >= 0.05
    assert report.seconds["prefill"] > 0 < report.seconds["decide"]
    assert (report.seconds["repeat"] > 0) == repeats
    assert report.read == sum(r.ledger.reward_tokens for r in results)
    assert sum(report.model_programs.values()) == engine.num_programs
    assert report.peak_bytes > 10**7
    for left in plain:
        (right,) = (r for r in results if r.problem_id == left.problem_id)
        test_engine.same(left, right)


@pytest.mark.long
@pytest.mark.parametrize("cheap", [0, 10**18])
def test_utilisation_and_bytes_of_a_tiny_run_by_hand(monkeypatch, cheap):
    """Three rows of one problem, greedy and so alike, in four slots."""
    monkeypatch.setattr(sizes_module, "CHEAP", cheap)
    monkeypatch.setattr(sizes_module, "COMPILATION", 0.0)
    monkeypatch.setattr(sizes_module, "BLOCK", 4 if cheap == 0 else 1)
    policy, _ = tiny.models()
    models = {"encode": tiny.encode, "decode": tiny.decode, "max_rows": 4}
    engine = Engine(tiny.target(reward=NoReward()), policy, None, **models)
    problems = [Problem(0, tiny.ALPHABET[:6], "")]
    (result,) = engine.run(
        samplers.self_consistency(), KEY, problems, 3, extract=str, temperature=0.0
    )
    report = engine.report
    assert len(set(result.texts)) == 1
    assert report.useful == result.slots.generated_tokens.sum() > 0
    # Where fewer slots are worth a program of their own, three are computed.
    assert report.utilisation == (1.0 if cheap == 0 else 0.75)
    config = policy.config
    position = 2 * config.num_layers * config.num_kv_heads * config.head_width * 4
    block = 4 * position
    # The prompt is read but for its last token: one block of four positions, and one
    # that each row has copied, to write behind the fifth.
    own = sum(-(-(5 + n) // 4) - 1 for n in result.slots.generated_tokens)
    assert report.cache == CacheBytes(block, own * block, (3 + own) * block)


@pytest.mark.long
def test_a_recorder_reports_every_run_of_a_method():
    engine = test_engine.shared_engine(16)
    recorder = Recorder(engine)
    sampler = sampler_of("self_consistency", engine.target.max_steps)
    for problems in (test_engine.PROBLEMS[:2], test_engine.PROBLEMS[2:3]):
        recorder.run(sampler, KEY, problems, 4, extract=test_engine.extract)
    assert recorder.target is engine.target
    report = report_of_runs(recorder.reports)
    assert report.useful == sum(r.useful for r in recorder.reports)
    text = table_of(report)
    shares = [line for line in text.splitlines() if "%" in line]
    assert len(shares) == len(PARTS) + 1
    assert "row utilisation" in text


def test_a_recorder_keeps_the_report_of_a_stream():
    class Streaming:
        report = None

        def stream(self, *results, exact):
            yield from results
            self.report = exact

    recorder = Recorder(Streaming())
    assert list(recorder.stream(1, 2)) == [1, 2]
    assert recorder.reports == [True]


@pytest.mark.long
def test_the_command_prints_parts_that_sum_and_a_trace(capsys, tmp_path):
    arguments = ["--num-problems", "2", "--budget", "2", "--trace", str(tmp_path)]
    assert main(["profile", *arguments, "--max-rows", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("|") for line in lines if "%" in line]
    seconds = [float(row[2]) for row in rows]
    assert sum(seconds[:-1]) == pytest.approx(seconds[-1], abs=0.005 * len(rows))
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert main(["profile", "--method", "magic"]) == 2
    assert main(["profile", "--budget", "0"]) == 2
