"""The tables of proofs are continued where they stopped, only by the same code."""

import json

import pytest

from tsi.experiments.proofs import conformance_table, mutations
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


def test_conformance_of_the_same_code_is_not_computed_again(tmp_path, monkeypatch):
    runs = []

    def check_claim(name, claim, num_runs):
        runs.append(name)
        row = {"sampler": name, "target": "none", "num_particles": 4, "numbers": {}}
        return row | {"others_kept": 1, "others": 1, "passed": True, "seconds": 0.0}

    monkeypatch.setattr(conformance_table, "check_claim", check_claim)
    claims = {name: conformance_table.CLAIMS[name] for name in NAMES}
    monkeypatch.setattr(conformance_table, "CLAIMS", claims)
    conformance_table.main(tmp_path, 10)
    conformance_table.main(tmp_path, 10)
    assert runs == list(NAMES)
    conformance_table.main(tmp_path, 20)
    monkeypatch.setattr(conformance_table, "versions", lambda: {"code": "another"})
    conformance_table.main(tmp_path, 10)
    assert runs == [*NAMES] * 3
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {name}" in table for name in NAMES)
