"""What software and which files made a row of results."""

import hashlib
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def versions() -> dict[str, Any]:
    """What software made a row."""
    return {
        "tsi": metadata.version("tsi"),
        "commit": commit(),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
    }


def commit() -> str | None:
    """Commit of the checkout that the package lies in, with "+" if files differ."""
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
    """Digest of a model's file, or of all files of its folder with their names."""
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
