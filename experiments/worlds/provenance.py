"""Versions of the software and digests of the model files of a row of results."""

import functools
import hashlib
import json
import os
import subprocess
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import jax

from tsi.models.tokens.tokenizer import Tokenizer

PACKAGES = ("tsi", "tsi.models", "tsi.samplers", "tsi.experiments")


def versions() -> dict[str, Any]:
    """Versions of the package, its commit and code, JAX, and the kind of device."""
    return {
        "tsi": metadata.version("tsi"),
        "commit": commit(),
        "code": code_digest(),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "device_kind": jax.local_devices()[0].device_kind,
    }


def commit(package: Path | None = None) -> str | None:
    """Commit of the package's checkout, with "+" if files differ from it.

    Args:
        package: folder of the experiments; by default this package's own.

    Returns: None if the package is not in a checkout of its own repository. An
        enclosing repository, such as that of an environment, has other commits.
    """
    package_folder = package or Path(__file__).resolve().parents[1]
    # A hook of another repository sets these, and git would follow them.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package_folder), *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
            env=environment,
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package_folder.parent:
            return None
        git("ls-files", "--error-unmatch", "worlds/provenance.py")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", "..")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def code_digest() -> str:
    """Hash of the package's own Python files, without tests and documents.

    It is the same for a checkout and an installation of the same files.
    """
    files: dict[str, Path] = {}
    for name in PACKAGES:
        # The namespaces of a checkout are links, which rglob() does not follow.
        folder = Path(str(import_module(name).__file__)).resolve().parent
        for path in folder.rglob("*.py"):
            inner = path.relative_to(folder).as_posix()
            files[f"{name.replace('.', '/')}/{inner}"] = path
    digest = hashlib.sha256()
    for inner, path in sorted(files.items()):
        digest.update(inner.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def sha256_of_tokenizer(tokenizer: Tokenizer) -> str:
    """SHA-256 of what a tokenizer does to prompts, wherever its files are."""
    parts = [
        tokenizer.backend.to_str(),
        tokenizer.chat_template,
        tokenizer.bos_id,
        tokenizer.eos_ids,
        tokenizer.add_bos,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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
