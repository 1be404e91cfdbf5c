"""The table of mistakes is continued where it stopped, by the same code alone."""

import json

import pytest

from tsi.experiments.proofs import mutations
from tsi.experiments.proofs.mutations import Verdict, main

NAMES = ("smc", "greedy")


@pytest.fixture
def runs(monkeypatch):
    runs = []

    def apply_mistake(name, mistake, num_runs):
        runs.append((name, mistake))
        if name == "greedy":
            return Verdict(None, "one particle")
        return Verdict(None if mistake == "late reward" else "evidence, smooth")

    monkeypatch.setattr(mutations, "apply_mistake", apply_mistake)
    monkeypatch.setattr(mutations, "MISTAKES", {"late reward": None, "clipped": None})
    return runs


def test_a_mistake_that_is_missed_is_named_and_fails(runs, tmp_path, capsys):
    assert main(tmp_path, 10, NAMES) == 1
    assert "1 missed: smc: late reward" in capsys.readouterr().out
    table = (tmp_path / "mutations.md").read_text()
    assert "MISSED" in table
    assert "(one particle)" in table
    assert len(runs) == len(NAMES) * 3


def test_rows_of_the_same_code_are_not_computed_again(runs, tmp_path, monkeypatch):
    main(tmp_path, 10, NAMES[:1])
    runs.clear()
    assert main(tmp_path, 10, NAMES) == 1
    assert {name for name, _ in runs} == {"greedy"}
    runs.clear()
    monkeypatch.setattr(mutations, "versions", lambda: {"code": "another"})
    main(tmp_path, 10, NAMES)
    assert len(runs) == len(NAMES) * 3
    runs.clear()
    monkeypatch.setattr(mutations, "MISTAKES", {"clipped": None})
    main(tmp_path, 10, NAMES)
    assert len(runs) == len(NAMES) * 2
    rows = (tmp_path / "mutations.jsonl").read_text().splitlines()
    assert {len(json.loads(row)["cells"]) for row in rows} == {2, 3}
