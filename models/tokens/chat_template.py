"""A model's chat template, rendered once for all questions, with a mark in their place.

A template is a program of an unknown author. It runs within limits
(:mod:`tsi.models.workers.untrusted`). It gets a mark in place of a user's message, and
the message replaces the mark afterwards. So a question cannot change the text around
it, a template cannot change or shorten a question, and a thousand prompts take one
rendering. The template does get the messages of system and assistant: published
templates read switches in system messages, and cut the thinking out of an assistant's.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tsi.errors import ConfigurationError
from tsi.models.tokens.unused_character import unused_character
from tsi.models.workers import untrusted
from tsi.models.workers.process_limits import LimitExceeded

MAX_FRAMES = 256
EDGE = "\x0b\x0c"
"""White space that no template writes. It is put around marks; where it is missing in
the rendered text, the template strips messages."""
MARKS = range(0xF0000, 0xFFFFD)
_INSIDE = ": aB\n <&>  '1' "
"""Part of a mark, which shows whether a template changes letters, spaces or quotes."""
RESERVED = frozenset({"messages", "add_generation_prompt"})
"""Variables that this package sets; they are not switches."""
ROLE_SUFFIX = "_token"


class ChatTemplate:
    """A chat template, with the switches that the user has set.

    Args:
        source: in Jinja.
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
            self._check_switches(switches)

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """The text of some messages (``role``, ``content``).

        Raises:
            ConfigurationError: the template rejects the messages, drops or changes a
                user's message, or was stopped at a limit; or the messages have every
                character that could mark a place.
        """
        mark = unused_character((message["content"] for message in messages), MARKS)
        template_messages: list[dict[str, str]] = []
        contents: list[str] = []
        for message in messages:
            content = message["content"]
            # A template may leave out an empty message and the text around it.
            if message["role"] == "user" and content.strip():
                body = f"{EDGE}{mark}{len(contents)}{_INSIDE}{mark}{EDGE}"
                template_messages.append({**message, "content": body})
                contents.append(content)
            else:
                template_messages.append(dict(message))
        frame = self._frame(template_messages, add_generation_prompt)
        body = rf"({EDGE})?{mark}(\d+){re.escape(_INSIDE)}{mark}({EDGE})?"
        indices = {int(match[2]) for match in re.finditer(body, frame)}
        rest = re.sub(body, "", frame)
        if indices != set(range(len(contents))) or mark in rest:
            others = {
                message["role"]: ""
                for message in template_messages
                if not contains_message(rest, message["content"])
            }
            others.pop("user", None)
            fault = "drops or changes messages of the user"
            if others:
                roles = " and the ".join([*others, "user"])
                fault = f"drops messages of the {roles}"
            raise ConfigurationError(
                f"The chat template of {self.name} {fault}, so the model would not "
                "read the question unchanged. Choose another model, or another "
                "template in its tokenizer_config.json or chat_template.jinja."
            )

        def message_of(match: re.Match[str]) -> str:
            content = contents[int(match[2])]
            content = content if match[1] else content.lstrip()
            return content if match[3] else content.rstrip()

        return re.sub(body, message_of, frame)

    def _frame(
        self, messages: list[dict[str, str]], add_generation_prompt: bool
    ) -> str:
        """The rendered text, with marks in place of the users' messages."""
        key = json.dumps([messages, add_generation_prompt])
        text = self._frames.get(key)
        if text is None:
            if len(self._frames) >= MAX_FRAMES:
                self._frames.clear()
            variables = {
                **self._variables,
                "add_generation_prompt": add_generation_prompt,
            }
            try:
                text = untrusted.render(self.source, messages, variables)
            except untrusted.RefusedError as error:
                raise ConfigurationError(
                    f"The chat template of {self.name} fails on these messages: "
                    f"{error}."
                ) from None
            except LimitExceeded as error:
                raise self._limit_error(error) from None
            self._frames[key] = text
        return text

    def _check_switches(self, switches: Mapping[str, Any]) -> None:
        try:
            variables = untrusted.variables_of(self.source)
        except untrusted.RefusedError as error:
            raise ConfigurationError(
                f"The chat template of {self.name} cannot be read: {error}."
            ) from None
        except LimitExceeded as error:
            raise self._limit_error(error) from None
        known_switches = [
            n for n in variables if n not in RESERVED and not n.endswith(ROLE_SUFFIX)
        ]
        for name in switches:
            if name not in known_switches:
                raise ConfigurationError(
                    f"The chat template of {self.name} reads no switch {name!r}. "
                    + (
                        f"It reads: {', '.join(known_switches)}."
                        if known_switches
                        else "It reads none."
                    )
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
