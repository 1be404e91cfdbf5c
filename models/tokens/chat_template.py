"""A model's chat template: rendered once for all questions, without seeing any.

A template is a program of an unknown author. It runs within limits
(:mod:`tsi.models.workers.untrusted`), and where a user's message belongs it gets a
mark, for which the message is put afterwards. So a question cannot change what is
around it, a template cannot change or cut a question, and a thousand prompts take one
rendering. What system and assistant say it does see: published templates read switches
out of the one and cut the thinking out of the other.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tsi.errors import ConfigurationError
from tsi.models.workers import untrusted
from tsi.models.workers.process_limits import LimitExceeded

MAX_FRAMES = 256
EDGE = "\x0b\x0c"
"""White space that no template writes: whether it is still there tells whether the
template trims messages."""
MARKS = range(0xF0000, 0xFFFFD)
_INSIDE = ": aB\n <&>  '1' "
"""Part of a mark; a template that changes letters, spaces or quotes changes this."""
OURS = frozenset({"messages", "add_generation_prompt"})
"""Variables that this package sets, which are not switches."""
ROLE = "_token"


class ChatTemplate:
    """A template with the switches that a user has set.

    Args:
        source: Jinja.
        name: of the model, for messages.
        roles: tokens that the template may name: ``bos_token`` and others.
        switches: further variables, of JSON types, such as ``enable_thinking``.

    Raises:
        ConfigurationError: the template does not read one of the switches.
    """

    def __init__(
        self,
        source: str,
        name: str,
        roles: Mapping[str, str],
        switches: Mapping[str, Any],
    ):
        self.source, self.name = source, name
        self._variables = {**roles, **switches}
        self._frames: dict[str, str] = {}
        if switches:
            self._check(switches)

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """The text of some messages (``role``, ``content``).

        Raises:
            ConfigurationError: the template rejects the messages, drops or changes what
                a user says, or was stopped at a limit.
        """
        everything = "".join(message["content"] for message in messages)
        mark = next(c for c in map(chr, MARKS) if c not in everything)
        marked: list[dict[str, str]] = []
        contents: list[str] = []
        for message in messages:
            content = message["content"]
            # An empty message may be left out, with what would stand around it.
            if message["role"] == "user" and content.strip():
                body = f"{EDGE}{mark}{len(contents)}{_INSIDE}{mark}{EDGE}"
                marked.append({**message, "content": body})
                contents.append(content)
            else:
                marked.append(dict(message))
        frame = self._frame(marked, add_generation_prompt)
        body = rf"({EDGE})?{mark}(\d+){re.escape(_INSIDE)}{mark}({EDGE})?"
        found = {int(match[2]) for match in re.finditer(body, frame)}
        rest = re.sub(body, "", frame)
        if found != set(range(len(contents))) or mark in rest:
            others = {
                m["role"]: ""
                for m in marked
                if not contains_message(rest, m["content"])
            }
            others.pop("user", None)
            who = " and the ".join([*others, "user"])
            what = (
                f"drops what the {who} say"
                if others
                else f"drops or changes what the {who} says"
            )
            raise ConfigurationError(
                f"The chat template of {self.name} {what}, so that the model would not "
                "read the question as it is. Choose another model, or another template "
                "in its tokenizer_config.json or chat_template.jinja."
            )

        def message_of(match: re.Match[str]) -> str:
            content = contents[int(match[2])]
            content = content if match[1] else content.lstrip()
            return content if match[3] else content.rstrip()

        return re.sub(body, message_of, frame)

    def _frame(self, messages: list[dict[str, str]], begins: bool) -> str:
        """The text with marks for what users say."""
        key = json.dumps([messages, begins])
        if key not in self._frames:
            if len(self._frames) >= MAX_FRAMES:
                self._frames.clear()
            variables = {**self._variables, "add_generation_prompt": begins}
            try:
                found = untrusted.render(self.source, messages, variables)
            except untrusted.RefusedError as error:
                raise ConfigurationError(
                    f"The chat template of {self.name} fails on these messages: "
                    f"{error}."
                ) from None
            except LimitExceeded as error:
                raise self._limit_error(error) from None
            self._frames[key] = found
        return self._frames[key]

    def _check(self, switches: Mapping[str, Any]) -> None:
        try:
            read = untrusted.variables_of(self.source)
        except untrusted.RefusedError as error:
            raise ConfigurationError(
                f"The chat template of {self.name} cannot be read: {error}."
            ) from None
        except LimitExceeded as error:
            raise self._limit_error(error) from None
        known = [n for n in read if n not in OURS and not n.endswith(ROLE)]
        for name in switches:
            if name not in known:
                raise ConfigurationError(
                    f"The chat template of {self.name} reads no switch {name!r}. "
                    + (f"It reads: {', '.join(known)}." if known else "It reads none.")
                )

    def _limit_error(self, error: LimitExceeded) -> ConfigurationError:
        return ConfigurationError(
            f"The chat template of {self.name} was stopped: to render it {error}. "
            "Choose another model, or another template in its tokenizer_config.json "
            "or chat_template.jinja."
        )


def contains_message(text: str, content: str) -> bool:
    """Whether a rendered text contains any line of a message.

    One line is enough: published templates trim messages, and cut the thinking out of
    an assistant's earlier turns.
    """
    lines = [line.strip() for line in content.split("\n") if line.strip()]
    return not lines or any(line in text for line in lines)
