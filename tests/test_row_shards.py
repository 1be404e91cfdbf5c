"""Shards of rows beside each other: whoever wrote them, each row counts once."""

import os

import pytest

from tsi.errors import ResultsError
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.plans.cell import Cell
from tsi.experiments.rows.results import ResultsFile, read_rows
from tsi.experiments.rows.row_shards import LocalShards

CELLS = [Cell("smc", 2, 0, problem) for problem in range(6)]
SETTINGS = {"task": "chain"}


def write(path, cells, index=0, count=4, settings=SETTINGS, **outcome):
    with ResultsFile(path, settings, index=index, count=count) as results:
        results.append(
            (cell, {"correct": True, "writer": index, **outcome}) for cell in cells
        )


@pytest.fixture
def path(tmp_path):
    """A shard of process 0, and one of process 3 that has a row of it too."""
    path = tmp_path / "rows.jsonl"
    write(path, CELLS[:2])
    write(path, CELLS[2:4], 3)
    with AppendOnlyFile(tmp_path / "rows-3.jsonl") as file:
        file.append(path.read_bytes().splitlines(keepends=True)[2])
    return path


def test_every_process_of_any_number_knows_all_rows(path):
    for index, count in ((0, 1), (0, 2), (1, 2), (3, 5)):
        with ResultsFile(path, SETTINGS, index=index, count=count) as results:
            assert results.find_missing(CELLS) == CELLS[4:]
    assert [row["writer"] for row in read_rows(path).values()] == [0, 0, 3, 3]


def test_all_rows_are_brought_into_one_shard(path):
    with ResultsFile(path, SETTINGS) as results:
        write(path, CELLS[4:5], 1)
        results.append([(CELLS[5], {"correct": True, "writer": 0})])
        results.reload()
        results.fold()
        assert set(results.rows) == set(CELLS)
    assert [shard.name for shard in path.parent.iterdir()] == ["rows.jsonl"]
    # A row that was in two shards is written once, else this would be refused.
    with ResultsFile(path, SETTINGS) as results:
        assert set(results.rows) == set(CELLS)


def test_a_kill_between_merge_and_removal_leaves_each_row_once(path, monkeypatch):
    def kill(*_, **__):
        raise KeyboardInterrupt

    with ResultsFile(path, SETTINGS) as results:
        monkeypatch.setattr(type(path), "unlink", kill)
        with pytest.raises(KeyboardInterrupt):
            results.fold()
        monkeypatch.undo()
    with ResultsFile(path, SETTINGS) as results:
        assert results.find_missing(CELLS) == CELLS[4:]
        results.fold()
    # The settings and four rows.
    assert len(path.read_bytes().splitlines()) == 5


def test_a_shard_that_another_run_still_writes_is_refused(path):
    with AppendOnlyFile(path.with_name("rows-3.jsonl")):
        with pytest.raises(ResultsError, match=r"rows-3\.jsonl is being written by"):
            ResultsFile(path, SETTINGS, index=0, count=2)
        # The first process holds what none of this run writes; the others read.
        ResultsFile(path, SETTINGS, index=1, count=2).close()
    # And nothing stays locked.
    ResultsFile(path, SETTINGS).close()


def test_a_shard_of_other_settings_or_without_sense_is_named(path):
    with pytest.raises(ResultsError, match=r"rows\.jsonl, line 2, .* 'countdown' now"):
        write(path, [], 1, settings={"task": "countdown"})
    path.with_name("rows-2.jsonl").write_text("nonsense\n" * 2 + "{}\n")
    with pytest.raises(ResultsError, match=r"rows-2\.jsonl, line 1, is not a row"):
        ResultsFile(path, SETTINGS, index=1, count=4)


def test_other_files_of_the_folder_are_no_shards(path):
    for name in ("rows-0.jsonl", "rows-x.jsonl", "rows-1.json", "more-rows-1.jsonl"):
        path.with_name(name).write_text("mine")
    os.mkfifo(path.with_name("rows-7.jsonl"))
    with pytest.raises(ResultsError, match="but a fifo"):
        ResultsFile(path, SETTINGS, index=1, count=9)
    path.with_name("rows-7.jsonl").unlink()
    with ResultsFile(path, SETTINGS) as results:
        results.fold()
    assert path.with_name("rows-x.jsonl").read_text() == "mine"


def test_processes_without_a_common_folder_are_told_so(path, monkeypatch):
    monkeypatch.setattr("tsi.experiments.rows.row_shards.VISIBILITY_TIMEOUT", 0.1)
    shards = LocalShards(path, 0, 2)
    with pytest.raises(ResultsError, match=r"rows-1\.jsonl, which another process"):
        shards.check_sharing()
    with ResultsFile(path, SETTINGS, index=1, count=2):
        shards.check_sharing()
    shards.close()
