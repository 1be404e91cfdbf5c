"""Files of problems: what is read, and the sentence for each kind of fault."""

import json

import pytest

from tsi.errors import ConfigurationError
from tsi.experiments.tasks.own_file import read_examples
from tsi.experiments.tasks.problem_file import MAX_FIELD, Columns, read_problems
from tsi.problem import Problem

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = [
    {"id": "a", "question": "1 + 1?", "answer": "2", "level": 1},
    {"id": "b", "question": 'What, "then"?\nReally?', "answer": "3,5", "level": 2},
]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path, rows):
    path.write_text(json.dumps(rows, indent=1))
    return path


def write_csv(path, rows):
    import csv

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


WRITERS = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_problems(tmp_path, suffix):
    first, second = read_problems(WRITERS[suffix](tmp_path / f"x{suffix}", ROWS))
    assert (first.id, first.prompt, first.answer) == ("a", "1 + 1?", "2")
    assert (second.id, second.prompt) == ("b", 'What, "then"?\nReally?')
    assert second.answer == "3,5"
    assert [int(p.data["level"]) for p in (first, second)] == [1, 2]


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_without_ids_are_numbered_by_line(tmp_path, suffix):
    rows = [{"question": "x", "answer": 1}, {"question": "y", "answer": 2.5}]
    problems = read_problems(WRITERS[suffix](tmp_path / f"x{suffix}", rows))
    assert [p.answer for p in problems] == (
        ["1", "2.5"] if suffix.startswith(".json") else [p.answer for p in problems]
    )
    assert len({p.id for p in problems}) == 2
    assert all(p.id.isdigit() for p in problems)


def test_columns_of_other_names_are_named(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"task": "t", "gold": "g", "key": 7}])
    (problem,) = read_problems(path, Columns("task", "gold", "key"))
    assert problem == ("7", "t", "g", {})
    with pytest.raises(ConfigurationError) as caught:
        read_problems(path)
    sentence = str(caught.value)
    assert "line 1: there is no column 'question'" in sentence
    assert "'task', 'gold', 'key'" in sentence
    assert "--question-column" in sentence


GOOD = {"id": "a", "question": "q", "answer": "1"}
FAULTS = {
    "a repeated id": (
        [GOOD, GOOD],
        "line 2, column 'id': the id 'a' is that of line",
    ),
    "an id in some rows": (
        [GOOD, {"question": "q", "answer": "1"}],
        "line 2, column 'id': some rows have an id",
    ),
    "an empty answer": ([GOOD | {"answer": " "}], "line 1, column 'answer', is empty"),
    "a null answer": ([GOOD | {"answer": None}], "line 1, column 'answer', is empty"),
    "an empty question": ([GOOD | {"question": ""}], "column 'question', is empty"),
    "a list": ([GOOD | {"answer": [1]}], "column 'answer': list is neither a text"),
    "a truth value": ([GOOD | {"answer": True}], "column 'answer': bool is neither"),
    "a fraction as id": ([GOOD | {"id": 1.5}], "column 'id': an id is a text or an"),
    "an empty id": ([GOOD | {"id": " "}], "column 'id': an id has 1 to 200 characters"),
    "half a surrogate": ([GOOD | {"question": "\ud800"}], "half a surrogate pair at"),
    "too long": ([GOOD | {"question": "x" * (MAX_FIELD + 1)}], "1,000,001 characters"),
    "no rows": ([], "has no rows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_rows_name_file_line_and_column(tmp_path, fault):
    rows, sentence = FAULTS[fault]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    with pytest.raises(ConfigurationError) as caught:
        read_problems(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


CONTENTS = {
    "half a line": (
        "x.jsonl",
        b'{"question": "q", "ans',
        "line 1, is not a JSON object",
    ),
    "an array": ("x.jsonl", b"[1, 2]\n", "line 1, is a JSON list and not an object"),
    "NaN": ("x.jsonl", b'{"question": "q", "answer": NaN}', "line 1, is not a JSON"),
    "deep nesting": ("x.jsonl", b"[" * 100_000, "line 1, is not a JSON object"),
    "Latin-1": (
        "x.jsonl",
        b'{"question": "q", "answer": "1"}\n{"question": "\xe9"}',
        "line 2, byte 15, is not UTF-8",
    ),
    "another ending": ("x.txt", b"", "ends with none of .jsonl, .json, .csv"),
    "a row with a comma": (
        "x.csv",
        b"question,answer\na,b,c\n",
        "line 2, does not have the",
    ),
    "a short row": (
        "x.csv",
        b"question,answer\na\n",
        "line 2, does not have the 2 fields",
    ),
    "a long row": ("x.csv", b"question,answer\na,b,c\n", "does not have the 2 fields"),
    "an open quote": ("x.csv", b'question,answer\n"a,b\n', "is not CSV"),
    "a repeated column": ("x.csv", b"answer,answer\n1,2\n", "'answer' occurs twice"),
    "half an array": (
        "x.json",
        b'[{"question": "q"},\n',
        "line 2, is not a JSON array",
    ),
    "an array of numbers": ("x.json", b"[1]", "element 1, is a JSON int and not an"),
    "no Parquet": ("x.parquet", b"PAR1 nothing PAR1", "is not a Parquet file"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_faults_of_files_are_sentences(tmp_path, content):
    name, data, sentence = CONTENTS[content]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ConfigurationError) as caught:
        read_problems(path)
    assert sentence in str(caught.value)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere"):
        read_problems(tmp_path / "nowhere.jsonl")


def test_a_byte_order_mark_and_empty_lines_are_accepted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "q", "answer": "1"}\n\n')
    assert [p.prompt for p in read_problems(path)] == ["q"]


def test_data_has_json_types(tmp_path):
    import datetime

    rows = [{"question": "q", "answer": "1", "day": datetime.date(2024, 5, 6)}]
    path = write_parquet(tmp_path / "x.parquet", rows)
    (problem,) = read_problems(path)
    assert problem.data == {"day": "2024-05-06"}
    assert json.dumps(problem.data)


def test_examples_are_pairs_of_question_and_solution(tmp_path):
    rows = [{"question": "1+1", "solution": "2\nAnswer: 2"}] * 2
    path = write_jsonl(tmp_path / "few.jsonl", rows)
    assert read_examples(path) == (("1+1", "2\nAnswer: 2"),) * 2
    write_jsonl(path, [{"question": "1+1", "answer": "2"}])
    with pytest.raises(ConfigurationError, match="the columns question and solution"):
        read_examples(path)
    write_jsonl(path, rows * 60)
    with pytest.raises(ConfigurationError, match="120 worked examples"):
        read_examples(path)


def test_a_column_of_ids_that_was_named_is_not_replaced_by_numbers(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "1 + 1", "answer": "2"}\n')
    with pytest.raises(ConfigurationError, match="no column 'number'"):
        read_problems(path, Columns(id="number"))


@pytest.mark.parametrize(
    "content",
    [
        ",question,answer\n0,1+1,2\n",
        "question,answer,\n1+1,2,\n",
        ",question,,answer\n0,1+1,,2\n",
    ],
)
def test_a_column_without_a_name_is_ignored(tmp_path, content):
    path = tmp_path / "x.csv"
    path.write_text(content)
    assert read_problems(path) == [Problem("2", "1+1", "2")]
