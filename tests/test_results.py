"""The results file: kill at any moment, resume, same rows."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tsi.errors import ResultsError
from tsi.experiments.cli import main
from tsi.experiments.plans.cell import Cell
from tsi.experiments.reports.curves import curves_of
from tsi.experiments.rows.results import ResultsFile, check_complete, read_rows

SETTINGS = {"task": "chain", "temperature": 1.0, "commit": "abc"}
CELLS = [Cell("smc", budget, 0, problem) for budget in (1, 2) for problem in range(3)]


def _outcome(cell):
    return {"correct": cell.problem % 2 == 0, "log_evidence": -1.5}


def _write(path, cells, settings=SETTINGS):
    with ResultsFile(path, settings) as results:
        results.append((cell, _outcome(cell)) for cell in cells)


def test_rows_come_back_with_their_settings(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    _write(path, CELLS)
    rows = read_rows(path)
    assert list(rows) == CELLS
    assert all(row["settings"] == SETTINGS for row in rows.values())
    assert rows[CELLS[1]]["correct"] is False


def test_resume_skips_present_rows_and_keeps_their_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    _write(path, CELLS[:4])
    with ResultsFile(path, SETTINGS) as results:
        missing = results.find_missing(CELLS)
        assert missing == CELLS[4:]
        results.append((cell, _outcome(cell)) for cell in missing)
    assert list(read_rows(path)) == CELLS
    _write(tmp_path / "undisturbed.jsonl", CELLS)
    assert path.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()


@pytest.mark.parametrize("cut", [2, 30, 100])
def test_half_written_line_is_dropped_said_and_redone(tmp_path, capsys, cut):
    path = tmp_path / "rows.jsonl"
    _write(path, CELLS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with ResultsFile(path, SETTINGS) as results:
        assert "dropped an incomplete last line" in capsys.readouterr().err
        assert results.find_missing(CELLS) == CELLS[-1:]
        results.append([(CELLS[-1], _outcome(CELLS[-1]))])
    assert path.read_bytes() == whole
    dropped = whole.splitlines(keepends=True)[-1][:-cut]
    assert (tmp_path / "rows.jsonl.dropped-1").read_bytes() == dropped


def test_a_whole_last_row_without_its_newline_is_kept(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    _write(path, CELLS[:-1])
    path.write_bytes(path.read_bytes()[:-1])
    assert list(read_rows(path)) == CELLS[:-1]
    _write(path, CELLS[-1:])
    _write(tmp_path / "undisturbed.jsonl", CELLS)
    assert path.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()
    assert capsys.readouterr().err == ""
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("half", [b'{"method": "bea\n', b"\0\0\0\n", b"\n", b"}\n"])
def test_half_a_line_that_got_its_newline_is_dropped_too(tmp_path, capsys, half):
    path = tmp_path / "rows.jsonl"
    _write(path, CELLS)
    whole = path.read_bytes()
    path.write_bytes(whole + half)
    _write(path, [])
    assert f"last line of {len(half)} bytes" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_other_settings_are_refused_and_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    _write(path, CELLS)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=r"temperature is 1\.0 there, 0\.8 now"):
        ResultsFile(path, SETTINGS | {"temperature": 0.8})
    with pytest.raises(ResultsError, match="policy is 'absent' there, 'p' now"):
        ResultsFile(path, SETTINGS | {"policy": "p"})
    assert path.read_bytes() == before


def test_other_settings_of_one_method_are_refused_for_its_rows_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    with ResultsFile(
        path, SETTINGS, {"smc": {"width": 4}, "beam_search": {}}
    ) as results:
        results.append((cell, _outcome(cell)) for cell in CELLS)
    ResultsFile(
        path, SETTINGS, {"smc": {"width": 4}, "beam_search": {"width": 2}}
    ).close()
    with pytest.raises(ResultsError, match="width is 4 there, 8 now"):
        ResultsFile(path, SETTINGS, {"smc": {"width": 8}})


def test_another_commit_may_continue(tmp_path):
    path = tmp_path / "rows.jsonl"
    _write(path, CELLS[:1])
    _write(path, CELLS[1:2], SETTINGS | {"commit": "def"})
    assert len(read_rows(path)) == 2


@pytest.mark.parametrize("line", ["nonsense", "[]", "{}", '{"method": []}', ""])
def test_malformed_line_in_the_middle_is_an_error_with_its_number(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    _write(path, CELLS)
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ResultsError, match="line 3"):
        ResultsFile(path, SETTINGS)


def test_repeated_row_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    _write(path, CELLS)
    with ResultsFile(path, SETTINGS) as results, pytest.raises(ResultsError):
        results.append([(CELLS[0], {})])
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(ResultsError, match="line 8, repeats"):
        ResultsFile(path, SETTINGS)


def test_second_writer_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    with ResultsFile(path, SETTINGS), pytest.raises(ResultsError, match="another run"):
        ResultsFile(path, SETTINGS)


def test_incomplete_and_missing_files_are_errors(tmp_path):
    with pytest.raises(ResultsError, match="no results file"):
        read_rows(tmp_path / "none.jsonl")
    _write(tmp_path / "rows.jsonl", CELLS[:2])
    rows = read_rows(tmp_path / "rows.jsonl")
    with pytest.raises(ResultsError, match="lacks 4 of 6"):
        check_complete(tmp_path / "rows.jsonl", rows, CELLS)


_WRITER = """
import sys, time
from pathlib import Path
from tsi.experiments.plans.cell import Cell
from tsi.experiments.rows.results import ResultsFile

