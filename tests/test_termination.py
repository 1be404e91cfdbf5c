"""SIGTERM stops between two steps, keeps what has ended, and asks for a requeue."""

import os
import signal
import time

import jax
import pytest
from fake_world import FakeEngine, fake_world
from processes import Processes, ended, wait_for
from test_engine import PROBLEMS, SAMPLER, extract, same, shared_engine

from tsi.engine.interruption import StopEvent, defer_interrupts, delay_signals
from tsi.errors import ProblemError, Stopped
from tsi.experiments import cli
from tsi.experiments.command import exit_code, exit_resumably
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.rows.results import read_rows
from tsi.experiments.scaling.scale import run_plan
from tsi.termination import is_stop_requested, raise_on_sigterm, stop_with_group

KEY = jax.random.key(7)


@pytest.fixture
def no_handler():
    """Whatever the process that started this one has set."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_is_a_sentence_and_asks_for_a_requeue(no_handler, capsys):
    def command():
        terminate()
        time.sleep(60)

    assert exit_code(exit_resumably()(command)) == os.EX_TEMPFAIL == 75
    assert capsys.readouterr().err == (
        "tsi: stopped by SIGTERM; what was written is kept, and the same command goes "
        "on from there.\n"
    )
    # Nothing is kept where nothing was written.
    assert exit_code(command) == 75
    assert capsys.readouterr().err == (
        "tsi: stopped by SIGTERM; the same command starts again from the beginning.\n"
    )
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        (["scale"], True),
        (["scale", "--dry-run"], False),
        (["solve", "1+1+1+1"], False),
        (["profile"], False),
    ],
)
def test_a_command_says_whether_it_goes_on_or_begins_anew(
    command, goes_on, no_handler, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        "tsi.experiments.worlds.embedded_world.embedded_world",
        lambda *_, **__: terminate(),
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 75
    told = capsys.readouterr().err
    assert ("goes on from there" in told) == goes_on
    assert ("starts again" in told) != goes_on


def test_a_handler_of_the_users_stays(no_handler):
    got = []
    signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    assert exit_code(terminate) == 0
    assert got == [signal.SIGTERM]


@pytest.mark.parametrize("signalled_first", [False, True])
def test_a_signal_and_the_stop_of_the_group_are_one_request(
    no_handler, signalled_first
):
    stop = StopEvent()
    with raise_on_sigterm(), defer_interrupts(stop):
        for ask in (terminate, stop_with_group)[:: 1 if signalled_first else -1]:
            ask()
            assert stop.is_set()
        with pytest.raises(Stopped):
            terminate()
    # It is forgotten when all is over.
    with raise_on_sigterm(), pytest.raises(Stopped):
        terminate()


def test_a_signal_after_the_stop_of_the_group_interrupts_no_farewell(no_handler):
    with raise_on_sigterm():
        with pytest.raises(Stopped):
            stop_with_group()
        terminate()
        stop_with_group()
        with pytest.raises(Stopped):
            terminate()


def test_a_signal_and_the_stop_of_the_group_cut_no_rows_short(no_handler):
    written = []

    def write():
        with delay_signals():
            terminate()
            stop_with_group()
            written.append("all")

    with raise_on_sigterm(), pytest.raises(Stopped):
        write()
    assert written == ["all"]


def test_without_a_handler_the_stop_of_the_group_does_nothing(no_handler):
    stop_with_group()


def test_the_engine_stops_between_two_looks_and_hands_over_what_has_ended(no_handler):
    runner = shared_engine(16)
    results = runner.run(SAMPLER, KEY, PROBLEMS, 8, extract=extract)
    told = []

    def press(progress):
        told.append(progress)
        if progress.ended and signal.getsignal(signal.SIGTERM):
            terminate()
            # Here, inside of the engine, nothing is raised.
            told.append("went on")

    with raise_on_sigterm(), pytest.raises(Stopped) as caught:
        runner.run(SAMPLER, KEY, PROBLEMS, 8, extract=extract, progress=press)
    assert caught.value.number == signal.SIGTERM
    assert told.count("went on") == 1
    kept = caught.value.results
    assert 1 <= len(kept) < len(PROBLEMS)
    by_id = {result.problem_id: result for result in results}
    for result in kept:
        same(result, by_id[result.problem_id])


class Stopping(FakeEngine):
    """An engine that a signal stops at its third call, with half of its results."""

    def run(self, *arguments, **settings):
        results = super().run(*arguments, **settings)
        if len(self.calls) < 3:
            return results
        error = Stopped(signal.SIGTERM)
        error.results = tuple(results[: len(results) // 2])
        raise error


@pytest.mark.parametrize("method", ["smc", "self_consistency"])
def test_rows_of_problems_that_had_ended_are_kept_and_not_computed_again(
    tmp_path, method
):
    plan, path = make_plan([method], [4], 2), tmp_path / "rows.jsonl"
    expected = run_plan(
        plan, fake_world(8, rows=16), tmp_path / "whole", progress=False
    )
    world = fake_world(8, rows=16)._replace(engine=Stopping(rows=16))
    with pytest.raises(Stopped):
        run_plan(plan, world, path, progress=False)
    # Twice four problems that ran together, and half of the next four.
    assert len(read_rows(path)) == 10
    resumed = fake_world(8, rows=16)
    rows = run_plan(plan, resumed, path, progress=False)
    seconds = {"seconds": None}
    assert {cell: row | seconds for cell, row in rows.items()} == {
        cell: row | seconds for cell, row in expected.items()
    }
    assert [len(call[3]) for call in resumed.engine.calls] == [4, 2]


def test_rows_that_are_being_written_when_a_signal_comes_are_kept(
    no_handler, tmp_path, monkeypatch
):
    sent = []

    def fsync(descriptor):
        # Once: a second signal interrupts at once.
        if not sent:
            sent.append(descriptor)
            terminate()

    monkeypatch.setattr(os, "fsync", fsync)
    plan, path = make_plan(["smc"], [4], 1), tmp_path / "rows.jsonl"
    with raise_on_sigterm(), pytest.raises(Stopped):
        # The engine works on the second batch meanwhile.
        run_plan(plan, fake_world(8, sleep=2.0, rows=16), path, progress=False)
    assert len(read_rows(path)) == 4


def test_a_signal_to_an_earlier_run_is_no_request_to_stop_a_later_one():
    with raise_on_sigterm(), pytest.raises(Stopped):
        terminate()
    assert not is_stop_requested()


def test_a_round_that_was_cut_short_is_no_result(tmp_path):
    class Cut(FakeEngine):
        def run(self, *arguments, **settings):
            error = Stopped(signal.SIGTERM)
            error.results = tuple(super().run(*arguments, **settings))
            raise error

    world, path = fake_world(4, rows=16), tmp_path / "rows.jsonl"
    world = world._replace(engine=Cut(rows=16))
    plan = make_plan(["adaptive_consistency"], [8], 1)
    with pytest.raises(Stopped):
        run_plan(plan, world, path, progress=False)
    assert not path.read_bytes()


def test_problems_that_fail_in_rounds_leave_the_rows_of_the_others(tmp_path):
    class Engine(FakeEngine):
        def run(self, sampler, key, problems, *arguments, **settings):
            good = [problem for problem in problems if problem.id != 2]
            results = super().run(sampler, key, good, *arguments, **settings)
            if len(good) == len(problems):
                return results
            error = ProblemError({2: ValueError("broken")})
            error.results = tuple(results)
            raise error

    world = fake_world(4, rows=16)._replace(engine=Engine(rows=16))
    plan, path = make_plan(["adaptive_consistency"], [8], 1), tmp_path / "rows.jsonl"
    with pytest.raises(ProblemError, match="broken"):
        run_plan(plan, world, path, progress=False)
    assert sorted(cell.problem for cell in read_rows(path)) == [0, 1, 3]


@pytest.fixture
def several():
    found = Processes()
    yield found
    found.close()


@pytest.mark.long
def test_a_run_that_sigterm_stops_is_finished_by_the_same_command(several, tmp_path):
    (process,) = several.fakes(tmp_path / "cut", 1, sleep=0.2)
    path = tmp_path / "cut" / "rows.jsonl"
    wait_for(lambda: path.exists() and path.stat().st_size)
    process.send_signal(signal.SIGTERM)
    assert ended([process])[0] == [75]
    before = path.read_bytes()
    assert before.endswith(b"\n")
    (process,) = several.fakes(tmp_path / "cut", 1)
    (whole,) = several.fakes(tmp_path / "whole", 1)
    assert ended([process, whole])[0] == [0, 0]
    rows = [read_rows(tmp_path / name / "rows.jsonl") for name in ("cut", "whole")]
    assert path.read_bytes().startswith(before)
    assert len(before.splitlines()) < len(rows[0])
    assert rows[0].keys() == rows[1].keys()
    for cell, row in rows[0].items():
        assert row | {"seconds": None} == rows[1][cell] | {"seconds": None}
