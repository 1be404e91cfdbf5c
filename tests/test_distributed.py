"""Several processes divide the problems of a run, die, stop, and go on."""

import os
import signal
import socket
import sys
import threading
import time

import jax
import pytest
from fake_world import fake_world
from processes import Processes, ended, free_port, wait_for

from tsi.engine.interruption import StopEvent, deferred_interrupts
from tsi.errors import ConfigurationError, LostProcessError, ProcessError, Stopped
from tsi.experiments.append_only import AppendOnlyFile
from tsi.experiments.cli import main
from tsi.experiments.scaling import coordinator, process_group
from tsi.experiments.scaling.distributed import group_of, join_processes
from tsi.experiments.scaling.plan import make_plan
from tsi.experiments.scaling.process_group import ALONE, Group
from tsi.experiments.scaling.results import read_rows
from tsi.experiments.scaling.scale import run_plan
from tsi.experiments.scaling.write_report import FILES
from tsi.experiments.worlds.embedded_world import device_mesh
from tsi.models.partition import DATA, MODEL
from tsi.termination import terminable

PLAN = make_plan(["smc", "weighted_best_of_n"], [1, 2, 4], 2)


@pytest.fixture
def several():
    found = Processes()
    yield found
    found.close()


def rows_of(out):
    """Everything in the rows that is a function of the settings."""
    rows = read_rows(out / "rows.jsonl")
    return {cell: row | {"seconds": None} for cell, row in rows.items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    run_plan(PLAN, fake_world(12, rows=8), out / "rows.jsonl", progress=False)
    return rows_of(out)


def lines(path):
    """The number of rows in a shard."""
    return path.read_bytes().count(b'{"method"') if path.exists() else 0


@pytest.mark.parametrize("slurm", [False, True])
def test_two_processes_write_the_rows_of_one_and_one_report(
    several, tmp_path, expected, slurm
):
    codes, told = ended(several.fakes(tmp_path, 2, slurm=slurm))
    assert codes == [0, 0], told
    assert rows_of(tmp_path) == expected
    # All rows are brought together in the first shard.
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == sorted([*FILES, "rows.jsonl", "rows.particles.jsonl.gz"])


def test_every_problem_is_in_one_share():
    items = list(range(11))
    shares = [Group(i, 3).share(items) for i in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert ALONE.share(items) == items
    # A process may have none.
    assert Group(2, 3).share([1, 2]) == []


@pytest.mark.parametrize("count", [1, 3])
def test_killed_and_stopped_processes_go_on_with_another_number(
    several, tmp_path, expected, count
):
    # Long enough that the other run starts meanwhile, on a busy machine too.
    first, second = several.fakes(tmp_path, 2, sleep=4.0 if count == 1 else 0.5)
    shards = [tmp_path / "rows.jsonl", tmp_path / "rows-1.jsonl"]
    wait_for(lambda: all(lines(shard) for shard in shards))
    if count == 1:
        # Another run, without the flag, on the output of this one.
        ((code,), (told,)) = ended(several.fakes(tmp_path, 1))
        assert code == 2
        assert told.count("\n") == 1
        assert "rows.jsonl is being written by another run" in told
    second.send_signal(signal.SIGKILL)
    first.send_signal(signal.SIGTERM)
    codes, told = ended([first, second])
    assert codes == [75, -signal.SIGKILL], told
    assert told[0].endswith(
        "tsi: stopped by SIGTERM; what was written is kept, and the same command "
        "goes on from there.\n"
    )
    before = sum(map(lines, shards))
    assert 0 < before < len(expected)
    # What a kill left half-written does not count.
    with shards[1].open("ab") as file:
        file.write(b'{"method": "smc", "bud')
    codes, told = ended(several.fakes(tmp_path, count))
    assert codes == [0] * count, told
    assert rows_of(tmp_path) == expected
    assert lines(shards[0]) == len(expected)
    assert not shards[1].exists()


def test_when_one_is_asked_to_stop_all_stop(several, tmp_path):
    started = several.fakes(tmp_path, 2, sleep=0.5)
    shards = [tmp_path / "rows.jsonl", tmp_path / "rows-1.jsonl"]
    wait_for(lambda: all(lines(shard) for shard in shards))
    started[1].send_signal(signal.SIGTERM)
    codes, told = ended(started)
    assert codes == [75, 75], told
    # Neither of them has done its share.
    assert all(lines(shard) < 6 * 2 * 6 for shard in shards)


def test_the_death_of_the_first_process_loses_nothing_that_was_written(
    several, tmp_path
):
    started = several.fakes(tmp_path, 2, sleep=0.5)
    shards = [tmp_path / "rows.jsonl", tmp_path / "rows-1.jsonl"]
    wait_for(lambda: all(lines(shard) for shard in shards))
    before = [shard.read_bytes() for shard in shards]
    started[0].send_signal(signal.SIGKILL)
    codes, told = ended(started)
    # JAX ends a process whose coordination service is gone.
    assert codes == [-signal.SIGKILL, -signal.SIGABRT], told
    for shard, content in zip(shards, before, strict=True):
        assert shard.read_bytes().startswith(content)


def test_a_process_that_dies_is_missed_when_the_others_have_done_their_share(
    several, tmp_path
):
    started = several.fakes(tmp_path, 3, sleep=[0.0, 600.0, 0.8], patience=4.0)
    share = 4 * 2 * 6
    wait_for((tmp_path / "rows-1.jsonl").exists)
    wait_for(lambda: lines(tmp_path / "rows.jsonl") == share)
    started[1].send_signal(signal.SIGKILL)
    codes, told = ended(started)
    assert codes == [75, -signal.SIGKILL, 75], told
    assert "tsi: Process 1 gave no sign of life for 4 s. What was written is" in told[0]
    # The first has waited for the third, which had most of its share to do.
    assert lines(tmp_path / "rows.jsonl") == share
    assert lines(tmp_path / "rows-2.jsonl") == share


def test_processes_that_disagree_are_refused_before_work(several, tmp_path):
    settings = [{"task": "fake", "temperature": t} for t in (1.0, 0.5)]
    started = several.fakes(
        tmp_path, 2, settings=settings, methods=[["smc"], ["smc", "beam_search"]]
    )
    codes, told = ended(started)
    assert codes == [2, 2], told
    for text in told:
        assert (
            "tsi: Process 1 was started with other arguments than process 0 (methods, "
            "temperature). Start all processes with the same command" in text
        )
    assert lines(tmp_path / "rows.jsonl") == 0


def test_the_failure_of_the_first_process_ends_the_others(several, tmp_path):
    with AppendOnlyFile(tmp_path / "rows.jsonl"):
        codes, told = ended(several.fakes(tmp_path, 2))
    assert codes == [2, 2], told
    assert "rows.jsonl is being written by another run" in told[0]
    assert "tsi: Process 0 has failed: " in told[1]
    assert "rows.jsonl is being written by another run" in told[1]


def test_two_processes_with_two_devices_each_compute_the_rows_of_one(
    several, tmp_path, capfd
):
    command = ["scale", "--methods", "smc", "--budgets", "2", "--num-problems", "4"]
    command.append("--no-progress")
    program = "import sys; from tsi.experiments.cli import main; sys.exit(main())"
    devices = "--xla_force_host_platform_device_count=2"
    parts = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}"]
    parts += ["--num-processes", "2", "--out", str(tmp_path / "two"), "--process-id"]
    started = [
        several.start(
            [sys.executable, "-c", program, *command, *parts, str(index)],
            XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {devices}",
        )
        for index in range(2)
    ]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    codes, told = ended(started)
    assert codes == [0, 0], told
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for cell, row in one.items():
        for name, value in row.items():
            other = two[cell][name]
            if isinstance(value, float):
                # A batch of another shape may sum in another order.
                assert other == pytest.approx(value, rel=1e-4, abs=1e-6), name
            elif name != "settings":
                assert other == value, name


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


def test_a_signal_to_all_is_no_second_signal_to_the_slower(pair):
    first, second = pair
    stop = StopEvent()
    with terminable(), deferred_interrupts(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        second.leave(Stopped(signal.SIGTERM))
        # Many looks of the first at the others; nothing is raised.
        time.sleep(0.3)
        first.leave()


def test_a_process_that_stops_with_another_still_gives_signs_of_life(pair):
    first, second = pair
    stop = StopEvent()
    with terminable(), deferred_interrupts(stop):
        second.leave(Stopped(signal.SIGTERM))
        assert stop.wait(10)
        before = first._store.texts["tsi/0/beat/0"]
        wait_for(lambda: first._store.texts["tsi/0/beat/0"] != before)
        # That of the scheduler, a little later.
        os.kill(os.getpid(), signal.SIGTERM)
        first.leave()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((False, "host:1", None, None), "need --distributed"),
        ((True, "host:1", 2, None), "one of the three is missing"),
        ((True, "host", 2, 0), "is not HOST:PORT"),
        ((True, ":80", 2, 0), "is not HOST:PORT"),
        ((True, "host:²", 2, 0), "is not HOST:PORT"),
        ((True, "host:99999", 2, 0), "has no valid port: ports are 1 to 65535"),
        ((True, "host:99999", 2, 1), "has no valid port"),
        ((True, "host:0", 2, 1), "has no valid port"),
        ((True, "host:80", 0, 0), "cannot be 0 processes"),
        ((True, "host:80", 2, 7), "7 is not an index of 2 processes: indices are 0"),
        ((True, "host:80", 2, 2), "2 is not an index of 2 processes"),
        ((True, "host:80", 2, -1), "-1 is not an index of 2 processes"),
        ((True, None, None, None), "No cluster was detected"),
    ],
)
def test_addresses_that_cannot_be_used_are_a_sentence(arguments, sentence, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(ConfigurationError, match=sentence), group_of(*arguments):
        pass


def test_processes_that_cannot_be_joined_are_a_sentence(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nlong report")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(coordinator, "JOIN_TIMEOUT", 0.3)
    sentence = r"joined: DEADLINE_EXCEEDED: Barrier timed out\. Check that process 0"
    with (
        pytest.raises(ConfigurationError, match=sentence),
        join_processes(f"10.0.0.1:{free_port()}", 2, 0),
    ):
        pass
    with (
        pytest.raises(ConfigurationError, match="Process 0 did not answer at 127"),
        join_processes(f"127.0.0.1:{free_port()}", 2, 1),
    ):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_of_another_program_is_a_sentence_at_process_0(monkeypatch, host):
    def crash(*_, **__):
        pytest.fail("JAX would have ended the program.")

    monkeypatch.setattr(jax.distributed, "initialize", crash)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        sentence = rf"cannot listen at port {port} of its host \(Address already in use"
        with (
            pytest.raises(ConfigurationError, match=sentence),
            join_processes(f"127.0.0.1:{port}", 2, 0),
        ):
            pass
        monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", f"{host}:{port}")
        with pytest.raises(ConfigurationError, match=sentence):
            coordinator.check_free(f"127.0.0.1:{free_port()}")
    # Given back, it can be listened at.
    coordinator.check_free(f"127.0.0.1:{port}")


def test_a_mesh_is_of_the_devices_of_this_process(monkeypatch):
    here = jax.devices()
    there = [object()] * 2
    monkeypatch.setattr(jax, "devices", lambda *_: [*there, *here])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    mesh = device_mesh()
    if len(here) > 1:
        assert mesh.shape == {DATA: len(here), MODEL: 1}
    else:
        assert mesh is None
    with pytest.raises(ConfigurationError, match="over the devices of several proc"):
        device_mesh(len(here) + 1)
