"""The address of a server and of one of its models: ``URL#MODEL``."""

import os
from typing import NamedTuple
from urllib.parse import urlsplit

from tsi.errors import ConfigurationError

KEY_VARIABLE = "TSI_API_KEY"
"""Environment variable with the key that is sent as a bearer token."""


class Address(NamedTuple):
    """A server and one of its models.

    Attributes:
        url: without a slash or ``/v1`` at its end.
        model: name of the model; None for the only one, or the first.
    """

    url: str
    model: str | None = None

    def __str__(self) -> str:
        return self.url if self.model is None else f"{self.url}#{self.model}"


def parse_address(text: str) -> Address:
    """A server's address from ``URL#MODEL`` or ``URL``.

    Raises:
        ConfigurationError: the text is not an address, or contains a password.

    >>> parse_address("http://localhost:8000/v1#Qwen/Qwen3-8B")
    Address(url='http://localhost:8000', model='Qwen/Qwen3-8B')
    """
    url, _, model = text.partition("#")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"{url!r:.200} is not the address of a server. Write it as in "
            "http://localhost:8000 or https://host/path, and #MODEL behind it."
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            "The address of the server contains a user or password, which rows and "
            f"messages would show. Put the server's key into {KEY_VARIABLE}."
        )
    if parts.query:
        raise ConfigurationError(
            f"The address of the server has a query (?{parts.query:.40}); leave it out."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = host if port is None else f"{host}:{port}"
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(f"{parts.scheme}://{place}{path}", model or None)


def server_key() -> str | None:
    """The key for servers, from the environment; None if it is not set.

    Raises:
        ConfigurationError: it is not one line of printable ASCII.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigurationError(
            f"The key in {KEY_VARIABLE} has characters that a header cannot carry; "
            "set it again."
        )
    return key or None
