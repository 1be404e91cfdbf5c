"""Files that are no files of rows, or broken: refused by name, left as they are."""

import json
import resource
import subprocess
import sys

import pytest

from tsi.errors import ResultsError
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.files.json_lines import MAX_LINE
from tsi.experiments.plans.cell import Cell
from tsi.experiments.rows.results import ResultsFile, known_cells, read_rows
from tsi.experiments.rows.row_format import ROWS

SETTINGS = {"task": "chain"}
CELLS = [Cell("smc", 1, 0, problem) for problem in range(4)]


@pytest.fixture
def path(tmp_path):
    """A file with four rows."""
    path = tmp_path / "rows.jsonl"
    with ResultsFile(path, SETTINGS) as results:
        results.append((cell, {"correct": True, "flops": 1.0}) for cell in CELLS)
    return path


FOREIGN = {
    "a text": b"Dear reader,\nthis is a letter.\nYours",
    "a text of one line": b"Dear reader",
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\n" + bytes(range(256)),
    "JSON": b'{\n "a": 1\n}\n',
    "JSON without a newline": b'{"a": 1}',
    "other lines of JSON": b'{"a": 1}\n{"a": 2}\n{"a"',
    "rows of another program": b'{"method": "smc", "score": 1}\n{"method": "b"}\n',
    "one row of another program": b'{"method": "smc", "score": 1}\n',
    "a list": b"[]\n",
    "UTF-16": '{"method": "smc"}\n'.encode("utf-16"),
    "numbers": b"1\n2\n3\n4",
    "nested": b'{"method": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused_and_left_as_it_is(tmp_path, kind):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(ResultsError, match=r"rows\.jsonl is not a file of results"):
        ResultsFile(path, SETTINGS)
    assert path.read_bytes() == FOREIGN[kind]
    assert [x.name for x in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_foreign_end_of_rows_is_refused_and_left_as_it_is(path):
    for end in (b"my notes\nof today", b'{"a": 1}\n', b'{"a": 1}', b"\n\n"):
        whole = path.read_bytes()
        path.write_bytes(whole + end)
        with pytest.raises(ResultsError):
            ResultsFile(path, SETTINGS)
        assert path.read_bytes() == whole + end
        path.write_bytes(whole)


def test_nothing_is_dropped_from_a_file_that_is_refused_later(path):
    whole = path.read_bytes() + b'{"method": "smc", "bud'
    path.write_bytes(whole)
    with pytest.raises(ResultsError, match="task is 'chain' there, 'other' now"):
        ResultsFile(path, {"task": "other"})
    assert path.read_bytes() == whole
    assert len(list(path.parent.iterdir())) == 1


def test_rows_behind_the_lines_of_another_program_are_no_file_of_rows(path):
    whole = b"my notes\n" + path.read_bytes() + b'{"method": "smc", "bud'
    path.write_bytes(whole)
    with pytest.raises(ResultsError, match="its first line is invalid"):
        AppendOnlyFile(path, ROWS)
    assert path.read_bytes() == whole


@pytest.mark.long
@pytest.mark.parametrize("start", [b"", b'{"method": "smc", "prompt": "'])
@pytest.mark.parametrize("rows", [False, True])
def test_a_large_file_of_one_line_is_refused_in_little_memory(path, start, rows):
    size = 200_000_000
    if not rows:
        path.write_bytes(b"")
    with path.open("ab") as file:
        file.write(start)
        # A hole, which takes no room on the disk.
        file.truncate(file.tell() + size)
    before = path.stat().st_size
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from tsi.errors import ResultsError\n"
        "from tsi.experiments.rows.results import ResultsFile, read_rows\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for read in (read_rows, lambda path: ResultsFile(path, {'task': 'chain'})):\n"
        "    try:\n"
        "        read(Path(sys.argv[1]))\n"
        "    except ResultsError as error:\n"
        "        assert 'rows.jsonl' in str(error)\n"
        "    else:\n"
        "        raise AssertionError(read)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Kilobytes.
    assert int(done.stdout) < 6 * MAX_LINE / 1000
    assert path.stat().st_size == before


def test_a_large_file_of_rows_is_read_line_by_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"correct": True, "selected": "x" * 100_000}
    with ResultsFile(path, SETTINGS) as results:
        results.append((Cell("smc", 1, 0, n), row) for n in range(300))
    with AppendOnlyFile(path) as file:
        longest = max(map(len, file.lines()))
    assert 100_000 < longest < 101_000
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert known_cells(path, SETTINGS) == {Cell("smc", 1, 0, n) for n in range(300)}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limit < 20_000


WRONG = {
    "budget": [0, -1, 1.5, "4", None, True, [4]],
    "seed": [-1, "0", None, 0.0],
    "problem": [None, 1.5, [1], {}, True],
    "method": ["no_such_method", 3, None, ["smc"]],
    "correct": ["true", 1, None],
    "flops": ["1", [], True],
    "num_right": [-1, 2.5, "3", None],
    "selected": [4, ["4"]],
    "prompt": [None, 5],
    "settings_id": ["0123456789ab", None, 7, []],
    "settings": ["chain", None, []],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in WRONG for value in WRONG[field]]
)
def test_a_field_of_another_type_is_an_error_with_file_and_line(path, field, value):
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {field: value})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ResultsError, match=r"rows\.jsonl, line 3, is not a row of"):
        read_rows(path)
    with pytest.raises(ResultsError, match=r"rows\.jsonl, line 3, is not a row of"):
        ResultsFile(path, SETTINGS)


@pytest.mark.parametrize(
    "old", [b'"flops": 1.0', b'"correct": true', b'"task": "chain"']
)
@pytest.mark.parametrize(
    "value",
    [
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"1" * 5000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'"\xff\xfe"',
        b'"\xed\xa0\x80"',
    ],
)
def test_a_value_that_is_no_json_of_rows_is_an_error_with_the_line(path, old, value):
    name = old.partition(b":")[0]
    path.write_bytes(path.read_bytes().replace(old, name + b": " + value, 1))
    with pytest.raises(ResultsError, match=r"rows\.jsonl, line [12],"):
        read_rows(path)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=r"rows\.jsonl"):
        ResultsFile(path, SETTINGS)
    assert path.read_bytes() == before


def test_a_carriage_return_in_a_file_is_no_end_of_a_line(path):
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert list(read_rows(path)) == CELLS
    with ResultsFile(path, SETTINGS) as results:
        assert list(results.rows) == CELLS
