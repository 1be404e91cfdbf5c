"""Policies and rewards behind an inference server, and the engine that drives them."""

from importlib.util import find_spec

from tsi.errors import ConfigurationError

if find_spec("aiohttp") is None:
    raise ConfigurationError(
        "A policy behind a server needs the package aiohttp; install it with "
        "pip install -e '.[served]'."
    )

# isort: split
# What follows imports aiohttp.
from tsi.serving.abilities import Abilities
from tsi.serving.client import Patience
from tsi.serving.connect import connect
from tsi.serving.engine import ServedEngine
from tsi.serving.policy import ServedPolicy
from tsi.serving.scorer import HostScorer, NoScorer
from tsi.serving.served_reward import RewardSettings, served_reward
from tsi.serving.step import Controls

__all__ = [
    "Abilities",
    "Controls",
    "HostScorer",
    "NoScorer",
    "Patience",
    "RewardSettings",
    "ServedEngine",
    "ServedPolicy",
    "connect",
    "served_reward",
]
