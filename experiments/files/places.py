"""Where results are written: a local folder, or one of any fsspec file system.

A place is a path or an address. An address has a scheme, such as ``gs://bucket/x`` or
``s3://bucket/x``, and is a string; files there are written as whole objects.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsi.errors import ConfigurationError, ResultsError

Place = Path | str
"""A path, or an address with a scheme."""

HOSTLESS = frozenset({"file", "local", "memory", "hdfs"})
"""Schemes whose addresses need no host or bucket, as in ``file:///folder``."""
ADDRESS = re.compile(r"([^/]*)://(.*)", re.DOTALL)
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)


def parse_place(text: str) -> Place:
    """Parse a path or an address.

    Raises:
        ConfigurationError: there is no file system for the scheme, or the address has
            no bucket or host.
    """
    address = ADDRESS.fullmatch(text)
    if address is None:
        _check_path(text)
        return Path(text)
    scheme, rest = address[1].rpartition("::")[2], address[2]
    # For example if a shell variable is empty: gs://$BUCKET/run.
    is_hostless = rest.startswith("/") and scheme not in HOSTLESS
    if not scheme or not rest.strip("/") or is_hostless:
        raise ConfigurationError(
            f"{text} has no {'bucket or host' if scheme else 'file system'}; write "
            "an address such as gs://bucket/folder, or a path."
        )
    file_system(text)
    return text.rstrip("/")


def _check_path(text: str) -> None:
    """Refuse a path that looks like an address, as in ``gs:/bucket/folder``."""
    match = SCHEME.fullmatch(text)
    if match is None:
        return
    import fsspec

    scheme, rest = match[1], match[2]
    if rest.startswith("/") or scheme in fsspec.available_protocols():
        raise ConfigurationError(
            f"{text} is neither an address nor a plain path; write "
            f"{scheme}://{rest.lstrip('/')} for an address, or ./{text} for a folder "
            "of this name."
        )


def join_place(folder: Place, name: str) -> Place:
    """The place of a file in a folder."""
    return f"{folder}/{name}" if isinstance(folder, str) else folder / name


def file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path within it.

    Raises:
        ConfigurationError: fsspec does not know the file system, or lacks a package,
            rights or arguments for it.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    # Every file system has its own errors, also for arguments and credentials.
    except Exception as error:
        raise ConfigurationError(
            f"{address} cannot be used: {one_line(error)}. Install the package for it, "
            "such as gcsfs for gs:// or s3fs for s3://, provide its credentials, or "
            "choose another place."
        ) from error


@contextlib.contextmanager
def typed_errors(address: str) -> Iterator[None]:
    """Turn the errors of a file system into a `ResultsError`.

    Raises:
        ResultsError: the file system failed.
    """
    try:
        yield
    except (ConfigurationError, ResultsError):
        raise
    # Every file system has its own errors.
    except Exception as error:
        raise ResultsError(
            f"{address} cannot be read or written ({one_line(error)}); what was "
            "written before is kept. Check the address and the rights to it, then run "
            "the same command again."
        ) from error


@contextlib.contextmanager
def local_folder(folder: Place) -> Iterator[Path]:
    """A local folder, whose files are copied to the place when the block ends.

    Raises:
        ResultsError: the file system failed.
    """
    if isinstance(folder, Path):
        yield folder
        return
    system, root = file_system(folder)
    with tempfile.TemporaryDirectory(prefix="tsi-report-") as scratch:
        yield Path(scratch)
        with typed_errors(folder):
            system.makedirs(root, exist_ok=True)
            for path in sorted(Path(scratch).iterdir()):
                system.pipe_file(f"{root}/{path.name}", path.read_bytes())


def one_line(error: BaseException) -> str:
    """The message of an error on one line, or its type if it has no message."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
