"""The process that works within limits, for :mod:`tsi.models.workers.untrusted`.

It imports neither JAX nor NumPy before a GGUF file makes it, to start in a third of a
second.
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
from tsi.models.workers.process_limits import LimitExceeded, Limits, TimeLimit, limited

MAX_GROWTH, MAX_EXTRA = 16, 4096
"""A text has at most so many times its characters once it is normalised, and as many
tokens."""
MAX_KEPT = 8

_kept: dict[str, tokenizers.Tokenizer] = {}


def build(path: str) -> None:
    """Read a tokenizer's files and do what every use of it does."""
    if os.path.isfile(path):
        from tsi.models.gguf.tokenizer import tokenizer_from_gguf

        tokenizer_from_gguf(Path(path)).prepare()
    else:
        from tsi.models.tokens.tokenizer_files import tokenizer_from_folder

        tokenizer_from_folder(Path(path)).prepare()


def keep(name: str, state: str) -> None:
    """Keep a tokenizer, to encode by it."""
    if len(_kept) >= MAX_KEPT:
        _kept.clear()
    backend = tokenizers.Tokenizer.from_str(state)
    backend.encode_special_tokens = True
    _kept[name] = backend


def encode(name: str, text: str) -> tuple[list[int], str] | None:
    """Ids and normalised text; None if the tokenizer is not kept."""
    backend = _kept.get(name)
    if backend is None:
        return None
    normalizer = backend.normalizer
    normalised = normalizer.normalize_str(text) if normalizer else text
    most = MAX_GROWTH * len(text) + MAX_EXTRA
    if len(normalised) > most:
        raise LimitExceeded(f"made more than {most} characters of {len(text)}")
    ids = backend.encode(text, add_special_tokens=False).ids
    if len(ids) > most:
        raise LimitExceeded(f"made more than {most} tokens of {len(text)} characters")
    return ids, normalised


WORK: dict[str, Callable[..., Any]] = {
    "build": build,
    "keep": keep,
    "encode": encode,
    "render": chat_environment.render,
    "variables_of": chat_environment.variables_of,
}


def serve() -> None:
    """Answer questions until there are no more: a line of JSON each."""
    # A library that prints must not write into the replies.
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
            extra = _size(arguments[0]) if kind == "build" else 0
            with limited(limits, extra):
                found = json.dumps(["done", WORK[kind](*arguments)])
        except LimitExceeded as error:
            found = json.dumps(["exceeded", str(error)])
        except TimeLimit:
            text = f"took more than {limits.seconds:g} s of processor time"
            found = json.dumps(["exceeded", text])
        except MemoryError:
            text = f"took more than {limits.megabytes} MB of memory"
            found = json.dumps(["exceeded", text])
        except TsiError as error:
            found = json.dumps(["refused", str(error)])
        except BaseException as error:
            # A panic of the Rust package derives from BaseException alone.
            state = "refused" if isinstance(error, Exception) else "panicked"
            text = f"{type(error).__name__}: {str(error)[:500]}"
            found = json.dumps([state, text])
        reply(found)


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0
