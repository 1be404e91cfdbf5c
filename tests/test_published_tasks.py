"""Published benchmarks in their layouts, tasks of reasoning-gym, and CHAMP."""

import csv
import hashlib
import json
import re
import socket

import huggingface_hub
import pytest

from tsi.errors import ConfigurationError, DownloadError, UnknownNameError
from tsi.experiments.grading.grader import get_grader
from tsi.experiments.grading.pool import GradingPool
from tsi.experiments.tasks import champ, data_files, get_task
from tsi.experiments.tasks.data_files import HubFile, WebFile, find_file, local_path
from tsi.experiments.tasks.gym import gym_task, is_correct, parse_gym_name
from tsi.experiments.tasks.published import BENCHMARKS
from tsi.results.answers import extract_answer

LAYOUTS = {
    "math500": [
        {
            "problem": "What is $1+1$?",
            "solution": "It is $\\boxed{2}$.",
            "answer": "2",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        }
    ],
    "aime25": [{"problem": "Find m+n.", "answer": "070", "id": "4"}],
    "gsm8k": [
        {
            "question": "Two hens lay 600 eggs each. How many?",
            "answer": "They lay 2*600=<<2*600=1200>>1,200 eggs.\n#### 1,200",
        }
    ],
    "numglue2": [
        {"question": "Moles of NaCl?", "answer": 2, "type": "Type_2"},
        {"question": "Not of this task.", "answer": "3", "type": "Type_1"},
    ],
    "financebench": [
        {
            "financebench_id": "f1",
            "company": "3M",
            "question": "Capital expenditure in USD millions?",
            "answer": "$1,577.00",
            "evidence": [{"evidence_text": "Purchases (1,577)"}],
        },
        {
            "financebench_id": "f2",
            "company": "3M",
            "question": "Is it capital-intensive?",
            "answer": "No, the ratio is 5.1 %.",
            "evidence": [{"evidence_text": "..."}],
        },
    ],
}
EXPECTED = {
    "math500": ("test/algebra/1.json", "What is $1+1$?", "2"),
    "aime25": ("4", "Find m+n.", "70"),
    "gsm8k": ("1", "Two hens lay 600 eggs each. How many?", "1200"),
    "numglue2": ("1", "Moles of NaCl?", "2"),
    "financebench": (
        "f1",
        "Purchases (1,577)\n\nCapital expenditure in USD millions?",
        "$1,577.00",
    ),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "cache_directory", lambda: tmp_path)
    return tmp_path


def put(name, rows, size):
    """Put a benchmark of `size` problems into the cache."""
    benchmark = BENCHMARKS[name]
    path = local_path(name, benchmark.source)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return benchmark._replace(size=size)


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_in_the_published_layout_become_problems(name, cache, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, name, put(name, LAYOUTS[name], 1))
    task = get_task(name)
    (problem,) = task.problems("test", None, 0)
    assert problem[:3] == EXPECTED[name]
    assert task.citation
    assert task.licence
    assert task.settings["problems_sha256"]
    with pytest.raises(ConfigurationError, match="no split 'train'"):
        task.problems("train", 1, 0)
    with pytest.raises(ConfigurationError, match="has 1 problems, not 2"):
        task.problems("test", 2, 0)


def test_gpqa_has_its_right_answer_among_four_letters(cache, monkeypatch):
    rows = [
        {
            "Record ID": f"r{i}",
            "Question": "Which?",
            "Correct Answer": "right\n",
            **{f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)},
        }
        for i in range(40)
    ]
    path = local_path("gpqa", BENCHMARKS["gpqa"].source)
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setitem(BENCHMARKS, "gpqa", BENCHMARKS["gpqa"]._replace(size=40))
    problems = get_task("gpqa").problems("test", None, 0)
    for problem in problems:
        assert f"({problem.answer}) right" in problem.prompt.splitlines()
    assert {p.answer for p in problems} == set("ABCD")
    assert problems == get_task("gpqa").problems("test", None, 1)


def test_fewer_problems_are_a_prefix_of_more_and_not_of_the_file(cache, monkeypatch):
    rows = [{"problem": f"{i}?", "answer": str(i), "id": str(i)} for i in range(30)]
    put("aime25", rows, 30)
    task = get_task("aime25")
    assert task.problems("test", 5, 0) == task.problems("test", 20, 3)[:5]
    assert [p.id for p in task.problems("test", 10, 0)] != [str(i) for i in range(10)]
    assert {p.id for p in task.problems("test", None, 0)} == {str(i) for i in range(30)}


