"""The Jinja environment in which chat templates run, as transformers sets it up.

It is sandboxed: a template cannot reach Python or change its arguments. It can still
take any time and memory, so it runs only in the process with limits
(:mod:`tsi.models.workers.untrusted`).

Source: transformers 5, utils/chat_template_utils.py.
"""

import datetime
import functools
import json
from collections.abc import Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

from tsi.models.workers.process_limits import LimitExceeded

MAX_GROWTH, MAX_EXTRA = 8, 2**17
"""A rendered text has at most ``MAX_GROWTH`` times the characters of its messages plus
``MAX_EXTRA`` for the template's own text."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``, around the assistant's text; it has no effect here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _Dict:
    """A callable ``dict`` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the name {name!r} is not allowed")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=None if separators is None else (separators[0], separators[1]),
        sort_keys=sort_keys,
    )


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


@functools.cache
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def render(source: str, messages: list[dict[str, str]], variables: dict) -> str:
    """The text that a template renders for some messages.

    Args:
        source: of the template.
        messages: ``role`` and ``content`` of each.
        variables: further variables of the template.

    Raises:
        LimitExceeded: the text is much longer than the messages.
    """
    max_size = MAX_GROWTH * len(json.dumps([messages, variables])) + MAX_EXTRA
    parts, size = [], 0
    stream = _compile(source).generate(
        messages=messages, **{"tools": None, "documents": None} | variables
    )
    for part in stream:
        size += len(part)
        if size > max_size:
            raise LimitExceeded(f"made more than {max_size} characters")
        parts.append(part)
    return "".join(parts)


def variables_of(source: str) -> list[str]:
    """The variables that a template reads and does not set itself."""
    environment = _environment()
    names = jinja2.meta.find_undeclared_variables(environment.parse(source))
    return sorted(names - environment.globals.keys())
