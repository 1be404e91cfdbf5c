"""A run over servers is continued over another server of the same model."""

import pytest
from scripted_server import ScriptedServer
from small_checkpoints import bpe_tokenizer

from tsi.errors import ResultsError
from tsi.experiments.plans.cell import Cell
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.rows.results import ResultsFile, read_rows
from tsi.experiments.worlds.chosen_task import choose_questions
from tsi.experiments.worlds.provenance import sha256_of_tokenizer
from tsi.experiments.worlds.served_world import Served, served_world
from tsi.problem import Problem

CELLS = [Cell("smc", 1, 0, problem) for problem in range(2)]


def settings_over(**changes):
    """The settings of a run over a new server, at another address or a given port."""
    server = ScriptedServer("llama.cpp")
    server.port = changes.get("port", 0)
    with server:
        right, build = server.answer, changes.get("build", "b1-test")

        def answer(path, body):
            found = right(path, body)
            if path == "/props":
                found["build_info"] = build
            if path == "/v1/models":
                found["data"][0]["id"] = changes.get("model", "tiny")
            return found

        server.answer = answer
        server.ignores_seeds = changes.get("ignores_seeds", False)
        task = choose_questions(ProblemOptions(), "1", has_policy=True)
        problems = [Problem(0, "1", "")]
        world = served_world(task, problems, Served(server.url), reward="none")
        world.engine.policy.client.close()
        return world.settings


def write(path, settings, cell, **options):
    with ResultsFile(path, settings, **options) as results:
        results.append([(cell, {"correct": True})])


@pytest.mark.parametrize("changed", ["server_address", "server"])
def test_another_address_or_build_continues_if_the_user_says_so(tmp_path, changed):
    path, first = tmp_path / "rows.jsonl", settings_over()
    write(path, first, CELLS[0])
    port = int(first["server_address"].rpartition(":")[2])
    is_same_place = changed == "server"
    other = settings_over(build="b2", port=port) if is_same_place else settings_over()
    assert {name for name in first if other[name] != first[name]} == {changed}
    with pytest.raises(ResultsError, match=rf"{changed} is .*--continue-anyway"):
        write(path, other, CELLS[1])
    write(path, other, CELLS[1], continue_anyway=True)
    found = [row["settings"][changed] for row in read_rows(path).values()]
    assert found == [first[changed], other[changed]]


def test_another_model_is_refused_always(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, settings_over(), CELLS[0])
    with pytest.raises(ResultsError, match="policy is 'served:tiny' there"):
        write(path, settings_over(model="big"), CELLS[1], continue_anyway=True)


def test_measured_seeds_are_said_and_recorded(tmp_path, capsys):
    path, first = tmp_path / "rows.jsonl", settings_over()
    write(path, first, CELLS[0])
    other = settings_over(ignores_seeds=True)["server_seeds"]
    assert other is not first["server_seeds"]
    write(path, first | {"server_seeds": other}, CELLS[1])
    assert "server_seeds is True there, False now" in capsys.readouterr().err
    found = [row["settings"]["server_seeds"] for row in read_rows(path).values()]
    assert found == [True, False]


def test_a_tokenizer_is_known_by_what_it_does(tmp_path):
    path, settings = tmp_path / "rows.jsonl", settings_over()
    tokenizer, other = bpe_tokenizer(), bpe_tokenizer()
    other.chat_template = "{{ messages[0].content }}"

    def settings_with_tokenizer(place, tokenizer):
        digest = sha256_of_tokenizer(tokenizer)
        return settings | {
            "served_tokenizer": place,
            "served_tokenizer_sha256": digest,
        }

    assert "served_tokenizer_sha256" not in settings
    write(path, settings_with_tokenizer("/a/t", tokenizer), CELLS[0])
    write(path, settings_with_tokenizer("b", tokenizer), CELLS[1])
    with pytest.raises(ResultsError, match="served_tokenizer_sha256 is"):
        write(path, settings_with_tokenizer("b", other), CELLS[1])
