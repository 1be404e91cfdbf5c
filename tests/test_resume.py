"""Which runs may continue a file of rows, and what the user is told."""

import json
import os
import subprocess

import pytest
from fake_world import fake_world

from tsi.errors import ConfigurationError, ResultsError
from tsi.experiments.cli import main
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.rows.results import ResultsFile, known_cells, read_rows
from tsi.experiments.scaling.scale import run_plan
from tsi.experiments.worlds import provenance
from tsi.experiments.worlds.provenance import code_digest, commit

SETTINGS = {
    "task": "chain",
    "policy": "models/p",
    "policy_sha256": "aa",
    "reward": "value:models/v",
    "reward_sha256": "bb",
    "tsi": "0.1.0",
    "jax": "0.10.2",
    "platform": "cpu",
    "device_kind": "cpu",
    "commit": "abc",
    "code": "123",
}
CELLS = [Cell("smc", 1, 0, problem) for problem in range(4)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, CELLS[:2])
    return path


def write(path, cells, *, continue_anyway=False, **settings):
    options = {"continue_anyway": continue_anyway}
    with ResultsFile(path, SETTINGS | settings, **options) as results:
        results.append((cell, {"correct": True}) for cell in cells)


@pytest.mark.parametrize(
    "same",
    [
        {"policy": "/home/me/models/p"},
        {"reward": "value:../models/v"},
        {"commit": "def"},
        {"commit": None},
    ],
)
def test_the_same_model_at_another_path_is_continued(path, same, capsys):
    write(path, CELLS[2:], **same)
    assert capsys.readouterr().err == ""
    assert [row["settings"] for row in read_rows(path).values()] == (
        [SETTINGS] * 2 + [SETTINGS | same] * 2
    )


@pytest.mark.parametrize(
    "other",
    [
        {"policy_sha256": "cc"},
        {"policy": "p2", "policy_sha256": "cc"},
        # Another kind of reward with the same file.
        {"reward": "prm:models/v"},
        {"reward": None},
        {"reward_sha256": None},
        {"task": "countdown"},
        {"top_k": 5},
    ],
)
def test_another_model_or_setting_is_refused_always(path, other):
    before = path.read_bytes()
    for anyway in (False, True):
        with pytest.raises(ResultsError, match="other settings: ") as refused:
            write(path, CELLS[2:], continue_anyway=anyway, **other)
        assert all(name in str(refused.value) for name in other)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "other",
    [
        {"jax": "0.11.0"},
        {"tsi": "0.2.0"},
        {"platform": "gpu", "device_kind": "NVIDIA H200"},
    ],
)
def test_other_software_or_devices_continue_only_if_the_user_says_so(
    path, other, capsys
):
    before = path.read_bytes()
    attempts = (
        lambda: write(path, CELLS[2:], **other),
        lambda: known_cells(path, SETTINGS | other),
    )
    for attempt in attempts:
        with pytest.raises(ResultsError, match="--continue-anyway") as refused:
            attempt()
        for name, value in other.items():
            told = f"{name} is {SETTINGS[name]!r} there, {value!r} now"
            assert told in str(refused.value)
    assert path.read_bytes() == before
    assert known_cells(path, SETTINGS | other, continue_anyway=True) == set(CELLS[:2])
    write(path, CELLS[2:], continue_anyway=True, **other)
    error = capsys.readouterr().err
    assert "2 rows were made with other software: " in error
    assert error.count("\n") == 1
    assert [row["settings"] for row in read_rows(path).values()] == (
        [SETTINGS] * 2 + [SETTINGS | other] * 2
    )


def test_other_code_is_said_once_and_recorded(path, capsys):
    write(path, CELLS[2:3], code="456")
    write(path, CELLS[3:], code="456")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    for line in told:
        assert "2 rows were made with other software: code is '123' there" in line
    codes = [row["settings"]["code"] for row in read_rows(path).values()]
    assert codes == ["123", "123", "456", "456"]


def test_settings_that_are_no_json_are_a_sentence(tmp_path):
    for value in (float("nan"), {1, 2}, object()):
        with pytest.raises(ConfigurationError, match="Settings are recorded as JSON"):
            ResultsFile(tmp_path / "rows.jsonl", {"a": value})
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.long
def test_a_run_is_continued_from_another_folder(tmp_path, monkeypatch, capsys):
    """The same file of the embedded policy, spelled in three ways."""
    from tsi.models.loading import catalogue

    (place,) = [p for n, _, p in catalogue.describe() if n == "chain-policy"]
    few = ["scale", "--methods", "greedy", "--budgets", "1", "--no-progress"]
    few += ["--out", str(tmp_path / "out"), "--keep", "none", "--num-problems"]
    monkeypatch.chdir(tmp_path)
    os.symlink(place, "policy")
    assert main([*few, "1", "--policy", str(place)]) == 0
    assert main([*few, "2", "--policy", "policy"]) == 0
    monkeypatch.chdir("/")
    again = [*few, "3", "--policy", os.path.relpath(tmp_path / "policy", "/")]
    assert main(again) == 0
    monkeypatch.setattr("jax.__version__", "0.99")
    capsys.readouterr()
    assert main([*few, "4", "--policy", str(place)]) == 2
    assert "'0.99' now" in capsys.readouterr().err
    assert main([*few, "4", "--policy", str(place), "--continue-anyway"]) == 0
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    assert [row["settings"]["jax"] == "0.99" for row in rows.values()].count(True) == 1
    assert len(rows) == 4


