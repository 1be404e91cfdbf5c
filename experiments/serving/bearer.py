"""The token that requests must carry, and the hosts by which they may name a server."""

import hashlib
import hmac
import os
from pathlib import Path

from tsi.errors import ConfigurationError
from tsi.experiments.serving.limits import LOOPBACK

VARIABLE = "TSI_SERVE_TOKEN"
MAX_TOKEN = 4096


class Bearer:
    """A token, of which only the hash is kept.

    Args:
        token: as clients send it.
    """

    def __init__(self, token: str) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()

    def allows(self, authorization: str) -> bool:
        """Whether a header ``Authorization`` has the token.

        The time of the comparison does not depend on where the two differ.

        >>> Bearer("secret").allows("Bearer secret"), Bearer("secret").allows("secret")
        (True, False)
        """
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "replace")).digest()
        return hmac.compare_digest(digest, self._digest) and scheme.lower() == "bearer"


def read_bearer(file: Path | None) -> Bearer | None:
    """The token of a file or of the environment; None if there is neither.

    The variable is removed, so that no process that is started later inherits it.

    Args:
        file: has the token and perhaps a line end. It may be a pipe, which is read to
            its end, so that a shell's `<(command)` can give the token.

    Raises:
        ConfigurationError: both are given, or the token is empty or not plain.
    """
    variable = os.environ.pop(VARIABLE, None)
    if file is None and variable is None:
        return None
    if file is not None and variable is not None:
        raise ConfigurationError(
            f"Both {VARIABLE} and --token-file give a token; use one of them."
        )
    source = VARIABLE
    if file is not None:
        source = str(file)
        with file.open("rb") as content:
            variable = content.read(MAX_TOKEN + 2).decode("utf-8", "replace")
    token = (variable or "").strip()
    is_plain = token.isascii() and token.isprintable() and " " not in token
    if not token or not is_plain or len(token) > MAX_TOKEN:
        raise ConfigurationError(
            f"The token of {source} must have 1 to {MAX_TOKEN} printable ASCII "
            "characters without spaces."
        )
    return Bearer(token)


def hosts_of(host: str) -> frozenset[str] | None:
    """The names by which requests may address a server; None for any.

    A page in a browser can reach a server on the same machine under another host name.
    A server that listens on the loopback interface only therefore refuses others.

    >>> "localhost" in hosts_of("127.0.0.1"), hosts_of("0.0.0.0")
    (True, None)
    """
    return frozenset(LOOPBACK) if host in LOOPBACK else None


def host_name(header: str) -> str:
    """The host of a header ``Host``, without the port.

    >>> host_name("localhost:8000"), host_name("[::1]:8000")
    ('localhost', '::1')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()
