"""Policies and rewards behind an inference server, and the engine that drives them."""

from importlib.util import find_spec

from tsi.errors import ConfigurationError

if find_spec("aiohttp") is None:
    raise ConfigurationError(
        "A policy behind a server needs the package aiohttp; install it with "
        "pip install 'tsi[served]'."
    )
