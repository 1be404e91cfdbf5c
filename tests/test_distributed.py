"""Several processes divide the problems of a run, die, stop, and go on."""

import os
import signal
import sys

import pytest
from fake_world import fake_world
from processes import Processes, ended, free_port, wait_for

from tsi.experiments.cli import main
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.processes.process_group import ALONE, Group
from tsi.experiments.reports.write_report import FILES
from tsi.experiments.rows.results import read_rows
from tsi.experiments.scaling.scale import run_plan

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


@pytest.mark.long
def test_two_processes_write_the_rows_of_one_and_one_report(
    several, tmp_path, expected
):
    # Joined by what Slurm tells them, and in the tests below by an address.
    codes, told = ended(several.fakes(tmp_path, 2, slurm=True))
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


@pytest.mark.long
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


@pytest.mark.long
def test_when_one_is_asked_to_stop_all_stop(several, tmp_path):
    started = several.fakes(tmp_path, 2, sleep=0.5)
    shards = [tmp_path / "rows.jsonl", tmp_path / "rows-1.jsonl"]
    wait_for(lambda: all(lines(shard) for shard in shards))
    started[1].send_signal(signal.SIGTERM)
    codes, told = ended(started)
    assert codes == [75, 75], told
    # Neither of them has done its share.
    assert all(lines(shard) < 6 * 2 * 6 for shard in shards)


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_the_failure_of_the_first_process_ends_the_others(several, tmp_path):
    with AppendOnlyFile(tmp_path / "rows.jsonl"):
        codes, told = ended(several.fakes(tmp_path, 2))
    assert codes == [2, 2], told
    assert "rows.jsonl is being written by another run" in told[0]
    assert "tsi: Process 0 has failed: " in told[1]
    assert "rows.jsonl is being written by another run" in told[1]


@pytest.mark.long
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
