"""A tokenizer as the engine needs it: ids, exact bytes of each id, chat prompts.

Step boundaries are found on the bytes of tokens, so :meth:`Tokenizer.token_bytes` is
exact: concatenated over an encoding it gives the text's own UTF-8, even where a token
ends in the middle of a character. Text is never control: ``<|im_end|>`` in a problem
is read as characters unless the caller asks otherwise, and in chat prompts only the
template's own control tokens count.
"""

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers, processors
from tokenizers import models as token_models

from tsi.errors import ConfigurationError
from tsi.models.files import write_text
from tsi.models.tokens.chat_template import ChatTemplate, is_shown
from tsi.models.tokens.recall import current
from tsi.models.tokens.token_bytes import bytes_of_tokens, kind_of, puts_space_first
from tsi.models.tokens.tokenizer_parts import is_bounded, without_training_options
from tsi.models.tokens.word_ends import has_word_ends, puts_space_anywhere
from tsi.models.workers import untrusted
from tsi.models.workers.process_limits import LimitExceeded

EOS, PAD = "<eos>", "<pad>"
ASKED, SAID = "\uf8fd", "\uf8fe"
"""Stand for what user and assistant say, to find what a chat template adds."""
_counter = itertools.count()


class Tokenizer:
    """Text to token ids and back.

    Args:
        backend: a tokenizer of the ``tokenizers`` package.
        bos_id, pad_id: None where there is none.
        eos_ids: ids that end a solution, in order of preference.
        add_bos: whether a prompt without a chat template starts with ``bos_id``.
        chat_template: Jinja source, or None for models that read bare text.
        name: of the model, for messages.
        roles: tokens that the template may name besides: ``unk_token`` and others.
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
        self.backend = without_training_options(backend)
        self.bos_id, self.eos_ids = bos_id, tuple(dict.fromkeys(eos_ids))
        self.pad_id = pad_id if pad_id is not None else next(iter(self.eos_ids), None)
        self.add_bos = add_bos and bos_id is not None
        self.chat_template, self.name, self.roles = chat_template, name, roles
        self.switches, self.num_rows = dict(switches), num_rows
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = {t.content: i for i, t in added.items() if t.special}
        special = [token for token in added.values() if token.special]
        self._strips_before = {token.content for token in special if token.lstrip}
        self._strips_behind = {token.content for token in special if token.rstrip}
        self._kind = kind_of(backend)
        # Some swallow white space in any text, and some put a space before it.
        plain = [token for token in added.values() if not token.special]
        self._keeps_spaces = not (
            any(token.lstrip or token.rstrip for token in plain)
            or (self._kind == "byte_level" and puts_space_first(backend))
        )
        self._space_first = self._kind == "sentencepiece" and puts_space_first(backend)
        self._repeats_space = puts_space_anywhere(backend)
        self._bounded = is_bounded(backend)
        self._made_template: ChatTemplate | None = None
        self._states: dict[bool, tuple[str, str]] = {}
        if self.switches and chat_template is None:
            raise ConfigurationError(
                f"The tokenizer of {name} has no chat template, which would read "
                f"{', '.join(self.switches)}; leave the switches out."
            )
        if self.switches:
            _ = self._template  # refuses what it does not read

    def prepare(self) -> None:
        """Make the tables that are made when they are first needed otherwise."""
        _ = self._bytes, self._special, self._later

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of a text, without a beginning-of-sequence token.

        Args:
            text: any text.
            allow_special: read control tokens such as ``<|im_end|>`` in the text as
                such. Leave it False for text that a user or a model wrote.

        Raises:
            ConfigurationError: the vocabulary cannot spell the text.
        """
        if allow_special and self.special_ids:
            pieces = enumerate(self._split(text))
            return self._require_rows(
                [id for i, piece in pieces for id in self._piece(piece, i == 0)]
            )
        return self._text(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; control tokens have none, broken UTF-8 becomes U+FFFD.

        It is the text that the step boundaries see: the ids' bytes, joined.
        """
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        return text[1:] if self._space_first and text.startswith(" ") else text

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes that a token adds to the text.

        ``b""`` for control tokens and for ids beyond the tokenizer's vocabulary (models
        pad theirs).
        """
        return self._bytes[id] if 0 <= id < len(self._bytes) else b""

    @property
    def num_ids(self) -> int:
        """One more than the largest id; some below it may stand for nothing."""
        return len(self._bytes)

    def meaning(self, id: int) -> bytes | str | None:
        """What an id stands for: bytes, a control token's name, or None for nothing."""
        if id in self._control_names:
            return self._control_names[id]
        if not 0 <= id < self.num_ids or self.backend.id_to_token(id) is None:
            return None
        return self.token_bytes(id)

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """The chat template's text for some messages (``role``, ``content``).

        Raises:
            ConfigurationError: there is no template, or it rejects the messages, drops
                or changes what a user says, or takes too much time or memory.
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
        """Token ids of a chat, in which only the template's control tokens are control.

        Equal to encoding the rendered text, except where a message spells a control
        token: there it stays text.
        """
        return self.encode_tagged(
            messages, {}, add_generation_prompt=add_generation_prompt
        )[0]

    def encode_tagged(
        self,
        messages: Sequence[Mapping[str, str]],
        tags: Mapping[str, int],
        *,
        add_generation_prompt: bool = False,
    ) -> tuple[list[int], list[int]]:
        """The same where some characters of the messages stand for a token each.

        Args:
            messages: ``role`` and ``content`` of each.
            tags: the token of each such character, which the texts have nowhere else.
            add_generation_prompt: whether the assistant's turn is begun.

        Returns:
            The ids, and at which places the tags' tokens stand.

        Raises:
            ConfigurationError: as :meth:`render`; or the template drops or repeats a
                tag, or drops what somebody says.
        """
        text, ids, places = self._encode_with_places(
            messages, tags, add_generation_prompt
        )
        expected = sum(
            message["content"].count(tag) for message in messages for tag in tags
        )
        shown = all(is_shown(message["content"], text) for message in messages)
        if len(places) != expected or not shown:
            raise ConfigurationError(
                f"The chat template of {self.name} drops or repeats a part of these "
                "messages: what the system, the user or the assistant says. Choose "
                "another model, leave the system message out, or give the model "
                "another template."
            )
        return ids, places

    def _encode_with_places(
        self,
        messages: Sequence[Mapping[str, str]],
        tags: Mapping[str, int],
        begins: bool,
    ) -> tuple[str, list[int], list[int]]:
        """The rendered text, the ids, and the places of tags among them."""
        names = list(self.special_ids)
        everything = "".join([*(m["content"] for m in messages), *names])
        # The template must not see those spellings either, so they travel through it
        # as marks made of a character that occurs nowhere in the messages.
        mark = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in everything)
        masked = [
            {**m, "content": self._mask(m["content"], names, mark)} for m in messages
        ]
        text = self.render(masked, add_generation_prompt=begins)
        spelling = {f"{mark}{i}{mark}": name for i, name in enumerate(names)}
        marks = re.compile(f"{mark}\\d+{mark}")

        def unmask(text: str) -> str:
            return marks.sub(lambda found: spelling.get(found[0], ""), text)

        split = re.compile("|".join(map(re.escape, tags)) or r"(?!)")
        ids: list[int] = []
        places: list[int] = []
        for i, piece in enumerate(self._split(text) if names else [text]):
            unmasked = unmask(piece)
            if unmasked == piece and piece in self.special_ids:
                ids.append(self.special_ids[piece])
                continue
            begin = 0
            for found in split.finditer(unmasked):
                between = unmasked[begin : found.start()]
                ids += self._text(between, i + begin == 0)
                places.append(len(ids))
                ids.append(tags[found[0]])
                begin = found.end()
            ids += self._text(unmasked[begin:], i + begin == 0)
        return unmask(text), self._require_rows(ids), places

    def encode_prompt(self, prompt: str, *, system: str | None = None) -> list[int]:
        """Token ids of a question, ready for the policy to continue.

        Args:
            prompt: the question; its text is never control.
            system: a system message for chat models; stands before the question on a
                line of its own where there is no chat template.
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

        That is the first control token that the chat template writes after one (Gemma
        ends turns with another token than texts, and so does Phi), or else the first of
        ``eos_ids``; None if there is neither.
        """
        if self.chat_template is not None:
            turns = [
                {"role": "user", "content": ASKED},
                {"role": "assistant", "content": SAID},
            ]
            _, ids, _ = self._encode_with_places(turns, {ASKED: -1, SAID: -2}, False)
            control = set(self.special_ids.values())
            said = ids.index(-2) if -2 in ids else len(ids)
            for id in ids[said + 1 :]:
                if id in control:
                    return id
        return next(iter(self.eos_ids), None)

    def normalised(self, text: str) -> str:
        """The text as its tokens spell it: normalised, with spaces as spaces."""
        if not self._bounded:
            return self._backend_ids(text, True)[1]
        normalizer = self.backend.normalizer
        return self._with_spaces(normalizer.normalize_str(text) if normalizer else text)

    def _with_spaces(self, text: str) -> str:
        return text.replace("▁", " ") if self._kind == "sentencepiece" else text

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
        folder = Path(folder)
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        if self.add_bos and self.bos_id is not None:
            # Neither transformers nor the loader here reads it in another place.
            bos = backend.id_to_token(self.bos_id)
            backend.post_processor = processors.TemplateProcessing(
                single=[bos, "$A"], special_tokens=[(bos, self.bos_id)]
            )
        write_text(folder / "tokenizer.json", backend.to_str(pretty=True))
        fields: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.add_bos,
            "clean_up_tokenization_spaces": False,
            **self._named_specials(),
        }
        if self.chat_template is not None:
            fields["chat_template"] = self.chat_template
        text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
        write_text(folder / "tokenizer_config.json", text)

    def _named_specials(self) -> dict[str, str]:
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
        """The ids, all of which the model must have."""
        if self.num_rows is not None and max(ids, default=0) >= self.num_rows:
            raise ConfigurationError(
                f"A prompt of {self.name} has the token id {max(ids)}, and the model's "
                f"vocabulary has {self.num_rows}. Its tokenizer or chat template "
                "belongs to another model; download it again, or choose another."
            )
        return ids

    def _split(self, text: str) -> list[str]:
        """Text and control tokens in turn; some swallow white space (Phi-3, Phi-4)."""
        pieces = self._special.split(text)
        for i in range(1, len(pieces), 2):
            if pieces[i] in self._strips_before:
                pieces[i - 1] = pieces[i - 1].rstrip()
            if pieces[i] in self._strips_behind:
                pieces[i + 1] = pieces[i + 1].lstrip()
        return pieces

    def _mask(self, content: str, names: list[str], mark: str) -> str:
        if not names or not self._special.search(content):
            return content
        index = {name: i for i, name in enumerate(names)}
        return self._special.sub(lambda f: f"{mark}{index[f[0]]}{mark}", content)

    def _piece(self, piece: str, first: bool) -> list[int]:
        """A control token, or text without any."""
        id = self.special_ids.get(piece)
        return self._text(piece, first) if id is None else [id]

    def _text(self, text: str, first: bool = True) -> list[int]:
        """Ids of a text without control tokens, ``first`` if none stands before it."""
        recall = current()
        if recall is not None:
            return recall.encode(self, text, first)
        return self.encode_text(text, first)

    @functools.cached_property
    def has_word_ends(self) -> bool:
        """Whether texts may be cut at words' ends; see
        :mod:`tsi.models.tokens.word_ends`."""
        return has_word_ends(self.backend, self._bytes)

    def encode_text(self, text: str, first: bool, *, cut: bool = False) -> list[int]:
        """Ids of a text, or of what follows a word's end, without control tokens.

        Args:
            text: any.
            first: whether nothing stands before it.
            cut: whether it was cut from what stands before it, so that it begins with
                the space behind a word.
        """
        if cut and self._repeats_space:
            text = text[1:]
        return self._whole_text(text, first and not cut)

    def _whole_text(self, text: str, first: bool) -> list[int]:
        ids, normalised = self._backend_ids(text, first)
        if ids is not None and self._kind == "sentencepiece":
            # What has no bytes is control, or stands for what is unknown.
            if not all(map(self.token_bytes, ids)):
                ids = None
        elif ids is not None:
            # Byte-pair models drop what they cannot spell without a word.
            spelt = b"".join(map(self.token_bytes, ids))
            if not self._spells(spelt, normalised):
                ids = None
        if ids is None:
            raise ConfigurationError(
                f"The tokenizer's vocabulary cannot spell all of {text[:200]!r}; use "
                "only characters of its alphabet."
            )
        return ids

    def _backend_ids(self, text: str, first: bool) -> tuple[list[int] | None, str]:
        """What the backend makes of a text, None if it fails, and the text normalised.

        Within limits of time and memory, where it is not known to need little.
        """
        backend = self.backend if first else self._later
        if not self._bounded:
            try:
                ids, text = untrusted.encode(*self._sent(first), text)
            except untrusted.PanickedError as error:
                raise ConfigurationError(
                    f"The tokenizer of {self.name} fails on a text of {len(text)} "
                    f"characters: {error}. Choose another model."
                ) from None
            except untrusted.RefusedError:
                return None, text
            except LimitExceeded as error:
                raise ConfigurationError(
                    f"The tokenizer of {self.name} was stopped: for a text of "
                    f"{len(text)} characters it {error}. Choose another model."
                ) from None
            return ids, self._with_spaces(text)
        # Set here, not once: the backend is mutable and others may hold it.
        backend.encode_special_tokens = True
        try:
            ids = backend.encode(text, add_special_tokens=False).ids
            return ids, self.normalised(text)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # the panics of the Rust package derive from it alone
            return None, text

    def _sent(self, first: bool) -> tuple[str, str]:
        """The tokenizer as text, and a name that no other has."""
        if first not in self._states:
            backend = self.backend if first else self._later
            self._states[first] = backend.to_str(), f"{next(_counter)}"
        return self._states[first]

    def _spells(self, spelt: bytes, text: str) -> bool:
        """Whether some bytes are a text, but for spaces that the tokenizer changes."""
        if self._keeps_spaces:
            return spelt == text.encode("utf-8")
        written = spelt.decode("utf-8", errors="replace")
        return "".join(written.split()) == "".join(text.split())

    @functools.cached_property
    def _special(self) -> re.Pattern[str]:
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    @functools.cached_property
    def _later(self) -> tokenizers.Tokenizer:
        """The tokenizer of what does not begin a text: some put a space there only."""
        state = json.loads(self.backend.to_str())
        before = state.get("pre_tokenizer") or {}
        parts = [
            part
            for part in before.get("pretokenizers", [before])
            if part.get("prepend_scheme") == "first"
        ]
        for part in parts:
            part["prepend_scheme"] = "never"
        if not parts:
            return self.backend
        return tokenizers.Tokenizer.from_str(json.dumps(state))

    @functools.cached_property
    def _control_names(self) -> dict[int, str]:
        return {id: name for name, id in self.special_ids.items()}

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        return bytes_of_tokens(self.backend)

    @property
    def _template(self) -> ChatTemplate:
        """The chat template, which callers may set to another one."""
        assert self.chat_template is not None
        made = self._made_template
        if made is None or (made.source, made.name) != (self.chat_template, self.name):
            made = ChatTemplate(
                self.chat_template, self.name, self._named_specials(), self.switches
            )
            self._made_template = made
        return made


def char_tokenizer(alphabet: str) -> Tokenizer:
    """A tokenizer with one token a character, for tiny models.

    Ids: 0 pads, 1 ends a solution, and the alphabet follows in its order.

    Raises:
        ConfigurationError: a character occurs twice.
    """
    names = [PAD, EOS, *alphabet]
    if len(set(names)) < len(names):
        raise ConfigurationError("A character occurs twice in the alphabet.")
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = tokenizers.Tokenizer(token_models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([_control(PAD), _control(EOS)])
    return Tokenizer(backend, eos_ids=[1], pad_id=0)


def _control(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)
