"""Versions of the software and digests of the model files of a row of results."""

import hashlib
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def versions() -> dict[str, Any]:
    """Versions of the package, its commit, JAX and the platform."""
    return {
        "tsi": metadata.version("tsi"),
        "commit": commit(),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
    }


def commit() -> str | None:
    """Commit of the package's checkout, with "+" if files differ from it."""
    here = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", "..")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def sha256_of(path: Path) -> str:
    """SHA-256 of a model's file, or of all files of its folder and their names."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*"))
    for file in files:
        if file.is_file():
            if path.is_dir():
                digest.update(file.relative_to(path).as_posix().encode() + b"\0")
            with file.open("rb") as content:
                while chunk := content.read(2**20):
                    digest.update(chunk)
    return digest.hexdigest()
