"""Rows and reports on file systems that can neither append nor lock."""

import json
import signal
from pathlib import Path

import fsspec
import pytest
from fake_world import fake_world
from processes import Processes, ended, wait_for

from tsi.errors import ConfigurationError, ResultsError
from tsi.experiments.files.json_lines import without_half_line
from tsi.experiments.files.places import join_place, parse_place
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.reports.write_report import FILES, write_report
from tsi.experiments.rows.results import ResultsFile, read_rows
from tsi.experiments.rows.row_shards import RemoteShards
from tsi.experiments.scaling import curve_llm
from tsi.experiments.scaling.scale import run_plan

PLAN = make_plan(["smc", "weighted_best_of_n"], [1, 2, 4], 2)
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


def is_folded(address):
    """Whether all rows are in one object, of which ``rows.jsonl`` is a copy."""
    system, root = fsspec.core.url_to_fs(address)
    (whole,) = system.ls(f"{root}/rows", detail=False)
    return system.cat_file(whole) == system.cat_file(f"{root}/rows.jsonl")


def without_seconds(rows):
    return {cell: row | {"seconds": None} for cell, row in rows.items()}


def test_an_address_stays_as_it_is_and_a_path_is_a_path(tmp_path):
    assert parse_place("memory://bucket/x/") == "memory://bucket/x"
    assert join_place("gs://bucket/x", "table.md") == "gs://bucket/x/table.md"
    assert join_place(parse_place(str(tmp_path)), "a") == tmp_path / "a"


@pytest.mark.long
def test_rows_and_report_go_to_an_object_store(bucket, tmp_path):
    world = fake_world(12, rows=8)
    path = join_place(bucket, "rows.jsonl")
    rows = run_plan(PLAN, world, path, progress=False)
    local = run_plan(
        PLAN, fake_world(12, rows=8), tmp_path / "rows.jsonl", progress=False
    )
    assert without_seconds(rows) == without_seconds(local)
    text = write_report(PLAN, world, rows, bucket)
    assert f"Written: {bucket}/rows.jsonl" in text
    assert is_folded(bucket)
    found = [name for name in names(bucket) if name.count("/") == 1]
    assert found == sorted(f"/{name}" for name in [*FILES, "rows.jsonl"])
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
    assert is_folded(bucket)


def test_every_flush_is_an_object_and_outlives_its_writer(bucket):
    path = join_place(bucket, "rows.jsonl")
    results = ResultsFile(path, {"task": "a"})
    for cell in CELLS[:2]:
        results.append([(cell, {"correct": True})])
    # Neither closed nor folded, as after a kill.
    assert len(names(bucket)) == 2
    assert list(read_rows(path)) == CELLS[:2]
    with ResultsFile(path, {"task": "a"}, index=1, count=2) as other:
        assert other.find_missing(CELLS) == CELLS[2:]
        other.append((cell, {"correct": False}) for cell in CELLS[2:])
        # Another writer has computed the same row meanwhile; the first counts.
        results.append([(CELLS[2], {"correct": True})])
        other.reload()
        other.fold()
        assert list(other.rows) == CELLS
    assert is_folded(bucket)
    assert [row["correct"] for row in read_rows(path).values()] == [True] * 2 + [
        False
    ] * 2


