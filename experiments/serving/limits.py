"""Limits of the requests that a server accepts."""

import re
from typing import Annotated, NamedTuple

import tyro

from tsi.errors import ConfigurationError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Limits(NamedTuple):
    """Limits of requests.

    Attributes:
        max_budget: the largest budget of a request.
        max_body: the longest body of a request, such as 1MB or 64KB.
        max_concurrent: requests that are computed or wait; more are refused (429).
        max_connections: open connections; more are refused (503).
        max_prompt_tokens: the longest prompt, in tokens of the policy, including the
            chat template and worked examples.
        body_seconds: seconds within which a body must arrive.
        grace_seconds: seconds in which running requests may end when the server stops.
    """

    max_budget: int = 64
    max_body: str = "1MB"
    max_concurrent: int = 4
    max_connections: int = 256
    max_prompt_tokens: int = 1024
    body_seconds: int = 30
    grace_seconds: int = 30

    @property
    def body_bytes(self) -> int:
        """The longest body, in bytes.

        Raises:
            ConfigurationError: `max_body` is not a size.
        """
        return parse_size(self.max_body)

    def check(self) -> "Limits":
        """Check that no limit is below 1, and return the limits.

        Raises:
            ConfigurationError: see above, or `max_body` is not a size.
        """
        for name, value in {**self._asdict(), "max_body": self.body_bytes}.items():
            if value < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {value}.")
        return self


def parse_size(text: str) -> int:
    """Bytes of a size.

    Raises:
        ConfigurationError: it is not written as a number and a unit.

    >>> parse_size("1MB"), parse_size("64 kb"), parse_size("200")
    (1000000, 64000, 200)
    """
    match = re.fullmatch(r"\s*(\d{1,12})\s*([KMG]?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ConfigurationError(
            f"The size {text!r} is not written as a number and a unit, as in 1MB."
        )
    return int(match[1]) * UNITS[(match[2] or "").upper()]


ServeLimits = Annotated[Limits, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="limit")]
"""The type of an argument whose fields are options of the command itself."""
