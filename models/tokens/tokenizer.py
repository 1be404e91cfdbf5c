"""A tokenizer as the engine needs it: ids, exact bytes of each id, chat prompts.

Step boundaries are found on the bytes of tokens, so :meth:`Tokenizer.token_bytes` is
exact (:mod:`tsi.models.tokens.text_encoder`). A text cannot write control tokens:
``<|im_end|>`` in a problem is read as ten characters unless the caller asks otherwise,
and a chat prompt has only the control tokens that its template writes.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers
from tokenizers import processors

from tsi.errors import ConfigurationError
from tsi.models.files import write_text
from tsi.models.tokens.chat_template import ChatTemplate, contains_message
from tsi.models.tokens.control_names import ControlNames, NameMask
from tsi.models.tokens.recall import current_recall
from tsi.models.tokens.text_encoder import TextEncoder
from tsi.models.tokens.tokenizer_parts import disable_training_options

QUESTION, ANSWER = "\uf8fd", "\uf8fe"
"""Messages of user and assistant, with which to find the control tokens that a chat
template writes around them."""


class Tokenizer:
    """Text to token ids and back.

    Args:
        backend: a tokenizer of the ``tokenizers`` package.
        bos_id, pad_id: None where there is none.
        eos_ids: ids that end a solution, in order of preference.
        add_bos: whether a prompt without a chat template starts with ``bos_id``.
        chat_template: Jinja source, or None for models that read bare text.
        name: of the model, for messages.
        roles: further tokens that the template may name, such as ``unk_token``.
        switches: further variables of the template, of JSON types, such as
            ``enable_thinking``.
        num_rows: rows of the model's embedding, where known: a prompt with a larger id
            is refused.

    Raises:
        CheckpointError: the bytes of the tokens cannot be known (neither byte-level
            nor SentencePiece-like nor plain text).
        ConfigurationError: the template does not read one of the switches.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None = None,
        eos_ids: Sequence[int] = (),
        pad_id: int | None = None,
        add_bos: bool = False,
        chat_template: str | None = None,
        name: str = "this model",
        roles: Mapping[str, str] = MappingProxyType({}),
        switches: Mapping[str, Any] = MappingProxyType({}),
        num_rows: int | None = None,
    ):
        self.backend = disable_training_options(backend)
        self.bos_id, self.eos_ids = bos_id, tuple(dict.fromkeys(eos_ids))
        self.pad_id = pad_id if pad_id is not None else next(iter(self.eos_ids), None)
        self.add_bos = add_bos and bos_id is not None
        self.chat_template, self.name, self.roles = chat_template, name, roles
        self.switches, self.num_rows = dict(switches), num_rows
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._control = ControlNames(backend)
        self.special_ids = self._control.ids
        self._encoder = TextEncoder(self.backend, name)
        self._cached_template: ChatTemplate | None = None
        if self.switches and chat_template is None:
            raise ConfigurationError(
                f"The tokenizer of {name} has no chat template that could read "
                f"{', '.join(self.switches)}; leave the switches out."
            )
        if self.switches:
            _ = self._template  # refuses switches that it does not read

    def prepare(self) -> None:
        """Build the tables now, instead of at their first use."""
        self._encoder.prepare()
        _ = self._control.pattern

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of a text, without a beginning-of-sequence token.

        Args:
            text: any text.
            allow_special: whether control tokens such as ``<|im_end|>`` are recognised
                in the text. Leave it False for text that a user or a model wrote.

        Raises:
            ConfigurationError: the vocabulary cannot spell the text.
        """
        if allow_special and self.special_ids:
            pieces = enumerate(self._control.split(text))
            return self._require_rows(
                [id for i, piece in pieces for id in self._piece(piece, i == 0)]
            )
        return self._text(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, which is the text that step boundaries see.

        Broken UTF-8 becomes U+FFFD, and control tokens have no text.
        """
        return self._encoder.decode(ids)

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes that a token adds to the text.

        ``b""`` for control tokens, and for the ids beyond the tokenizer's vocabulary
        with which models pad theirs.
        """
        return self._encoder.token_bytes(id)

    @property
    def num_ids(self) -> int:
        """The largest id plus one; some ids below it may have no token."""
        return len(self._encoder.byte_table)

    def meaning(self, id: int) -> bytes | str | None:
        """The bytes of an id, or a control token's name; None if it has no token."""
        if id in self._control.names_by_id:
            return self._control.names_by_id[id]
        if not 0 <= id < self.num_ids or self.backend.id_to_token(id) is None:
            return None
        return self.token_bytes(id)

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """The chat template's text for some messages (``role``, ``content``).

        Raises:
            ConfigurationError: there is no template; or it rejects the messages, drops
                or changes a user's message, or takes too much time or memory.
        """
        if self.chat_template is None:
            raise ConfigurationError(
                f"The tokenizer of {self.name} has no chat template; encode the prompt "
                "as bare text."
            )
        return self._template.render(
            messages, add_generation_prompt=add_generation_prompt
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a chat; its control tokens are those the template writes.

        The ids are those of the rendered text, except that a control token's name in a
        message is encoded as text.
        """
        return self.encode_with_tags(
            messages, {}, add_generation_prompt=add_generation_prompt
        )[0]

    def encode_with_tags(
        self,
        messages: Sequence[Mapping[str, str]],
        tags: Mapping[str, int],
        *,
        add_generation_prompt: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Token ids of a chat in which some characters stand for a token each.

        Args:
            messages: ``role`` and ``content`` of each.
            tags: the token of each such character. The messages use these characters
                for nothing else.
            add_generation_prompt: whether the chat ends with the beginning of the
                assistant's turn.

        Returns:
            The ids, and the positions of the tags' tokens among them.

        Raises:
            ConfigurationError: as :meth:`render`; or the template drops or repeats a
                tag, or drops a message.
        """
        text, ids, places = self._encode_with_places(
            messages, tags, add_generation_prompt
        )
        expected = sum(
            message["content"].count(tag) for message in messages for tag in tags
        )
        is_complete = all(contains_message(text, m["content"]) for m in messages)
        if len(places) != expected or not is_complete:
            raise ConfigurationError(
                f"The chat template of {self.name} drops or repeats a part of these "
                "messages, of the system, the user or the assistant. Choose another "
                "model, leave the system message out, or give the model another "
                "template."
            )
        return ids, places

    def _encode_with_places(
        self,
        messages: Sequence[Mapping[str, str]],
        tags: Mapping[str, int],
        add_generation_prompt: bool,
    ) -> tuple[str, list[int], list[int]]:
        """The rendered text, the ids, and the positions of tags among them."""
        mask = NameMask(self._control, (m["content"] for m in messages))
        masked = [{**m, "content": mask.hide(m["content"])} for m in messages]
        text = self.render(masked, add_generation_prompt=add_generation_prompt)
        tag_pattern = re.compile("|".join(map(re.escape, tags)) or r"(?!)")
        ids: list[int] = []
        places: list[int] = []
        for i, piece in enumerate(self._control.split(text)):
            content = mask.restore(piece)
            if content == piece and piece in self.special_ids:
                ids.append(self.special_ids[piece])
                continue
            begin = 0
            for match in tag_pattern.finditer(content):
                ids += self._text(content[begin : match.start()], i + begin == 0)
                places.append(len(ids))
                ids.append(tags[match[0]])
                begin = match.end()
            ids += self._text(content[begin:], i + begin == 0)
        return mask.restore(text), self._require_rows(ids), places

    def encode_prompt(self, prompt: str, *, system: str | None = None) -> list[int]:
        """Token ids of a question, ready for the policy to continue.

        Args:
            prompt: the question, which cannot write control tokens.
            system: a system message. Without a chat template it becomes the line
                before the question.
        """
        if self.chat_template is None:
            text = prompt if system is None else f"{system}\n{prompt}"
            bos = [self.bos_id] if self.add_bos and self.bos_id is not None else []
            return self._require_rows(bos + self.encode(text))
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self.encode_chat(messages)

    @functools.cached_property
    def turn_end(self) -> int | None:
        """The id that ends an assistant's turn.

        It is the first control token that the chat template writes after the turn:
        Gemma and Phi end turns with another token than texts. Without one it is the
        first of ``eos_ids``; None if there is neither.
        """
        if self.chat_template is not None:
            turns = [
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": ANSWER},
            ]
            _, ids, _ = self._encode_with_places(
                turns, {QUESTION: -1, ANSWER: -2}, False
            )
            control_ids = set(self.special_ids.values())
            answer = ids.index(-2) if -2 in ids else len(ids)
            for id in ids[answer + 1 :]:
                if id in control_ids:
                    return id
        return next(iter(self.eos_ids), None)

    def normalise(self, text: str) -> str:
        """The text as its tokens spell it, with spaces written as spaces."""
        return self._encoder.normalise(text)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
        folder = Path(folder)
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        if self.add_bos and self.bos_id is not None:
            # Neither transformers nor the loader here reads add_bos_token.
            bos = backend.id_to_token(self.bos_id)
            backend.post_processor = processors.TemplateProcessing(
                single=[bos, "$A"], special_tokens=[(bos, self.bos_id)]
            )
        write_text(folder / "tokenizer.json", backend.to_str(pretty=True))
        fields: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.add_bos,
            "clean_up_tokenization_spaces": False,
            **self._role_tokens(),
        }
        if self.chat_template is not None:
            fields["chat_template"] = self.chat_template
        text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
        write_text(folder / "tokenizer_config.json", text)

    def _role_tokens(self) -> dict[str, str]:
        """The token of each role: ``eos_token``, ``unk_token`` and others."""
        ids = {
            "bos_token": self.bos_id,
            "eos_token": next(iter(self.eos_ids), None),
            "pad_token": self.pad_id,
        }
        names = {
            k: self.backend.id_to_token(i) for k, i in ids.items() if i is not None
        }
        return {
            **self.roles,
            **{role: name for role, name in names.items() if name is not None},
        }

    def _require_rows(self, ids: list[int]) -> list[int]:
        """The ids; refuses an id beyond the rows of the model's embedding."""
        if self.num_rows is not None and max(ids, default=0) >= self.num_rows:
            raise ConfigurationError(
                f"A prompt of {self.name} has the token id {max(ids)}, and the model's "
                f"vocabulary has {self.num_rows}. Its tokenizer or chat template "
                "belongs to another model; download it again, or choose another."
            )
        return ids

    def _piece(self, piece: str, at_start: bool) -> list[int]:
        """The id of a control token, or the ids of a text without any."""
        id = self.special_ids.get(piece)
        return self._text(piece, at_start) if id is None else [id]

    def _text(self, text: str, at_start: bool = True) -> list[int]:
        """Ids of a text without control tokens."""
        recall = current_recall()
        if recall is not None:
            return recall.encode(self, text, at_start)
        return self.encode_text(text, at_start)

    @property
    def has_word_ends(self) -> bool:
        """Whether a text may be cut at the end of a word
        (:mod:`tsi.models.tokens.word_ends`)."""
        return self._encoder.has_word_ends

    def encode_text(self, text: str, at_start: bool, *, cut: bool = False) -> list[int]:
        """Ids of a text without control tokens, as :meth:`TextEncoder.encode`."""
        return self._encoder.encode(text, at_start, cut=cut)

    @property
    def _template(self) -> ChatTemplate:
        """The chat template, made anew after callers have set another one."""
        assert self.chat_template is not None
        template, source = self._cached_template, (self.chat_template, self.name)
        if template is None or (template.source, template.name) != source:
            template = ChatTemplate(*source, self._role_tokens(), self.switches)
            self._cached_template = template
        return template