def test_a_kill_between_merge_and_removal_leaves_each_row_once(bucket, monkeypatch):
    path = join_place(bucket, "rows.jsonl")
    with ResultsFile(path, {}) as results:
        results.append((cell, {"correct": True}) for cell in CELLS)
        results.reload()
        system = type(fsspec.filesystem("memory"))

        def kill(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(system, "rm_file", kill)
        with pytest.raises(KeyboardInterrupt):
            results.fold()
        monkeypatch.undo()
    assert list(read_rows(path)) == CELLS
    with ResultsFile(path, {}) as results:
        assert results.find_missing(CELLS) == []
        results.fold()
    assert is_folded(bucket)
    assert list(read_rows(path)) == CELLS


def test_a_run_that_folds_late_loses_no_row_of_another(bucket):
    path = join_place(bucket, "rows.jsonl")
    with ResultsFile(path, {}) as late, ResultsFile(path, {}) as other:
        late.append((cell, {"correct": True}) for cell in CELLS[:2])
        late.reload()
        other.append((cell, {"correct": True}) for cell in CELLS[2:])
        other.fold()
        late.fold()
        assert set(late.rows) == set(CELLS)
    assert set(read_rows(path)) == set(CELLS)
    assert is_folded(bucket)


@pytest.mark.parametrize("when", range(1, 4))
def test_two_runs_that_fold_at_the_same_moment_lose_no_row(bucket, monkeypatch, when):
    """The other run does it all before the first, second, ... write of this one."""
    path = join_place(bucket, "rows.jsonl")
    system, calls = type(fsspec.filesystem("memory")), []
    with ResultsFile(path, {}) as one, ResultsFile(path, {}) as other:
        one.append([(CELLS[0], {"correct": True})])

        def interleave(write):
            def first(self, *arguments, **settings):
                calls.append(arguments)
                if len(calls) == when:
                    other.append((cell, {"correct": True}) for cell in CELLS[1:])
                    other.fold()
                return write(self, *arguments, **settings)

            return first

        for name in ("pipe_file", "rm_file"):
            monkeypatch.setattr(system, name, interleave(getattr(system, name)))
        one.fold()
        monkeypatch.undo()
    assert len(calls) >= when + 3
    assert set(read_rows(path)) == set(CELLS)
    with ResultsFile(path, {}) as results:
        results.fold()
    assert set(read_rows(path)) == set(CELLS)
    assert is_folded(bucket)


def test_an_object_that_goes_while_it_is_read_is_found_where_it_went(
    bucket, monkeypatch
):
    path = join_place(bucket, "rows.jsonl")
    system = type(fsspec.filesystem("memory"))
    read = system.cat_file
    with ResultsFile(path, {}) as other:
        other.append([(CELLS[0], {"correct": True})])

        def late(self, name, **settings):
            monkeypatch.undo()
            other.fold()
            return read(self, name, **settings)

        monkeypatch.setattr(system, "cat_file", late)
        assert list(read_rows(path)) == CELLS[:1]


def test_other_settings_are_refused_there_too(bucket):
    path = join_place(bucket, "rows.jsonl")
    with ResultsFile(path, {"task": "a"}) as results:
        results.append([(CELLS[0], {"correct": True})])
    with pytest.raises(ResultsError, match="task is 'a' there, 'b' now"):
        ResultsFile(path, {"task": "b"})
    with pytest.raises(ResultsError, match="There is no results file"):
        read_rows("memory://bucket/none/rows.jsonl")


def test_a_refusal_is_a_sentence_and_what_was_written_is_kept(bucket, monkeypatch):
    path = join_place(bucket, "rows.jsonl")
    with ResultsFile(path, {}) as results:
        results.append([(CELLS[0], {"correct": True})])

        def refuse(*_, **__):
            raise RuntimeError("403: no rights\nto write")

        monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuse)
        with pytest.raises(ResultsError, match=r"\(403: no rights to write\); what"):
            results.append([(CELLS[1], {"correct": True})])
        assert results.find_missing(CELLS[:2]) == [CELLS[1]]
    assert list(read_rows(path)) == CELLS[:1]


def test_an_unknown_file_system_is_a_sentence():
    for use in (parse_place, RemoteShards):
        with pytest.raises(ConfigurationError, match=r"nothing://x cannot be used: "):
            use("nothing://x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory://", "has no bucket"),
        ("gs://", "has no bucket"),
        ("gs:///run", "has no bucket"),
        ("simplecache::s3:///run", "has no bucket"),
        ("://x", "has no file system"),
        ("gs:/bucket/run", "write gs://bucket/run for an address, or ./gs:/bucket"),
        ("gs:", "neither an address"),
        ("s3:bucket/run", "neither an address"),
        ("nothing:/x", "neither an address"),
        # Their constructors take more than an address.
        ("github://x", "github://x cannot be used: "),
        ("dir://x", "dir://x cannot be used: "),
        ("reference://x", "reference://x cannot be used: "),
    ],
)
def test_what_is_no_address_of_a_place_is_a_sentence(text, words):
    with pytest.raises(ConfigurationError) as refused:
        parse_place(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["run:1/x", "./gs:/b", "results/a://b", "x", "/x"])
def test_a_path_may_have_a_colon(text):
    assert parse_place(text) == Path(text)


def test_an_address_of_this_machine_needs_no_host(tmp_path):
    assert parse_place(f"file://{tmp_path}/") == f"file://{tmp_path}"
    assert parse_place("memory:///x") == "memory:///x"


def test_the_language_model_experiment_takes_the_same_places(
    bucket, monkeypatch, tmp_path
):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        curve_llm, "language_worlds", lambda *_, **__: [("judge", fake_world(2))]
    )
    monkeypatch.setattr(curve_llm, "write_report", lambda *rest: asked.append(rest[3]))
    options = {"budgets": (1,), "methods": ("greedy",), "progress": False}
    curve_llm.main(out=bucket, **options)
    assert asked == [f"{bucket}/judge"]
    assert len(read_rows(f"{bucket}/judge/rows.jsonl")) == 2
    with pytest.raises(ConfigurationError, match="neither an address"):
        curve_llm.main(out="gs:/bucket/x", **options)


@pytest.mark.parametrize("half", [b'{"a', b'{"a"\n', b"\n", b"\0\0\n", b""])
def test_half_a_last_line_is_left_out(half):
    whole = [b'{"a": 1}', b'{"a": 2}']
    halves = half.split(b"\n")[:1] if half else []
    assert list(without_half_line([*whole, *halves])) == whole
    assert list(without_half_line(halves)) == []


def test_half_an_object_of_a_file_system_without_whole_writes_is_left_out(tmp_path):
    path = f"file://{tmp_path}/rows.jsonl"
    with ResultsFile(path, {}) as results:
        results.append((cell, {"correct": True}) for cell in CELLS[:2])
    (segment,) = (tmp_path / "rows").iterdir()
    segment.write_bytes(segment.read_bytes()[:-9])
    assert list(read_rows(path)) == CELLS[:1]
    with ResultsFile(path, {}) as results:
        assert results.find_missing(CELLS[:2]) == CELLS[1:2]


@pytest.mark.long
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
    assert is_folded(address)
    assert (tmp_path / "x" / "table.md").exists()
