"""Rows and reports on file systems that can neither append nor lock."""

import json
import signal

import fsspec
import pytest
from fake_world import fake_world
from processes import Processes, ended, wait_for

from tsi.errors import ConfigurationError, ResultsError
from tsi.experiments.places import inside, place_of
from tsi.experiments.results import Cell, ResultsFile, read_rows
from tsi.experiments.row_shards import RemoteShards, whole_lines
from tsi.experiments.scale import checked_plan, run_plan
from tsi.experiments.write_report import write_report

PLAN = checked_plan(["smc", "weighted_best_of_n"], [1, 2, 4], 2)
CELLS = [Cell("smc", 2, 0, problem) for problem in range(4)]


@pytest.fixture
def bucket():
    """An empty folder in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield "memory://bucket/x"
    system.store.clear()


def names(address):
    system, root = fsspec.core.url_to_fs(address)
    return sorted(name.removeprefix(root) for name in system.find(root))


def without_seconds(rows):
    return {cell: row | {"seconds": None} for cell, row in rows.items()}


def test_an_address_stays_as_it_is_and_a_path_is_a_path(tmp_path):
    assert place_of("memory://bucket/x/") == "memory://bucket/x"
    assert inside("gs://bucket/x", "table.md") == "gs://bucket/x/table.md"
    assert inside(place_of(str(tmp_path)), "a") == tmp_path / "a"


def test_rows_and_report_go_to_an_object_store(bucket, tmp_path):
    world = fake_world(12, rows=8)
    path = inside(bucket, "rows.jsonl")
    rows = run_plan(PLAN, world, path, progress=False)
    local = run_plan(
        PLAN, fake_world(12, rows=8), tmp_path / "rows.jsonl", progress=False
    )
    assert without_seconds(rows) == without_seconds(local)
    text = write_report(PLAN, world, rows, bucket)
    assert f"Written: {bucket}/rows.jsonl" in text
    assert names(bucket) == [
        "/accuracy_flops.png",
        "/accuracy_rollouts.png",
        "/rows.jsonl",
        "/scaling_rate.json",
        "/table.md",
    ]
    system = fsspec.filesystem("memory")
    assert system.cat_file("/bucket/x/accuracy_flops.png")[:4] == b"\x89PNG"
    assert json.loads(system.cat_file("/bucket/x/scaling_rate.json"))
    assert read_rows(path).keys() == rows.keys()
    # A finished run computes nothing again, and adds to what is there.
    again = fake_world(12, rows=8)
    run_plan(PLAN, again, path, progress=False)
    assert again.engine.calls == []
    more = run_plan(PLAN._replace(budgets=(8,)), again, path, progress=False)
    assert {n for _, _, n, _ in again.engine.calls} == {8}
    assert len(more) == len(rows) + 2 * 2 * 12
    assert names(bucket).count("/rows.jsonl") == 1


def test_every_flush_is_an_object_and_outlives_its_writer(bucket):
    path = inside(bucket, "rows.jsonl")
    results = ResultsFile(path, {"task": "a"})
    for cell in CELLS[:2]:
        results.append([(cell, {"correct": True})])
    # Neither closed nor folded, as after a kill.
    assert len(names(bucket)) == 2
    assert list(read_rows(path)) == CELLS[:2]
    with ResultsFile(path, {"task": "a"}, index=1, count=2) as other:
        assert other.missing(CELLS) == CELLS[2:]
        other.append((cell, {"correct": False}) for cell in CELLS[2:])
        # Another writer has computed the same row meanwhile; the first counts.
        results.append([(CELLS[2], {"correct": True})])
        other.reload()
        other.fold()
        assert list(other.rows) == CELLS
    assert names(bucket) == ["/rows.jsonl"]
    assert [row["correct"] for row in read_rows(path).values()] == [True] * 2 + [
        False
    ] * 2


def test_a_kill_between_merge_and_removal_leaves_each_row_once(bucket, monkeypatch):
    path = inside(bucket, "rows.jsonl")
    with ResultsFile(path, {}) as results:
        results.append((cell, {"correct": True}) for cell in CELLS)
        results.reload()
        system = type(fsspec.filesystem("memory"))

        def killed(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(system, "rm_file", killed)
        with pytest.raises(KeyboardInterrupt):
            results.fold()
        monkeypatch.undo()
    assert list(read_rows(path)) == CELLS
    with ResultsFile(path, {}) as results:
        assert results.missing(CELLS) == []
        results.fold()
    assert names(bucket) == ["/rows.jsonl"]
    assert list(read_rows(path)) == CELLS


def test_other_settings_are_refused_there_too(bucket):
    path = inside(bucket, "rows.jsonl")
    with ResultsFile(path, {"task": "a"}) as results:
        results.append([(CELLS[0], {"correct": True})])
    with pytest.raises(ResultsError, match="task is 'a' there, 'b' now"):
        ResultsFile(path, {"task": "b"})
    with pytest.raises(ResultsError, match="There is no results file"):
        read_rows("memory://bucket/none/rows.jsonl")


def test_a_refusal_is_a_sentence_and_what_was_written_is_kept(bucket, monkeypatch):
    path = inside(bucket, "rows.jsonl")
    with ResultsFile(path, {}) as results:
        results.append([(CELLS[0], {"correct": True})])

        def refuse(*_, **__):
            raise RuntimeError("403: no rights\nto write")

        monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuse)
        with pytest.raises(ResultsError, match=r"\(403: no rights to write\); what"):
            results.append([(CELLS[1], {"correct": True})])
        assert results.missing(CELLS[:2]) == [CELLS[1]]
    assert list(read_rows(path)) == CELLS[:1]


def test_an_unknown_file_system_is_a_sentence():
    for use in (place_of, RemoteShards):
        with pytest.raises(ConfigurationError, match=r"nothing://x cannot be used: "):
            use("nothing://x")


@pytest.mark.parametrize("half", [b'{"a', b'{"a"\n', b"\n", b"\0\0\n", b""])
def test_half_a_last_line_is_left_out(half):
    assert whole_lines(b'{"a": 1}\n{"a": 2}\n' + half) == b'{"a": 1}\n{"a": 2}\n'
    assert whole_lines(half) == b""


def test_half_an_object_of_a_file_system_without_whole_writes_is_left_out(tmp_path):
    path = f"file://{tmp_path}/rows.jsonl"
    with ResultsFile(path, {}) as results:
        results.append((cell, {"correct": True}) for cell in CELLS[:2])
    (segment,) = (tmp_path / "rows").iterdir()
    segment.write_bytes(segment.read_bytes()[:-9])
    assert list(read_rows(path)) == CELLS[:1]
    with ResultsFile(path, {}) as results:
        assert results.missing(CELLS[:2]) == CELLS[1:2]


def test_two_processes_write_to_a_file_system_and_one_goes_on(tmp_path):
    several = Processes()
    address = f"file://{tmp_path}/x"
    try:
        started = several.fakes(address, 2, sleep=0.5)
        segments = tmp_path / "x" / "rows"
        wait_for(lambda: segments.exists() and len(list(segments.iterdir())) > 2)
        started[1].send_signal(signal.SIGKILL)
        started[0].send_signal(signal.SIGTERM)
        assert ended(started)[0] == [75, -signal.SIGKILL]
        before = read_rows(f"{address}/rows.jsonl")
        assert len(before) > 0
        assert ended(several.fakes(address, 1))[0] == [0]
    finally:
        several.close()
    rows = read_rows(f"{address}/rows.jsonl")
    assert before.items() <= rows.items()
    expected = run_plan(
        PLAN, fake_world(12, rows=8), tmp_path / "rows.jsonl", progress=False
    )
    assert rows.keys() == expected.keys()
    for cell, row in expected.items():
        assert {name: rows[cell][name] for name in row if name != "seconds"} == {
            name: value for name, value in row.items() if name != "seconds"
        }
    assert not list(segments.iterdir())
    assert (tmp_path / "x" / "table.md").exists()
