"""What processes of one model agree on, with the exchange of numbers replaced."""

import os
import signal
import time

import pytest

from tsi.engine import agreement, concurrency
from tsi.engine.agreement import SharedStop, stop_together
from tsi.engine.interruption import StopEvent
from tsi.errors import ProcessError, Stopped
from tsi.models.partition import make_mesh
from tsi.termination import is_stop_requested, raise_on_sigterm


@pytest.fixture
def mesh(monkeypatch):
    """A mesh that counts as one of several processes; the others do nothing."""
    for module in (agreement, concurrency):
        monkeypatch.setattr(module, "spans_processes", lambda mesh: True)
    monkeypatch.setattr(agreement, "largest", lambda mesh, *values: list(values))
    return make_mesh(1, 1)


def test_a_process_stops_with_another_and_tells_it_of_its_own_signal(mesh, monkeypatch):
    asked = []

    def largest(mesh, *values):
        asked.append(values)
        return [signal.SIGTERM, *values[1:]]

    monkeypatch.setattr(agreement, "largest", largest)
    stop = StopEvent()
    shared = SharedStop(stop, mesh, lambda: 7)
    with raise_on_sigterm():
        assert shared.is_set()
        # The signal of a scheduler to this process is no second one.
        assert is_stop_requested()
    assert stop.is_set()
    assert stop.number == signal.SIGTERM
    assert shared.is_set()
    assert asked == [(0, 7, -7), (signal.SIGTERM, 7, -7)]


def test_processes_that_decide_differently_are_found(mesh, monkeypatch):
    monkeypatch.setattr(agreement, "largest", lambda mesh, *values: [0, 9, -7])
    with pytest.raises(ProcessError, match="have made different decisions"):
        SharedStop(StopEvent(), mesh, lambda: 7).is_set()


def interrupt():
    """Ctrl-C, which must not be raised here."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
    except KeyboardInterrupt:
        pytest.fail("a signal was raised outside of the loop")


def test_a_signal_between_two_results_is_held_until_the_next_is_asked_for(mesh):
    def endless(stop):
        while not stop.is_set():
            yield 1

    stream = concurrency.run_concurrently([endless], mesh)
    next(stream)
    interrupt()
    with pytest.raises(Stopped):
        list(stream)


def run_batches(mesh, at):
    """Two batches, with a signal before the second or after it; those that ran."""
    ran = []
    with stop_together(mesh) as check:
        for batch in range(2):
            if batch == at:
                interrupt()
            check()
            ran.append(batch)
        if at == 2:
            interrupt()
    return ran


@pytest.mark.parametrize("at", [1, 2])
def test_a_signal_between_two_batches_or_after_the_last_is_not_lost(mesh, at):
    assert run_batches(mesh, None) == [0, 1]
    with pytest.raises(Stopped):
        run_batches(mesh, at)