cells = [Cell("smc", 1, 0, problem) for problem in range(400)]
with ResultsFile(Path(sys.argv[1]), {"task": "chain"}) as results:
    for cell in results.find_missing(cells):
        results.append([(cell, {"correct": cell.problem % 3 == 0})])
        time.sleep(float(sys.argv[2]))
"""


@pytest.mark.long
def test_killed_writer_leaves_a_file_that_resumes_to_the_same_rows(tmp_path):
    path, undisturbed = tmp_path / "rows.jsonl", tmp_path / "undisturbed.jsonl"
    for sleep in (0.01, 0.002):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(sleep)]
        )
        before = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < before + 500:
            time.sleep(0.005)
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert 0 < len(read_rows(path)) < 400
    for file in (path, undisturbed):
        subprocess.run([sys.executable, "-c", _WRITER, str(file), "0"], check=True)
    assert path.read_bytes() == undisturbed.read_bytes()
    assert json.loads(path.read_text().splitlines()[-1])["problem"] == 399


def test_rows_of_earlier_versions_load_and_are_reported(tmp_path):
    """Without what rows say today, with sizes of searches, and settings in each row."""
    row = {
        "budget": 4,
        "seed": 0,
        "problem": 0,
        "correct": True,
        "min_ess": 2.5,
        "log_evidence": 0.0,
        "generated_tokens": 9,
        "reward_tokens": 8,
        "flops": 7.0,
        "seconds": None,
        "settings": {"task": "chain"},
    }
    path = tmp_path / "rows.jsonl"
    methods = ("beam_search", "quest")
    lines = [json.dumps({"method": method, **row}) for method in methods]
    path.write_text("\n".join(lines) + "\n")
    rows = read_rows(path)
    assert [row["settings"] for row in rows.values()] == [{"task": "chain"}] * 2
    assert set(curves_of(rows)) == {"beam_search", "quest"}
    with ResultsFile(path, {"task": "chain", "device_kind": "cpu"}) as results:
        assert set(results.rows) == set(rows)
        results.append([(CELLS[0], {"correct": True})])
    assert set(read_rows(path)) == {*rows, CELLS[0]}
    with pytest.raises(ResultsError, match="line 1, was made with other settings"):
        ResultsFile(path, {"task": "countdown"})


def test_settings_stand_in_the_file_once(tmp_path):
    path, methods = tmp_path / "rows.jsonl", {"smc": {"sampler": {"width": 4}}}
    others = [Cell("quest", 1, 0, problem) for problem in range(3)]
    for cells in ([*CELLS[:3], *others[:1]], [*CELLS[3:], *others[1:]]):
        with ResultsFile(path, SETTINGS, methods) as results:
            results.append((cell, _outcome(cell)) for cell in cells)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    settings = {x["settings_id"]: x["settings"] for x in lines if "settings" in x}
    assert list(settings.values()) == [SETTINGS | methods["smc"], SETTINGS]
    assert len(lines) == len(CELLS) + len(others) + 2
    assert {x["settings_id"] for x in lines} == set(settings)
    for cell, row in read_rows(path).items():
        assert row["settings"] == SETTINGS | methods.get(cell.method, {})


def test_a_file_of_files_has_the_rows_of_both(tmp_path):
    for name, cells in (("a", CELLS[:3]), ("b", CELLS[3:])):
        _write(tmp_path / name, cells)
    path = tmp_path / "rows.jsonl"
    path.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    assert list(read_rows(path)) == CELLS


def test_settings_that_do_not_fit_their_id_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    _write(path, CELLS)
    text = path.read_text()
    path.write_text(text.replace('"temperature": 1.0', '"temperature": 0.5'))
    with pytest.raises(ResultsError, match="one of them was changed"):
        read_rows(path)
    with pytest.raises(ResultsError, match="one of them was changed"):
        ResultsFile(path, SETTINGS)
    path.write_text("".join(text.splitlines(keepends=True)[1:]))
    with pytest.raises(ResultsError, match=r"rows\.jsonl, line 1, .*has its settings"):
        read_rows(path)


def test_pandas_reads_rows_and_their_settings(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "rows.jsonl"
    _write(path, CELLS)
    frame = pandas.read_json(path, lines=True, convert_dates=False)
    rows = frame[frame.settings.isna()].drop(columns="settings")
    settings = frame[["settings_id", "settings"]].dropna()
    rows = rows.merge(settings.drop_duplicates("settings_id"), on="settings_id")
    assert rows.problem.tolist() == [cell.problem for cell in CELLS]
    assert rows.settings.tolist() == [SETTINGS] * len(CELLS)


def test_files_of_several_runs_are_one_file_if_no_row_is_of_two_runs(tmp_path):
    parts = [tmp_path / f"{i}.jsonl" for i in range(3)]
    _write(parts[0], CELLS[:3])
    _write(parts[1], CELLS[3:], SETTINGS | {"temperature": 0.4})
    _write(parts[2], CELLS[2:3], SETTINGS | {"temperature": 0.4})
    first, second, other = (part.read_bytes() for part in parts)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(first + second)
    assert list(read_rows(path)) == CELLS
    # The same rows twice are the same rows.
    path.write_bytes(first + second + first)
    assert list(read_rows(path)) == CELLS
    path.write_bytes(first + other)
    with pytest.raises(ResultsError, match=r"line 6, has another row of Cell\(meth"):
        read_rows(path)


def test_a_run_that_was_stopped_before_its_first_rows_has_no_report(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.touch()
    for command in (["report", str(tmp_path), "--tables"], ["regrade", str(tmp_path)]):
        assert main(command) == 2
        assert (
            f"{path} has no rows yet; to finish them, run the command that began"
            in capsys.readouterr().err
        )
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("field", ["budget", "num_right", "generated_tokens", "flops"])
def test_integers_that_floats_cannot_hold_are_refused(tmp_path, field):
    path = tmp_path / "rows.jsonl"
    _write(path, CELLS[:2])
    settings, first, second = path.read_bytes().splitlines()
    row = json.loads(second) | {field: 10**400}
    path.write_bytes(b"\n".join([settings, first, json.dumps(row).encode()]))
    with pytest.raises(
        ResultsError, match=f"line 3, is not .*{field}.* cannot be 1000"
    ):
        read_rows(path)
