"""A group within one process: who is waited for, and who is told why."""

import os
import signal
import threading
import time

import pytest
from fake_world import fake_world
from processes import wait_for

from tsi.engine.interruption import StopEvent, defer_interrupts
from tsi.errors import ConfigurationError, LostProcessError, ProcessError, Stopped
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.processes import process_group
from tsi.experiments.processes.process_group import Group
from tsi.experiments.scaling.scale import run_plan
from tsi.models.exchange import waiting
from tsi.termination import raise_on_sigterm


class FakeStore:
    """A store within one process."""

    def __init__(self):
        self.texts = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.texts
        self.texts[key] = value

    def key_value_dir_get(self, key):
        return [(name, x) for name, x in self.texts.items() if name.startswith(key)]


@pytest.fixture
def quick(monkeypatch):
    def late(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    terminated = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(60)
    monkeypatch.setattr(process_group, "BEAT_INTERVAL", 0.01)
    monkeypatch.setattr(process_group, "POLL_INTERVAL", 0.01)
    monkeypatch.setattr(process_group, "EXIT_TIMEOUT", 0.2)
    # Signals of earlier tests are no requests to stop.
    with raise_on_sigterm():
        pass
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    signal.signal(signal.SIGTERM, terminated)


@pytest.fixture
def pair(quick):
    store = FakeStore()
    groups = [Group(i, 2, store, beat_timeout=5.0) for i in range(2)]
    yield groups
    for group in groups:
        group.leave()


def test_texts_are_gathered_in_order_once_all_are_there(pair):
    first, second = pair
    found = []
    late = threading.Thread(target=lambda: found.append(second.gather("a", "two")))
    late.start()
    assert first.gather("a", "one") == ["one", "two"]
    late.join(10)
    assert found == [["one", "two"]]


def test_whoever_waits_for_a_process_that_failed_is_told_why(pair):
    first, second = pair
    second.leave(ConfigurationError("Rows are blue."))
    with pytest.raises(ProcessError, match="Process 1 has failed: Rows are blue"):
        first.gather("a")


def test_whoever_waits_for_a_process_that_was_stopped_stops(pair, monkeypatch):
    first, second = pair
    monkeypatch.setattr(first, "_stop_main", lambda: None)
    second.leave(Stopped(signal.SIGTERM))
    with pytest.raises(Stopped):
        first.gather("a")


def test_whoever_waits_for_a_process_that_died_is_told_so(quick):
    alone = Group(0, 2, FakeStore(), beat_timeout=0.1)
    with pytest.raises(LostProcessError, match="Process 1 gave no sign of life"):
        alone.gather("a")
    # And it does not wait long for the dead to end.
    alone.leave()


@pytest.fixture
def three(quick):
    store = FakeStore()
    groups = [Group(i, 3, store, beat_timeout=5.0) for i in range(3)]
    yield groups
    for group in groups:
        group.leave()


def in_thread(work):
    """Start it; what it returns or raises comes to lie in the list."""
    found = []

    def run():
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def test_those_that_work_are_waited_for_when_another_has_failed(three, monkeypatch):
    first, second, third = three
    signals = []
    monkeypatch.setattr(third, "_stop_main", lambda: signals.append(third))
    second.leave(OSError("The disk is full."))
    waiting, found = in_thread(lambda: first.gather("rows", "one"))
    # Many looks at the store.
    waiting.join(0.3)
    assert found == []
    with pytest.raises(ProcessError, match="Process 1 has failed: The disk is full"):
        third.gather("rows", "three")
    assert signals == []
    waiting.join(10)
    assert str(found[0]) == "Process 1 has failed: The disk is full."


def test_those_that_work_are_waited_for_when_another_has_died(quick):
    store = FakeStore()
    first, third = (Group(i, 3, store, beat_timeout=5.0) for i in (0, 2))
    for group in (first, third):
        group._last_heard[1] -= 100
    waiting, found = in_thread(lambda: first.gather("rows"))
    waiting.join(0.3)
    assert found == []
    with pytest.raises(LostProcessError, match="Process 1 gave no sign of life"):
        third.gather("rows")
    waiting.join(10)
    assert isinstance(found[0], LostProcessError)
    first.leave(found[0])
    # Whoever notices the end of process 0 first may go on as well.
    wait_for(lambda: third._first_failure is not None)
    assert isinstance(third.reason(Stopped(signal.SIGTERM)), LostProcessError)
    third.leave()


def test_the_failure_of_the_first_is_told_while_others_work(three, monkeypatch):
    first, second, third = three
    monkeypatch.setattr(second, "_stop_main", lambda: None)
    monkeypatch.setattr(third, "_stop_main", lambda: None)
    first.leave(ConfigurationError("Rows are blue."))
    with pytest.raises(ProcessError, match="Process 0 has failed: Rows are blue"):
        second.gather("rows")


@pytest.mark.parametrize("looks", range(1, 6))
def test_a_process_that_ends_between_two_looks_has_not_failed(quick, looks):
    class Interleaved(FakeStore):
        """Process 0 gives its text and ends between two looks of process 1."""

        left = 0

        def key_value_dir_get(self, key):
            found = super().key_value_dir_get(key)
            if threading.current_thread() is threading.main_thread():
                self.left -= 1
                if self.left == 0:
                    first.leave_at_once("one")
            return found

    class First(Group):
        def leave_at_once(self, text):
            self._set(f"{name}/0/0", text)
            self.leave()

    store = Interleaved()
    first, second = First(0, 2, store), Group(1, 2, store)
    name = "report"
    store.left = looks
    assert second.gather(name, "two") == ["one", "two"]
    second.leave()


def test_a_process_that_ends_well_without_its_text_is_named(pair):
    first, second = pair
    second.leave()
    with pytest.raises(ProcessError, match="Process 1 has ended before its 'a'"):
        first.gather("a")


def test_a_name_that_is_used_again_gathers_what_is_given_then(pair):
    first, second = pair
    for facts, text in (({"n": 1}, "one"), ({"n": 2}, "two")):
        ahead, found = in_thread(lambda f=facts, t=text: (first.agree(f), t))
        # Process 1 is late.
        ahead.join(0.1)
        assert found == []
        second.agree(facts)
        ahead.join(10)
        assert found == [(None, text)]
        ahead, found = in_thread(lambda t=text: first.gather("rows", t))
        assert second.gather("rows", text) == [text] * 2
        ahead.join(10)
        assert found == [[text] * 2]


def test_a_store_that_outlives_a_group_tells_the_next_nothing_of_it(quick):
    store = FakeStore()
    for text in ("one", "two"):
        first, second = (Group(i, 2, store) for i in range(2))
        ahead, found = in_thread(lambda group=first, t=text: group.gather("a", t))
        ahead.join(0.1)
        assert found == []
        assert second.gather("a", text) == [text] * 2
        ahead.join(10)
        assert found == [[text] * 2]
        # The watch of the second finds no end of an earlier first.
        assert not second._is_over(second._read_ends())
        first.leave(ConfigurationError("Rows are blue."))
        second.leave()


def test_one_group_runs_two_plans_in_turn(pair, tmp_path):
    first, second = pair
    plans = [make_plan(["smc"], [budget], 1) for budget in (2, 4)]

    def run(group, i):
        world, path = fake_world(5, rows=8), tmp_path / f"{i}.jsonl"
        return run_plan(plans[i], world, path, progress=False, group=group)

    ahead, found = in_thread(lambda: [len(run(first, i)) for i in range(2)])
    run(second, 0)
    # Process 0 has begun the next plan, or nearly.
    ahead.join(0.3)
    run(second, 1)
    ahead.join(10)
    assert found == [[5, 5]]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("keep", [{"keep": "all"}, {"keep": "none"}]),
        ("continue_anyway", [{}, {"continue_anyway": True}]),
    ],
)
def test_processes_that_write_differently_are_refused(pair, tmp_path, name, settings):
    plan = make_plan(["smc"], [2], 1)

    def run(group):
        own_settings = settings[group.index]
        path = tmp_path / "rows.jsonl"
        run_plan(plan, fake_world(4), path, progress=False, group=group, **own_settings)

    first, second = pair
    ahead, found = in_thread(lambda: run(first))
    with pytest.raises(ConfigurationError, match=rf"process 0 \({name}\)"):
        run(second)
    ahead.join(10)
    assert name in str(found[0])


