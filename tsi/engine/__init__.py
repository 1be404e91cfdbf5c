"""The engine: runs samplers on problems of one policy and one reward."""

from tsi.engine.engine import Engine

__all__ = ["Engine"]
