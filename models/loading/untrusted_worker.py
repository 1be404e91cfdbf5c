"""The process with limits, of which :mod:`tsi.models.workers.untrusted` is the client.

It imports JAX only when it reads a GGUF file, and NumPy only when it reads a tokenizer,
so that it starts in a third of a second.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from tsi.errors import TsiError
from tsi.models.workers import chat_environment
from tsi.models.workers.limited_process import READY
from tsi.models.workers.process_limits import (
    LimitExceeded,
    Limits,
    TimeLimit,
    enforce_limits,
)

MAX_GROWTH, MAX_EXTRA = 16, 4096
"""A text of n characters may have ``MAX_GROWTH * n + MAX_EXTRA`` characters once it is
normalised, and as many tokens."""
MAX_BACKENDS = 8

_backends: dict[str, tokenizers.Tokenizer] = {}


def build(path: str) -> None:
    """Read a tokenizer's files, and make the tables that each use of it makes."""
    if os.path.isfile(path):
        from tsi.models.gguf.tokenizer import tokenizer_from_gguf

        tokenizer_from_gguf(Path(path)).prepare()
    else:
        from tsi.models.tokens.tokenizer_files import tokenizer_from_folder

        tokenizer_from_folder(Path(path)).prepare()


def keep(name: str, state: str) -> None:
    """Keep a tokenizer under a name, for :func:`encode`."""
    if len(_backends) >= MAX_BACKENDS:
        _backends.clear()
    backend = tokenizers.Tokenizer.from_str(state)
    backend.encode_special_tokens = True
    _backends[name] = backend


def encode(name: str, text: str) -> tuple[list[int], str] | None:
    """Ids and normalised text; None if no tokenizer is kept under the name."""
    backend = _backends.get(name)
    if backend is None:
        return None
    normalizer = backend.normalizer
    normalized = normalizer.normalize_str(text) if normalizer else text
    max_size = MAX_GROWTH * len(text) + MAX_EXTRA
    if len(normalized) > max_size:
        raise LimitExceeded(f"made more than {max_size} characters of {len(text)}")
    ids = backend.encode(text, add_special_tokens=False).ids
    if len(ids) > max_size:
        raise LimitExceeded(
            f"made more than {max_size} tokens of {len(text)} characters"
        )
    return ids, normalized


WORK: dict[str, Callable[..., Any]] = {
    "build": build,
    "keep": keep,
    "encode": encode,
    "render": chat_environment.render,
    "variables_of": chat_environment.variables_of,
}


def serve() -> None:
    """Answer requests, one line of JSON each, until standard input ends."""
    # Output that a library prints must not go between the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def reply(message: str) -> None:
        replies.write(message + "\n")
        replies.flush()

    reply(json.dumps(READY))
    for line in sys.stdin.buffer:
        limits, kind, arguments = json.loads(line)
        limits = Limits(*limits)
        try:
            extra_bytes = _size(arguments[0]) if kind == "build" else 0
            with enforce_limits(limits, extra_bytes):
                response = json.dumps(["done", WORK[kind](*arguments)])
        except LimitExceeded as error:
            response = json.dumps(["exceeded", str(error)])
        except TimeLimit:
            text = f"took more than {limits.seconds:g} s of processor time"
            response = json.dumps(["exceeded", text])
        except MemoryError:
            text = f"took more than {limits.megabytes} MB of memory"
            response = json.dumps(["exceeded", text])
        except TsiError as error:
            response = json.dumps(["refused", str(error)])
        except BaseException as error:
            # A panic of the Rust package derives only from BaseException.
            state = "refused" if isinstance(error, Exception) else "panicked"
            text = f"{type(error).__name__}: {str(error)[:500]}"
            response = json.dumps([state, text])
        reply(response)


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0
