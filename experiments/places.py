"""Where results go: a folder of this machine, or one of any fsspec file system.

A place with a scheme, such as ``gs://bucket/x`` or ``s3://bucket/x``, is a string, and
all others are paths. What is written to the former is written as whole objects.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsi.errors import ConfigurationError, ResultsError

Place = Path | str
"""A path, or an address with a scheme."""


def place_of(text: str) -> Place:
    """A place as a user writes it.

    Raises:
        ConfigurationError: there is no file system for its scheme.
    """
    if "://" not in text:
        return Path(text)
    file_system(text)
    return text.rstrip("/")


def inside(folder: Place, name: str) -> Place:
    """A file of a folder."""
    return f"{folder}/{name}" if isinstance(folder, str) else folder / name


def file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and what the address is there.

    Raises:
        ConfigurationError: fsspec does not know it, or lacks a package for it.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f"{address} cannot be used: {one_line(error)}. Install the package for it, "
            "such as gcsfs for gs:// or s3fs for s3://, or choose another place."
        ) from error


@contextlib.contextmanager
def refusals(address: str) -> Iterator[None]:
    """Turn what a file system refuses into a sentence.

    Raises:
        ResultsError: see above.
    """
    try:
        yield
    except (ConfigurationError, ResultsError):
        raise
    # Each file system has errors of its own.
    except Exception as error:
        raise ResultsError(
            f"{address} cannot be read or written ({one_line(error)}); what was "
            "written before is kept. Check the address and the rights to it, then run "
            "the same command again."
        ) from error


@contextlib.contextmanager
def local_folder(folder: Place) -> Iterator[Path]:
    """A folder of this machine, whose files go to the place when the block ends.

    Raises:
        ResultsError: the file system refuses a file.
    """
    if isinstance(folder, Path):
        yield folder
        return
    system, root = file_system(folder)
    with tempfile.TemporaryDirectory(prefix="tsi-report-") as scratch:
        yield Path(scratch)
        with refusals(folder):
            system.makedirs(root, exist_ok=True)
            for path in sorted(Path(scratch).iterdir()):
                system.pipe_file(f"{root}/{path.name}", path.read_bytes())


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its type where it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
