"""The interface of a tokenizer, whether it is on this machine or on a server."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

Messages = Sequence[Mapping[str, str]]
"""Turns of a chat, each with ``role`` and ``content``."""


@runtime_checkable
class Spelling(Protocol):
    """What the engine and prompt formats need of a tokenizer."""

    name: str
    chat_template: str | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    bos_id: int | None

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Messages) -> list[int]: ...

    def encode_prompt(self, prompt: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...
