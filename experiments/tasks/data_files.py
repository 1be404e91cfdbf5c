"""Files of published benchmarks: fetched once, checked against a hash, kept in a cache.

A file that the user has put into the cache folder is used without a download, so that a
machine without network can run a benchmark. Files of the Hugging Face hub are fetched
by its own client, with the user's token and mirror; others by HTTPS, from a commit that
is named in the address.
"""

import hashlib
import os
import socket
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

from tsi.errors import DownloadError
from tsi.models.files import check_regular, describe_error
from tsi.models.loading.catalogue import cache_directory

MAX_BYTES = 2**28
SECONDS = 60.0
CONNECT_SECONDS = 5.0


class HubFile(NamedTuple):
    """A file of a dataset on the Hugging Face hub.

    Attributes:
        repo: the id, ``organisation/name``.
        path: in the repository.
        revision: a commit, so that the file does not change.
    """

    repo: str
    path: str
    revision: str


class WebFile(NamedTuple):
    """A file at an address that does not change.

    Attributes:
        url: with the commit in it.
        sha256: of the content; None if it is not known.
    """

    url: str
    sha256: str | None = None


def find_file(name: str, source: HubFile | WebFile) -> Path:
    """The file of a benchmark, which is fetched unless it is on this machine.

    Args:
        name: of the benchmark, and of its folder in the cache.
        source: where the file comes from.

    Raises:
        DownloadError: it cannot be fetched, or is another file than expected; the
            message says where to put the file.
    """
    path = local_path(name, source)
    if path.is_file():
        return path
    if isinstance(source, HubFile):
        return _hub_file(name, source)
    return _web_file(name, source)


def local_path(name: str, source: HubFile | WebFile) -> Path:
    """Where a user may put the file."""
    address = source.path if isinstance(source, HubFile) else source.url
    return cache_directory() / "datasets" / name / address.rpartition("/")[2]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hub_file(name: str, source: HubFile) -> Path:
    import huggingface_hub

    repo, path, revision = source
    check_reachable(name, source)
    try:
        return Path(
            huggingface_hub.hf_hub_download(
                repo, path, repo_type="dataset", revision=revision
            )
        )
    # The client passes on the errors of its HTTP library, whichever that is.
    except Exception as error:
        page = f"https://huggingface.co/datasets/{source.repo}"
        if type(error).__name__ == "GatedRepoError":
            reason = (
                f"The hub gives {source.repo} only to users who have accepted its "
                f"terms. Accept them at {page}, and log in with `hf auth login` or set "
                "HF_TOKEN"
            )
        else:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = f"{source.repo} could not be fetched from the hub ({first})"
        raise DownloadError(
            f"{reason}; or put {source.path} of {page} at {local_path(name, source)}."
        ) from error


def check_reachable(name: str, source: HubFile) -> None:
    """Refuse a hub that cannot be reached, before its client tries again and again.

    A file in the client's own cache needs no hub, nor does the client's offline mode.

    Raises:
        DownloadError: says where to put the file.
    """
    import huggingface_hub
    from huggingface_hub import constants

    repo, path, revision = source
    cached = huggingface_hub.try_to_load_from_cache(
        repo, path, repo_type="dataset", revision=revision
    )
    # A proxy is the client's matter: it may reach what a socket does not.
    if isinstance(cached, str) or constants.HF_HUB_OFFLINE or getproxies():
        return
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise DownloadError(
            f"{repo} could not be fetched, because {address.hostname} cannot be "
            f"reached ({error}); or put {path} of "
            f"https://huggingface.co/datasets/{repo} at {local_path(name, source)}."
        ) from error


def _web_file(name: str, source: WebFile) -> Path:
    path = local_path(name, source)
    by_hand = f"Or fetch {source.url} elsewhere and put it at {path}."
    try:
        with urllib.request.urlopen(source.url, timeout=SECONDS) as response:
            content = response.read(MAX_BYTES + 1)
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise DownloadError(
            f"The problems of {name} could not be fetched ({error}). {by_hand}"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if len(content) > MAX_BYTES or (source.sha256 or digest) != digest:
        raise DownloadError(
            f"{source.url} is another file than the one that {name} names: its SHA-256 "
            f"is {digest}, not {source.sha256}. {by_hand}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A rename within the folder: readers see the whole file or none.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    except OSError as error:
        raise DownloadError(describe_error(error, path)) from error
    return path