def test_files_of_another_layout_or_size_are_refused(cache, monkeypatch):
    put("math500", [{"problem": "1?", "answer": "1"}], 1)
    with pytest.raises(ConfigurationError, match="line 1, does not have the layout"):
        get_task("math500")
    put("math500", LAYOUTS["math500"], 500)
    with pytest.raises(ConfigurationError, match="has 1 problems of math500, which"):
        get_task("math500")


def test_a_fetched_file_is_checked_and_kept(cache, tmp_path):
    served = tmp_path / "served.jsonl"
    served.write_bytes(b"content")
    good = WebFile(served.as_uri(), hashlib.sha256(b"content").hexdigest())
    path = find_file("mine", good)
    assert path.read_bytes() == b"content"
    served.unlink()
    assert find_file("mine", good) == path
    served.write_bytes(b"other content")
    with pytest.raises(DownloadError, match="another file than the one that yours"):
        find_file("yours", good)
    assert not local_path("yours", good).exists()


def test_what_cannot_be_fetched_says_where_to_put_it(cache, tmp_path, monkeypatch):
    web = WebFile((tmp_path / "nowhere" / "x.jsonl").as_uri())
    with pytest.raises(DownloadError) as caught:
        find_file("mine", web)
    assert str(local_path("mine", web)) in str(caught.value)

    class GatedRepoError(Exception):
        pass

    def refuse(*_, **__):
        raise GatedRepoError("403")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(data_files, "check_reachable", lambda *_: None)
    hub = HubFile("somebody/secret", "data.csv", "0" * 40)
    with pytest.raises(DownloadError) as caught:
        find_file("secret", hub)
    sentence = str(caught.value)
    assert "accepted its terms" in sentence
    assert "HF_TOKEN" in sentence
    assert str(local_path("secret", hub)) in sentence


FROM_THE_HUB = [
    name for name, task in BENCHMARKS.items() if isinstance(task.source, HubFile)
]


@pytest.mark.parametrize("name", FROM_THE_HUB)
def test_the_hub_is_asked_for_a_commit(cache, monkeypatch, tmp_path, name):
    asked = {}

    def download(repo, path, **options):
        asked.update(options, repo=repo)
        return str(tmp_path / path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(data_files, "check_reachable", lambda *_: None)
    find_file(name, BENCHMARKS[name].source)
    assert asked["repo_type"] == "dataset"
    # A branch or a tag may move, and its file may change.
    assert re.fullmatch("[0-9a-f]{40}", asked["revision"])


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - set(FROM_THE_HUB)))
def test_other_files_are_fetched_from_a_commit(name):
    assert re.search("/[0-9a-f]{40}/", BENCHMARKS[name].source.url)


def test_a_hub_that_cannot_be_reached_is_asked_once(cache, monkeypatch, tmp_path):
    asked = []

    def download(*_, **__):
        asked.append(1)
        return str(tmp_path / "x.csv")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(data_files, "getproxies", dict)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        hub = HubFile("somebody/some", "x.csv", "0" * 40)
        # The port is bound, and nothing listens there.
        with pytest.raises(DownloadError, match="cannot be reached") as caught:
            find_file("some", hub)
        assert str(local_path("some", hub)) in str(caught.value)
        assert not asked
        server.listen()
        assert find_file("some", hub) == tmp_path / "x.csv"
    # In offline mode and behind a proxy the client decides.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    find_file("some", hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(data_files, "getproxies", lambda: {"https": "proxy"})
    find_file("some", hub)
    assert len(asked) == 3


def test_problems_of_a_generator_are_right_by_its_own_verifier():
    pytest.importorskip("reasoning_gym")
    for name in ("chain_sum", "knights_knaves", "countdown", "gsm_symbolic"):
        task = get_task(f"gym:{name}")
        problems = task.problems("test", 5, 0)
        assert problems == task.problems("test", 9, 0)[:5]
        prompts = {p.prompt for p in problems}
        assert len(prompts) == 5
        assert prompts.isdisjoint(p.prompt for p in task.problems("train", 5, 0))
        for problem in problems:
            assert json.loads(json.dumps(problem.data)) == problem.data
            text = f"Because so.\n\n<answer>{problem.answer}</answer>"
            assert is_correct(problem, task.extract(text))
            assert not is_correct(problem, "nothing of that kind")
            assert not is_correct(problem, None)


