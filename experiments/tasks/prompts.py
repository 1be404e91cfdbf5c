"""How a problem is asked: a system text, worked examples, the form of the question.

With a chat template the examples are earlier turns of the chat. Without one, prompt and
examples are plain text, and the end token after each example shows a base model where
solutions end.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError
from tsi.models.tokens.spelling import Spelling

QUESTION = "{question}"
"""Stands for the problem in `PromptFormat.question`."""


class PromptFormat(NamedTuple):
    """A system text, worked examples and the form of a question.

    Attributes:
        system: text before everything; empty for none.
        examples: pairs of question and solution.
        question: the form of a question; ``{question}`` stands for the problem.
    """

    system: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    question: str = QUESTION

    def ask(self, prompt: str) -> str:
        """The text of a question about a problem.

        >>> PromptFormat(question="Q: {question}").ask("1 + 1")
        'Q: 1 + 1'
        """
        return self.question.replace(QUESTION, prompt)

    def check(self) -> "PromptFormat":
        """This format, unless it lacks the problem or is not valid Unicode.

        Raises:
            ConfigurationError: see above.
        """
        for text in (self.system, self.question):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ConfigurationError(
                    f"The text {text!r:.80} is not UTF-8 at character "
                    f"{error.start + 1}; write it in that encoding."
                ) from error
        if QUESTION not in self.question:
            raise ConfigurationError(
                f"The form of the question, {self.question!r}, lacks {QUESTION}, which "
                "stands for the problem; write it where the problem belongs."
            )
        return self

    def settings(self) -> dict[str, Any]:
        """The settings that rows record; examples are recorded by their hash."""
        settings: dict[str, Any] = {}
        if self.system:
            settings["system"] = self.system
        if self.question != QUESTION:
            settings["question_form"] = self.question
        if self.examples:
            content = json.dumps(self.examples).encode()
            settings["examples_sha256"] = hashlib.sha256(content).hexdigest()
        return settings


def format_encoder(
    format: PromptFormat, tokenizer: Spelling
) -> Callable[[str], list[int]]:
    """A function from a problem to the token ids of its prompt.

    The system text is part of the first question if the chat template does not support
    system messages.

    Args:
        format: of the prompt.
        tokenizer: of the policy.
    """
    if tokenizer.chat_template is None:
        return _text_encoder(format, tokenizer)
    turns: list[dict[str, str]] = []
    for question, solution in format.examples:
        turns.append({"role": "user", "content": format.ask(question)})
        turns.append({"role": "assistant", "content": solution})
    start = [{"role": "system", "content": format.system}] if format.system else []

    def messages(prompt: str, has_system: bool) -> list[dict[str, str]]:
        chat = [*turns, {"role": "user", "content": format.ask(prompt)}]
        if has_system or not start:
            return [*start, *chat]
        first = {**chat[0], "content": f"{format.system}\n\n{chat[0]['content']}"}
        return [first, *chat[1:]]

    try:
        tokenizer.encode_chat(messages("1", True))
    except ConfigurationError:
        if not start:
            raise
        return lambda prompt: tokenizer.encode_chat(messages(prompt, False))
    return lambda prompt: tokenizer.encode_chat(messages(prompt, True))


def _text_encoder(
    format: PromptFormat, tokenizer: Spelling
) -> Callable[[str], list[int]]:
    end = list(tokenizer.eos_ids[:1])
    prefix: list[int] = []
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        prefix.append(tokenizer.bos_id)
    if format.system:
        prefix += tokenizer.encode(f"{format.system}\n\n")
    for question, solution in format.examples:
        prefix += tokenizer.encode(f"{format.ask(question)}\n{solution}") + end
    return lambda prompt: prefix + tokenizer.encode(f"{format.ask(prompt)}\n")
