"""A conversation as the text of a problem, and its token ids.

An engine knows a problem by one text, which the policy and the reward read. For a
single question this is its text, as in `tsi solve`. Further turns precede it:

    <RS>System: ...      <RS>User: ...      <RS>Assistant: ...      <RS>User: ...

RS is the control character U+001E, which no message may have, so that the text has one
reading and a message cannot add a turn. The policy never reads this form. Its turns are
rendered by the chat template, in which a message cannot write control tokens
(:mod:`tsi.models.tokens.tokenizer`).
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

from tsi.experiments.tasks.prompts import PromptFormat, format_encoder
from tsi.experiments.tasks.task import Task
from tsi.experiments.worlds.language_policy import prompt_encoder, prompt_format
from tsi.models.tokens.spelling import Spelling

SEPARATOR = "\x1e"
_SYSTEM, _USER, _ASSISTANT = "System: ", "User: ", "Assistant: "
_END = "\n\n"


class Conversation(NamedTuple):
    """A question and what was said before it.

    Attributes:
        question: the last message, of the user.
        system: text before everything; None for the server's own.
        turns: earlier pairs of messages of the user and the assistant.
    """

    question: str
    system: str | None = None
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def is_question(self) -> bool:
        """Whether there is only the question."""
        return self.system is None and not self.turns

    def text(self) -> str:
        """The text of the problem; `parse_conversation` reads it."""
        if self.is_question:
            return self.question
        parts = [] if self.system is None else [_SYSTEM + self.system]
        for user, assistant in self.turns:
            parts += [_USER + user, _ASSISTANT + assistant]
        parts.append(_USER + self.question)
        return _END.join(SEPARATOR + part for part in parts)


def parse_conversation(text: str) -> Conversation:
    """The conversation of a problem's text.

    >>> parse_conversation(Conversation("b?", "Be brief.", (("a?", "a."),)).text())
    Conversation(question='b?', system='Be brief.', turns=(('a?', 'a.'),))
    """
    if not text.startswith(SEPARATOR):
        return Conversation(text)
    parts = text[1:].split(_END + SEPARATOR)
    system = None
    if parts[0].startswith(_SYSTEM):
        system = parts.pop(0).removeprefix(_SYSTEM)
    *earlier, question = [part.partition(": ")[2] for part in parts]
    turns = zip(earlier[::2], earlier[1::2], strict=True)
    return Conversation(question, system, tuple(turns))


def conversation_encoder(task: Task, tokenizer: Spelling) -> Callable[[str], list[int]]:
    """A function from the text of a conversation to token ids.

    A single question is encoded as the task's problems are. A system message replaces
    the task's own system text, and earlier turns follow the task's worked examples. One
    thread encodes at a time.

    Raises:
        CheckpointError: the task's own models are missing.
    """
    encode_question = prompt_encoder(task, tokenizer)
    base = prompt_format(task, tokenizer) or PromptFormat()
    lock = threading.Lock()

    def encode(text: str) -> list[int]:
        conversation = parse_conversation(text)
        with lock:
            if conversation.is_question:
                return encode_question(text)
            return _encoder_of(conversation, base, tokenizer)(conversation.question)

    return encode


def _encoder_of(
    conversation: Conversation, base: PromptFormat, tokenizer: Spelling
) -> Callable[[str], list[int]]:
    system = base.system if conversation.system is None else conversation.system
    examples = (*base.examples, *conversation.turns)
    format = base._replace(system=system, examples=examples)
    return format_encoder(format, tokenizer)