def test_settings_of_a_generator_follow_its_name():
    pytest.importorskip("reasoning_gym")
    task = get_task("gym:chain_sum,min_terms=3,max_terms=3,max_digits=1")
    for problem in task.problems("test", 20, 0):
        assert len(problem.prompt.partition(": ")[2].split()) == 6
    with pytest.raises(UnknownNameError, match="generator of reasoning-gym"):
        gym_task("gym:nothing")
    with pytest.raises(ConfigurationError, match="refuses the settings"):
        gym_task("gym:chain_sum,terms=3")
    with pytest.raises(ConfigurationError, match="refuses the settings"):
        gym_task("gym:chain_sum,min_terms=5,max_terms=3")
    with pytest.raises(ConfigurationError, match="is not written NAME=VALUE"):
        gym_task("gym:chain_sum,min_terms")
    with pytest.raises(ConfigurationError, match="'uncles' is not a valid TaskType"):
        gym_task('gym:aiw,task_types=["uncles"]')
    narrow = gym_task("gym:chain_sum,min_terms=2,max_terms=2,max_digits=1")
    # Of 162 sums of two digits some occur again among the first 150 of the generator.
    problems = narrow.problems("test", 150, 0)
    assert len({p.prompt for p in problems}) == 150
    assert problems[:100] == narrow.problems("test", 100, 0)
    with pytest.raises(ConfigurationError, match="different problems"):
        narrow.problems("test", 1000, 0)


def test_settings_of_a_generator_may_be_lists():
    pytest.importorskip("reasoning_gym")
    name = 'gym:aiw,task_types=["siblings","friends"],task_type_weights=[0.5,0.5]'
    _, settings = parse_gym_name(f"{name},max_entities=4,note=a b")
    assert settings == {
        "task_types": ["siblings", "friends"],
        "task_type_weights": [0.5, 0.5],
        "max_entities": 4,
        "note": "a b",
    }
    problem, *_ = get_task(name).problems("test", 5, 0)
    assert is_correct(problem, problem.answer)


def test_a_setting_of_a_generator_may_be_a_member_of_an_enumeration():
    pytest.importorskip("reasoning_gym")
    task = get_task("gym:word_sorting,transformation=lowercase,max_words=3")
    problem, *_ = task.problems("test", 5, 0)
    assert problem.data["settings"]["transformation"] == "lowercase"
    assert problem.answer == problem.answer.lower()
    assert is_correct(problem, problem.answer)
    with pytest.raises(ConfigurationError, match="'small' is not a valid TextTrans"):
        gym_task("gym:word_sorting,transformation=small")


def test_blanks_around_a_value_are_no_part_of_it():
    name = 'gym:some,a= 2,b=[1, 2] ,c= ["+","-"],d= two words ,e=3 4,f=5 '
    assert parse_gym_name(name)[1] == {
        "a": 2,
        "b": [1, 2],
        "c": ["+", "-"],
        "d": "two words",
        "e": "3 4",
        "f": 5,
    }


def test_champ_is_read_from_the_installed_package(tmp_path, monkeypatch):
    raw = "@@C(10, 5)@@, or equivalently @@252@@"
    record = {"_text": "How many?", "_raw_answer": raw, "category": "Sequence"}
    path = tmp_path / "v0.json"
    path.write_text(json.dumps({"problems": {f"P_{i}": record for i in range(270)}}))
    monkeypatch.setattr(champ, "champ_file", lambda: path)
    problems = get_task("champ").problems("test", None, 0)
    assert len(problems) == 270
    assert problems[0].answer == "C(10, 5)"
    with GradingPool(get_grader("math")) as pool:
        answers = [r"\boxed{252}", "The answer is C(10,5).", "The answer is 253."]
        grades = pool.grade([(problems[0], extract_answer(text)) for text in answers])
    assert [grade.correct for grade in grades] == [True, True, False]
    del record["_raw_answer"]
    path.write_text(json.dumps({"problems": {f"P_{i}": record for i in range(270)}}))
    with pytest.raises(ConfigurationError, match="P_0 lacks _raw_answer"):
        get_task("champ")
    path.write_text(json.dumps({"problems": {"P_1": record}}))
    with pytest.raises(ConfigurationError, match="does not contain the 270 problems"):
        get_task("champ")


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(UnknownNameError) as caught:
        get_task("sudoku")
    for name in ("chain", "champ", "gsm8k", "gym:NAME"):
        assert name in str(caught.value)
