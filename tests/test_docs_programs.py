"""Programs of the pages whose output depends on files or on a server."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PROGRAMS = re.compile(r"```py\n(.*?)```", re.DOTALL)


def programs_of(page):
    return PROGRAMS.findall((DOCS / page).read_text())


def test_every_page_with_such_a_program_has_a_test():
    pages = {page.name for page in DOCS.rglob("*.md") if programs_of(page)}
    assert pages == {"kept_particles.md", "served.md", "serve.md"}


def test_rows_and_particles_are_read_as_the_page_says(tmp_path, monkeypatch, capsys):
    pandas = pytest.importorskip("pandas")
    from fake_world import fake_world

    from tsi.experiments.plans.plan import make_plan
    from tsi.experiments.scaling.scale import run_plan

    monkeypatch.chdir(tmp_path)
    path = Path("results/chain/rows.jsonl")
    path.parent.mkdir(parents=True)
    run_plan(make_plan(["smc", "greedy"], [1, 2], 1), fake_world(3), path)
    read_frame, join, print_texts = programs_of("kept_particles.md")
    names = {}
    exec(read_frame, names)
    assert len(names["frame"]) == 9
    exec(join, names)
    joined = names["rows"]
    assert isinstance(joined, pandas.DataFrame)
    assert sorted(joined.expected_correct) == sorted(
        names["to_frame"](names["read_rows"](path)).expected_correct
    )
    assert {"settings", "method", "budget"} <= {*joined.columns}
    capsys.readouterr()
    exec(print_texts, names)
    assert len(capsys.readouterr().out.splitlines()) >= 6


def test_an_engine_over_a_server_is_made_as_the_page_says():
    from scripted_server import ScriptedServer

    (program,) = programs_of("served.md")
    with ScriptedServer("vLLM") as server:
        # Its tokenizer has no words for a judge's answers, and few positions.
        program = program.replace("http://localhost:8000", server.url)
        program = program.replace('"judge"', '"none"').replace("2048", "64")
        names = {}
        exec(program, names)
    (result,) = names["results"]
    assert len(result.particles.texts) == 16
    assert result.problem_id == "a"


def test_the_openai_package_is_used_as_the_page_says():
    pytest.importorskip("openai")
    from serving import MODEL, Served, listening

    (program,) = programs_of("serve.md")
    with listening(Served()) as (port, _):
        program = program.replace(":8000", f":{port}").replace("chain-policy", MODEL)
        names = {}
        exec(program, names)
    assert names["reply"].model_extra["tsi"]["answer_posterior"]
