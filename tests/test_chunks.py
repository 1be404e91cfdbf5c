"""Rows are written while a batch runs, and none is lost when it is interrupted."""

import re
import signal
import threading

import pytest
from fake_world import FakeEngine, fake_world

from tsi.errors import ProblemError, Stopped
from tsi.experiments.plans.plan import batches, make_plan
from tsi.experiments.rows.results import read_rows
from tsi.experiments.rows.row_writer import RowWriter
from tsi.experiments.scaling import chunks
from tsi.experiments.scaling.progress import Progress
from tsi.experiments.scaling.scale import run_plan
from tsi.results.result import Result

PLAN = make_plan(["smc"], [4], 1)


class Watched(FakeEngine):
    """Calls a function before each result; problems may fail."""

    def __init__(self, watch, **settings):
        super().__init__(**settings)
        self.watch = watch

    def stream(self, sampler, key, problems, num_particles, *, progress, **settings):
        for place, problem in enumerate(problems):
            self.watch(place, progress)
            yield from self.run(sampler, key, [problem], num_particles, **settings)


def rows_at_each_result(path, monkeypatch, *, seconds, rows):
    """Number of rows in the file before each of six results, with a running clock."""
    found, now = [], [0.0]
    monkeypatch.setattr(chunks, "MAX_WAIT", seconds)
    monkeypatch.setattr(chunks.time, "monotonic", lambda: now[0])

    def watch(place, progress):
        now[0] += 1.0
        progress(None)
        background = WRITERS[-1]
        if background._pending is not None:
            background._pending.result()
        found.append(len(read_rows(path)) if background._pending is not None else 0)

    world = fake_world(6, rows=rows)._replace(engine=Watched(watch, rows=rows))
    run_plan(PLAN, world, path, progress=False)
    return found


WRITERS = []
IS_IDLE = chunks.BackgroundWriter.is_idle


@pytest.fixture(autouse=True)
def writers(monkeypatch):
    """The writers of the test's runs."""
    real = chunks.BackgroundWriter.__enter__

    def enter(writer):
        WRITERS.append(writer)
        return real(writer)

    monkeypatch.setattr(chunks.BackgroundWriter, "__enter__", enter)
    # Otherwise the sizes of chunks depend on the speed of the writer.
    monkeypatch.setattr(chunks.BackgroundWriter, "is_idle", True)
    yield
    WRITERS.clear()


def test_a_batch_has_all_problems_and_is_written_in_parts(tmp_path, monkeypatch):
    world = fake_world(6, rows=8)
    (batch,) = batches(PLAN, world)
    assert (len(batch.problems), batch.at_once) == (6, 2)
    path = tmp_path / "rows.jsonl"
    found = rows_at_each_result(path, monkeypatch, seconds=1e9, rows=8)
    assert found == [0, 0, 2, 2, 4, 4]
    assert len(read_rows(path)) == 6


def test_no_result_waits_for_long(tmp_path, monkeypatch):
    # Eight problems would run at once, but a result waits for less than two seconds.
    path = tmp_path / "rows.jsonl"
    found = rows_at_each_result(path, monkeypatch, seconds=1.5, rows=32)
    assert found == [0, 0, 2, 2, 4, 4]


def test_a_method_in_rounds_has_batches_of_what_runs_at_once():
    plan = make_plan(["adaptive_smc"], [16], 1)
    found = list(batches(plan, fake_world(10, rows=16)))
    assert len(found) > 1
    assert sum(len(batch.problems) for batch in found) == 10
    assert max(len(batch.problems) for batch in found) <= found[0].at_once


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(15), RuntimeError()])
def test_results_before_an_interruption_are_written(tmp_path, error):
    path = tmp_path / "rows.jsonl"

    def watch(place, progress):
        if place == 4:
            raise error

    world = fake_world(6, rows=400)._replace(engine=Watched(watch, rows=400))
    with pytest.raises(type(error)):
        run_plan(PLAN, world, path, progress=False)
    assert len(read_rows(path)) == 4
    rows = run_plan(PLAN, fake_world(6, rows=400), path, progress=False)
    whole = run_plan(
        PLAN, fake_world(6, rows=400), tmp_path / "whole.jsonl", progress=False
    )
    assert {cell: row["selected"] for cell, row in rows.items()} == {
        cell: row["selected"] for cell, row in whole.items()
    }