def test_a_signal_to_all_is_no_second_signal_to_the_slower(pair):
    first, second = pair
    stop = StopEvent()
    with raise_on_sigterm(), defer_interrupts(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        second.leave(Stopped(signal.SIGTERM))
        # Many looks of the first at the others; nothing is raised.
        time.sleep(0.3)
        first.leave()


def test_a_process_that_stops_with_another_still_gives_signs_of_life(pair):
    first, second = pair
    stop = StopEvent()
    with raise_on_sigterm(), defer_interrupts(stop):
        second.leave(Stopped(signal.SIGTERM))
        # No `stop.wait`: it may begin just after the signal, and then sleeps on.
        wait_for(stop.is_set)
        before = first._store.texts["tsi/0/beat/0"]
        wait_for(lambda: first._store.texts["tsi/0/beat/0"] != before)
        # That of the scheduler, a little later.
        os.kill(os.getpid(), signal.SIGTERM)
        first.leave()


@pytest.fixture
def exits(monkeypatch):
    """The partners for which a process of a model would have ended at once."""
    found = []
    monkeypatch.setattr(process_group, "_exit_without", found.append)
    monkeypatch.setattr(process_group, "PARTNER_TIMEOUT", 0.1)
    monkeypatch.setattr(Group, "_stop_main", lambda self: None)
    return found


@pytest.mark.parametrize("ends", ["fails", "is silent"])
def test_a_process_ends_that_waits_for_a_lost_partner(quick, exits, ends):
    store = FakeStore()
    first = Group(0, 2, store, beat_timeout=0.1 if ends == "is silent" else 5.0)
    first.hold_together(2)
    if ends == "fails":
        Group(1, 2, store).leave(OSError("the disk is full"))
    # It may still write what it has.
    time.sleep(0.4)
    assert not exits
    with waiting():
        wait_for(lambda: exits)
    assert set(exits) == {1}
    first.leave()


def test_a_process_does_not_end_with_one_of_another_model(quick, exits):
    store = FakeStore()
    first = Group(0, 4, store, beat_timeout=5.0)
    first.hold_together(2)
    Group(2, 4, store).leave(OSError("the disk is full"))
    with waiting():
        time.sleep(0.4)
    assert not exits
    first.leave()


def test_a_failed_partner_explains_why_a_process_has_lost_it(quick):
    store, lost = FakeStore(), LostProcessError("It is gone.")
    first = Group(0, 2, store, beat_timeout=5.0)
    first.hold_together(2)
    Group(1, 2, store).leave(OSError("the disk is full"))
    reason = first.reason(lost)
    assert not isinstance(reason, LostProcessError)
    assert str(reason) == "Process 1 has failed: the disk is full."
    alone = Group(0, 2, FakeStore(), beat_timeout=5.0)
    assert alone.reason(lost) is lost
    for group in (first, alone):
        group.leave()