def test_rows_of_another_problem_with_the_same_id_are_refused(tmp_path):
    path, plan, world = tmp_path / "rows", make_plan(["smc"], [2], 1), fake_world(3)
    run_plan(plan, world, path, progress=False)
    before = path.read_bytes()
    for change in ({"prompt": "7+7="}, {"answer": "7"}):
        problem = world.problems[1]._replace(**change)
        problems = [world.problems[0], problem, world.problems[2]]
        (name,) = change
        with pytest.raises(ResultsError, match=f"another problem 1: its {name} is "):
            run_plan(plan, world._replace(problems=problems), path, progress=False)
    assert path.read_bytes() == before


def test_rows_that_a_plan_does_not_ask_for_are_kept_and_named(tmp_path, capsys):
    path = tmp_path / "rows"
    run_plan(
        make_plan(["smc", "rebase"], [2, 4], 2), fake_world(4), path, progress=False
    )
    assert capsys.readouterr().err == ""
    smaller = make_plan(["smc"], [2], 1)
    rows = run_plan(smaller, fake_world(3), path, progress=False)
    told = capsys.readouterr().err
    assert "methods rebase; budgets 4; seeds 1; problems 3" in told
    assert len(rows) == 2 * 2 * 2 * 4
    # More of everything is no change that needs a word.
    larger = make_plan(["smc", "rebase", "quest"], [2, 4, 8], 3)
    run_plan(larger, fake_world(5), path, progress=False)
    assert capsys.readouterr().err == ""


def git(folder, *arguments):
    options = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", *options, *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A repository with a file of the package."""
    package = tmp_path / "repo" / "experiments"
    (package / "worlds").mkdir(parents=True)
    (package / "worlds" / "provenance.py").write_text("a = 1\n")
    git(tmp_path / "repo", "init")
    git(tmp_path / "repo", "add", ".")
    git(tmp_path / "repo", "commit", "-m", "a")
    return package


def test_the_commit_is_that_of_the_package_alone(checkout, tmp_path, monkeypatch):
    first = commit(checkout)
    assert len(first) == 12
    (checkout / "worlds" / "provenance.py").write_text("a = 2\n")
    assert commit(checkout) == first + "+"
    # A repository around the package, as of an environment in a project.
    inner = tmp_path / "repo" / "env" / "site-packages" / "tsi" / "experiments"
    (inner / "worlds").mkdir(parents=True)
    (inner / "worlds" / "provenance.py").write_text("a = 1\n")
    assert commit(inner) is None
    git(tmp_path / "repo", "add", ".")
    git(tmp_path / "repo", "commit", "-m", "b")
    assert commit(inner) is None
    # A hook of another repository tells git where that one is.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "repo" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "repo"))
    assert commit(inner) is None
    assert commit(tmp_path / "nowhere" / "experiments") is None


def test_the_digest_of_the_code_is_that_of_its_files(tmp_path, monkeypatch):
    packages = {}
    for name in provenance.PACKAGES:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        packages[name] = type("Package", (), {"__file__": str(folder / "__init__.py")})
    monkeypatch.setattr(provenance, "import_module", packages.__getitem__)
    digests = []

    def digest():
        digests.append(code_digest.__wrapped__())
        return digests[-1]

    first = digest()
    (tmp_path / "tsi.samplers" / "README.md").write_text("text")
    assert digest() == first
    (tmp_path / "tsi.samplers" / "smc.py").write_text("a = 1")
    digest()
    (tmp_path / "tsi.samplers" / "smc.py").rename(tmp_path / "tsi.models" / "smc.py")
    digest()
    (tmp_path / "tsi.models" / "smc.py").write_text("a = 2")
    digest()
    assert len(set(digests)) == 4
    # In an installation, the other packages are folders of the first.
    for name in provenance.PACKAGES[1:]:
        target = tmp_path / "tsi" / name.removeprefix("tsi.")
        (tmp_path / name).rename(target)
        packages[name].__file__ = str(target / "__init__.py")
    assert digest() == digests[-2]


def test_versions_are_json():
    assert json.loads(json.dumps(provenance.versions())) == provenance.versions()