def test_the_rows_of_other_problems_are_written_when_some_fail(tmp_path):
    path = tmp_path / "rows.jsonl"

    class Failing(Watched):
        def stream(self, *arguments, **settings):
            yield from super().stream(*arguments, **settings)
            raise ProblemError({7: ValueError("no")})

    world = fake_world(6)._replace(engine=Failing(lambda *_: None))
    with pytest.raises(ProblemError, match="1 problem failed"):
        run_plan(make_plan(["smc"], [2, 4], 1), world, path, progress=False)
    assert len(read_rows(path)) == 12


def test_problems_of_a_chunk_share_its_seconds_equally(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "MAX_WAIT", 1e9)
    real, given = FakeEngine.run, []

    def run(engine, sampler, key, problems, num_particles, **settings):
        results = real(engine, sampler, key, problems, num_particles, **settings)
        for result in results:
            given.append(1.0 + len(given))
            yield result.with_seconds(given[-1])

    monkeypatch.setattr(FakeEngine, "run", run)
    path = tmp_path / "rows.jsonl"
    run_plan(PLAN, fake_world(6, rows=8), path, progress=False)
    found = sorted(row["seconds"] for row in read_rows(path).values())
    assert found == [1.5, 1.5, 3.5, 3.5, 5.5, 5.5]


def test_a_signal_while_results_are_handed_over_loses_none(tmp_path, monkeypatch):
    real, sent = Result.with_seconds, []

    def with_seconds(result, seconds):
        if not sent:
            sent.append(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return real(result, seconds)

    monkeypatch.setattr(Result, "with_seconds", with_seconds)
    path = tmp_path / "rows.jsonl"
    with pytest.raises(Stopped):
        run_plan(PLAN, fake_world(6, rows=8), path, progress=False)
    assert len(read_rows(path)) == 2


def test_a_slow_writer_does_not_hold_up_the_engine_at_once(tmp_path, monkeypatch):
    writing, sizes = threading.Event(), []
    real = RowWriter.write

    def write(writer, batch, results, missing):
        sizes.append(len(results))
        writing.wait(60)
        real(writer, batch, results, missing)

    monkeypatch.setattr(RowWriter, "write", write)
    monkeypatch.setattr(chunks.BackgroundWriter, "is_idle", IS_IDLE)

    def watch(place, progress):
        # The first chunk of two is being written until seven more have ended.
        if place == 9:
            writing.set()

    world = fake_world(12, rows=8)._replace(engine=Watched(watch, rows=8))
    path = tmp_path / "rows.jsonl"
    run_plan(PLAN, world, path, progress=False)
    assert sizes[0] == 2
    assert sizes[1] > 2
    assert len(read_rows(path)) == 12


def test_problems_with_rows_are_no_work_of_a_resumed_run(tmp_path, capsys, monkeypatch):
    begun = []
    begin = Progress.begin

    def watch_begin(bar, batch, num_missing):
        begin(bar, batch, num_missing)
        begun.append((num_missing, bar._bar.n, getattr(bar._bar, "initial", None)))

    monkeypatch.setattr(Progress, "begin", watch_begin)
    path = tmp_path / "rows.jsonl"

    def watch(place, progress):
        if place == 40:
            raise Stopped(15)

    world = fake_world(50, rows=4)._replace(engine=Watched(watch, rows=4))
    with pytest.raises(Stopped):
        run_plan(PLAN, world, path, progress=False)
    capsys.readouterr()
    run_plan(PLAN, fake_world(50, rows=4), path)
    shown = capsys.readouterr().err
    assert begun[1:] == [(10, 160, 160)]
    (measured,) = re.findall("measured on .*", shown)
    assert "first 8 rollouts" in measured
    assert "50/50 cells" in shown
