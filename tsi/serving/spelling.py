"""Convert prompts and texts to the ids or code points that are sent to a policy.

A spelling is what the engine needs of a tokenizer
(:class:`tsi.models.tokens.spelling.Spelling`): prompts and chats to ids, and ids to
text.

If this machine has the policy's tokenizer, the server is not needed for this. Otherwise
the server's endpoints are used (:class:`ServerTokenizer`). A server that takes only
text gets the rendered prompt (:class:`TextSpelling`), in code points.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tsi.errors import ConfigurationError, ServerError
from tsi.models.tokens.spelling import Messages
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.serving.client import Client
from tsi.serving.http_replies import TransientError
from tsi.serving.reading import field, string, token_ids
from tsi.serving.retokenization import cut_pieces, is_retokenized
from tsi.serving.step import ServedStep, as_points, as_text

EXAMPLE_CHAT = [
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "3"},
]
"""A chat by which one sees whether a template reads a variable."""

MAX_PROMPT = 2**20
NAME = re.compile(r"<[^<>\s]{1,64}>|\[[A-Z_/]{2,64}\]")


class ServerTokenizer:
    """The tokenizer of a server, over HTTP.

    Args:
        client: of the server.
        kind: "llama.cpp" or "vLLM".
        model: name of the model, or None for the only one.
        chat: whether the model has a chat template.
        switches: variables of the chat template, of JSON types, such as
            ``enable_thinking``.

    Raises:
        ConfigurationError: there is no chat template that could read the switches, or
            it does not read one of them.
        ServerError: raised by methods if the server does not have the endpoint.
    """

    def __init__(
        self,
        client: Client,
        kind: str,
        model: str | None,
        chat: bool,
        switches: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._client, self._kind, self._model = client, kind, model
        self._switches: dict[str, Any] = dict(switches)
        self.name = model or "the server's model"
        self.chat_template = "on the server" if chat else None
        self.eos_ids: tuple[int, ...] = ()
        # Without a chat template, the server adds the beginning-of-sequence token if
        # the model needs it; `encode_prompt` requests this.
        self.add_bos = False
        self.bos_id: int | None = None
        self._decode = functools.lru_cache(2**14)(self._decode_on_server)
        if switches and not chat:
            raise ConfigurationError(
                f"The server has no chat template for {self.name} that could read "
                f"{', '.join(switches)}; leave the switches out."
            )
        for switch, value in switches.items():
            self._check_read(switch, value)

    def know_end(self, id: int) -> None:
        """Omit this id from texts from now on, since it has ended a solution."""
        if id not in self.eos_ids:
            self.eos_ids = (*self.eos_ids, id)
            self._decode.cache_clear()

    def encode(self, text: str) -> list[int]:
        """Ids of a text; names of control tokens are encoded as text.

        Raises:
            ConfigurationError: the text contains the name of a control token, and the
                server would read it as the token.
        """
        if self._kind == "llama.cpp":
            body = {"content": text, "add_special": False, "parse_special": False}
            return self._ids(body)
        self._check_plain(text)
        return self._ids({"prompt": text, "add_special_tokens": False})

    def encode_chat(self, messages: Messages) -> list[int]:
        """Ids of a chat, rendered by the server's template.

        Raises:
            ConfigurationError: a message names a control token.
        """
        for message in messages:
            self._check_plain(message["content"])
        return self._render(messages, self._switches)

    def _render(self, messages: Messages, switches: Mapping[str, Any]) -> list[int]:
        """Ids of a chat with these variables of the template."""
        chat: dict[str, Any] = {"messages": [dict(message) for message in messages]}
        if switches:
            chat["chat_template_kwargs"] = dict(switches)
        if self._kind == "llama.cpp":
            reply = self._post("/apply-template", chat)
            text = string(field(reply, "prompt"), "prompt")
            body = {"content": text, "add_special": True, "parse_special": True}
            return self._ids(body)
        return self._ids({**chat, "add_generation_prompt": True})

    def _check_read(self, switch: str, value: Any) -> None:
        """Refuse a switch whose value changes no prompt: servers ignore such a switch.

        Raises:
            ConfigurationError: see above.
        """
        other_value = not value if isinstance(value, bool) else "another value"
        own_ids = self._render(EXAMPLE_CHAT, self._switches)
        try:
            changed_ids = self._render(
                EXAMPLE_CHAT, self._switches | {switch: other_value}
            )
        except TransientError:
            raise
        except ServerError:
            # The template has read the other value, and refuses it.
            return
        if changed_ids == own_ids:
            raise ConfigurationError(
                f"The chat template of {self.name} does not read {switch}, or this "
                "server is too old to pass it on. Leave the switch out, or name the "
                "policy's tokenizer (a folder or hub id), whose template is then used."
            )

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids of a question, ready for the policy to continue."""
        if self.chat_template is not None:
            return self.encode_chat([{"role": "user", "content": prompt}])
        if self._kind == "llama.cpp":
            body = {"content": prompt, "add_special": True, "parse_special": False}
            return self._ids(body)
        self._check_plain(prompt)
        return self._ids({"prompt": prompt, "add_special_tokens": True})

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without the ids that end solutions."""
        return self._decode(tuple(id for id in ids if id not in self.eos_ids))

    def _decode_on_server(self, ids: tuple[int, ...]) -> str:
        if not ids:
            return ""
        reply = self._post("/detokenize", {"tokens": list(ids)})
        name = "content" if self._kind == "llama.cpp" else "prompt"
        return string(field(reply, name), "text")

    def _check_plain(self, text: str) -> None:
        """Refuse a text that contains the name of a control token."""
        if self._kind == "llama.cpp":
            id_lists = [
                self._ids({"content": text, "parse_special": parse})
                for parse in (True, False)
            ]
            named = id_lists[0] != id_lists[1]
        else:
            reply = self._post(
                "/tokenize", self._vllm({"prompt": text, "return_token_strs": True})
            )
            pieces = reply.get("token_strs") if isinstance(reply, dict) else None
            if not isinstance(pieces, list):
                # Older servers cannot list control tokens: refuse anything that looks
                # like one.
                pieces = control_names(text)
            named = any(is_control(piece) for piece in pieces)
        if named:
            raise ConfigurationError(
                f"The text {text!r:.80} contains the name of a control token, which "
                "the server would read as one. Give the policy's tokenizer (a folder "
                "or hub id), with which such names stay text, or take it out."
            )

    def _vllm(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"model": self._model, **body} if self._model else body

    def _ids(self, body: dict[str, Any]) -> list[int]:
        if self._kind != "llama.cpp":
            body = self._vllm(body)
        reply = self._post("/tokenize", body)
        return list(token_ids(field(reply, "tokens"), MAX_PROMPT))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        try:
            return self._client.call(self._client.post(path, body))
        except TransientError:
            raise
        except ServerError as error:
            raise ServerError(
                f"{error} Without this endpoint, name the policy's tokenizer (a folder "
                "or hub id)."
            ) from error


class TextSpelling:
    """Prompts as text, for servers that take only text.

    Without the tokenizer, texts are refused if a part of them looks like the name of a
    control token, since the server would read such a name as the token.

    Args:
        tokenizer: the policy's tokenizer, for its chat template; None for bare text.
        bos_from_server: whether the server adds the beginning-of-sequence token.
        name: of the policy, for messages.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, bos_from_server: bool, name: str
    ) -> None:
        self.tokenizer, self._bos_from_server = tokenizer, bos_from_server
        self.name = name
        self.chat_template = None if tokenizer is None else tokenizer.chat_template
        self.eos_ids: tuple[int, ...] = ()
        self.add_bos = False
        self.bos_id: int | None = None

    def encode(self, text: str) -> list[int]:
        """Code points of a text.

        Raises:
            ConfigurationError: the text contains the name of a control token, which a
                server would read as the token.
        """
        if self.tokenizer is None:
            names = control_names(text)
            if names:
                raise ConfigurationError(
                    f"The text {text!r:.80} contains {names[0]!r}, which looks like "
                    "the name of a control token. This server takes only text, and "
                    "would read such a name as the token. Name the policy's tokenizer "
                    "(a folder or hub id), which tells whether it is one, or take it "
                    "out."
                )
        elif self.tokenizer.encode(text) != self.tokenizer.encode(
            text, allow_special=True
        ):
            raise ConfigurationError(
                f"The text {text!r:.80} contains the name of a control token. This "
                "server takes only text, and would read it as one; take it out, "
                "or use a server that takes token ids."
            )
        return list(as_points(text))

    def is_retokenized(self, prefix: Sequence[int], step: ServedStep) -> bool:
        """Whether a step is certainly read as other tokens than were drawn.

        Without the tokenizer this is not known, and not counted. A step that ends the
        solution is not read again. Nothing is known either about the event that goes
        beyond the delimiter, where the step was cut: the rest may be further tokens.

        Args:
            prefix: code points of the text before it.
            step: as the server has sent it.
        """
        if self.tokenizer is None or step.end == "end" or not step.pieces:
            return False
        before, text = as_text(tuple(prefix)), as_text(step.tokens)
        pieces = cut_pieces(step.pieces, text)
        return is_retokenized(self.tokenizer, before, pieces)

    def encode_chat(self, messages: Messages) -> list[int]:
        """Code points of a rendered chat; see `encode`."""
        assert self.tokenizer is not None
        for message in messages:
            self.encode(message["content"])
        text = self.tokenizer.render(messages, add_generation_prompt=True)
        bos = self.tokenizer.bos_id
        if self._bos_from_server and bos is not None:
            name = self.tokenizer.meaning(bos)
            text = text.removeprefix(name if isinstance(name, str) else "")
        return list(as_points(text))

    def encode_prompt(self, prompt: str) -> list[int]:
        """Code points of a question, ready for the policy to continue."""
        if self.chat_template is not None:
            return self.encode_chat([{"role": "user", "content": prompt}])
        return self.encode(prompt)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of code points."""
        return as_text(tuple(ids))


def control_names(text: str) -> list[str]:
    """Parts of a text that look like names of control tokens.

    >>> control_names("a<|im_end|>b [INST] <3+4=7>")
    ['<|im_end|>', '[INST]']
    """
    return [name for name in NAME.findall(text) if is_control(name)]


def is_control(piece: Any) -> bool:
    """Whether a piece of a text looks like the name of a control token.

    >>> is_control("<|im_end|>"), is_control("</s>"), is_control("<b")
    (True, True, False)
    """
    return (
        isinstance(piece, str)
        and len(piece) > 2
        and (piece[0], piece[-1]) in (("<", ">"), ("[", "]"))
        and any(letter.isalpha() for letter in piece)
    )
