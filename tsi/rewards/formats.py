"""How a solution is rendered for published reward models, and where scores are read.

A format is a small object: ``render(question, steps, ended)`` returns the token ids of
a solution so far and the positions at which scores are read, one per step (or one in
all). Tokens after the last of these positions are omitted, since a causal model cannot
see them.

White space around steps, including delimiters, is removed, as in the published
examples. The text of a step never becomes a control token: ``<extra_0>`` in a step is
encoded as ordinary text.

====================  ==============================================================
`QwenFormat`          model card of Qwen/Qwen2.5-Math-PRM-7B: a chat with a system
                      prompt, steps joined and ended by ``<extra_0>``; read there
`MathShepherdFormat`  model card of peiyi9979/math-shepherd-mistral-7b-prm:
                      ``question step ки\\nstep ки``; + against − at the tag
`RLHFlowFormat`       math-rm/prm_evaluate.py of RLHFlow/RLHF-Reward-Modeling: user
                      turns with a step each, the question before the first,
                      answered by "+"; + against − where the answer is predicted
`SkyworkFormat`       model_utils/io_utils.py of SkyworkAI/skywork-o1-prm-inference:
                      ``bos question\\n``, then lines, each encoded by itself and
                      followed by the newline's token; read at the last one of a step
`OutcomeFormat`       chat or plain text, as the policy's; read at the last token
`ContinuationFormat`  the same without the template's end; read over the solution
====================  ==============================================================
"""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from tsi.errors import ConfigurationError
from tsi.models.decoder import LanguageModel
from tsi.models.heads import OutcomeScorer, ProcessScorer, SequenceScorer, ValueScorer
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.models.tokens.unused_character import unused_character

QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
TAGS = range(0xF8FF, 0xF000, -1)
"""Characters; one that does not occur in the text marks the token at which scores are
read."""


class Rendering(NamedTuple):
    """A solution so far in the form that a reward model reads.

    Attributes:
        tokens: token ids.
        marks: indices of the tokens at which scores are read, in order.
    """

    tokens: list[int]
    marks: list[int]


@runtime_checkable
class Format(Protocol):
    """How a solution is rendered for a reward model."""

    @property
    def heads(self) -> tuple[type, ...]:
        """Classes of the models that can read this format."""

    @property
    def answers(self) -> tuple[int, int] | None:
        """Ids whose log-probabilities are compared; None if a head gives the score."""

    def render(self, question: str, steps: Sequence[str], ended: bool) -> Rendering:
        """Render the steps so far; ``ended`` says whether the policy has ended."""


@dataclasses.dataclass(frozen=True)
class QwenFormat:
    """Qwen2.5-Math-PRM: the score of a step is read at the separator after it.

    Attributes:
        tokenizer: the reward model's tokenizer, with its chat template.
        system: the system prompt.
        separator: the control token after each step.
    """

    tokenizer: Tokenizer
    system: str = QWEN_SYSTEM
    separator: str = "<extra_0>"
    heads = (ProcessScorer,)
    answers = None

    def render(self, question: str, steps: Sequence[str], ended: bool) -> Rendering:
        """See :class:`Format`."""
        steps = [step.strip() for step in steps]
        tag = unused_character([self.system, question, *steps], TAGS)
        messages = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": question},
            {"role": "assistant", "content": "".join(step + tag for step in steps)},
        ]
        separator = _control_id(self.tokenizer, self.separator)
        tokens, marks = self.tokenizer.encode_with_tags(messages, {tag: separator})
        return _cut_after_last_mark(tokens, marks)


@dataclasses.dataclass(frozen=True)
class MathShepherdFormat:
    """Math-Shepherd: a tag after each step, at which "+" and "-" are compared.

    The tag is ordinary text. If the tokenizer merges it with its neighbours, the score
    is read at the token with the tag's last byte.
    """

    tokenizer: Tokenizer
    tag: str = "ки"

    heads = (LanguageModel,)

    @property
    def answers(self) -> tuple[int, int]:
        """Ids of "+" and "-" after a space, as in the model card's ``encode("+ -")``.

        With Mistral's tokenizer these are 648 and 387.
        """
        plus_id, minus_id = self.tokenizer.encode("+ -")[-2:]
        return plus_id, minus_id

    def render(self, question: str, steps: Sequence[str], ended: bool) -> Rendering:
        """See :class:`Format`."""
        text, ends = f"{question} ", []
        for number, step in enumerate(steps):
            text += ("\n" if number else "") + f"{step.strip()} {self.tag}"
            ends.append(self._size(text))
        tokenizer = self.tokenizer
        tokens = tokenizer.encode(text)
        sizes = [len(tokenizer.token_bytes(id)) for id in tokens]
        # A tokenizer may put a space before the text, so offsets are counted from the
        # end.
        offset = sum(sizes) - self._size(text)
        first = [tokenizer.bos_id] if tokenizer.bos_id is not None else []
        begins, begin = [], -offset
        for size in sizes:
            begins.append(begin)
            begin += size
        marks = [len(first) + bisect.bisect_left(begins, end) - 1 for end in ends]
        return _cut_after_last_mark([*first, *tokens], marks)

    def _size(self, text: str) -> int:
        """Bytes of a text after the tokenizer's normalisation."""
        return len(self.tokenizer.normalise(text).encode("utf-8"))


@dataclasses.dataclass(frozen=True)
class RLHFlowFormat:
    """RLHFlow: each step is a turn of the user, and "+" is the assistant's answer."""

    tokenizer: Tokenizer

    heads = (LanguageModel,)

    @property
    def answers(self) -> tuple[int, int]:
        """Ids of "+" and "-"."""
        return self.tokenizer.encode("+")[-1], self.tokenizer.encode("-")[-1]

    def render(self, question: str, steps: Sequence[str], ended: bool) -> Rendering:
        """See :class:`Format`."""
        steps = [step.strip() for step in steps]
        tag = unused_character([question, *steps], TAGS)
        turns = [f"{question} {steps[0]}", *steps[1:]] if steps else [question]
        messages = []
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            messages.append({"role": "assistant", "content": tag})
        answer = {tag: self.answers[0]}
        tokens, places = self.tokenizer.encode_with_tags(messages, answer)
        # The answer is predicted at the token before the answer.
        return _cut_after_last_mark(tokens, [place - 1 for place in places])


@dataclasses.dataclass(frozen=True)
class SkyworkFormat:
    """Skywork-o1-Open-PRM: the score of a step is read at the newline after it.

    The released code scores every line. Here a step of several lines has one score,
    that of its last line, and empty lines between steps are left out.
    """

    tokenizer: Tokenizer
    heads = (ValueScorer,)
    answers = None

    def render(self, question: str, steps: Sequence[str], ended: bool) -> Rendering:
        """See :class:`Format`."""
        encode, bos = self.tokenizer.encode, self.tokenizer.bos_id
        tokens = [*([] if bos is None else [bos]), *encode(f"{question}\n")]
        newline = encode("\n")[-1]
        marks = []
        for step in steps:
            for line in step.strip().split("\n"):
                tokens += [*encode(line), newline]
            marks.append(len(tokens) - 1)
        return Rendering(tokens, marks)


@dataclasses.dataclass(frozen=True)
class OutcomeFormat:
    """An outcome reward model: one score, read at the last token.

    Transformers' sequence classification and Qwen2.5-Math-RM also read the score there.
    The tokens that end the assistant's turn are read again after each step.

    Attributes:
        tokenizer: the reward model's tokenizer; without a chat template, plain text is
            rendered.
        system: a system prompt, or None.
    """

    tokenizer: Tokenizer
    system: str | None = None
    heads = (SequenceScorer, OutcomeScorer)
    answers = None

    def render(self, question: str, steps: Sequence[str], ended: bool) -> Rendering:
        """See :class:`Format`."""
        solution = "".join(steps)
        if self.tokenizer.chat_template is None:
            tokens = self.tokenizer.encode_prompt(question, system=self.system)
            tokens = [*tokens, *self.tokenizer.encode(solution)]
        else:
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": solution},
            ]
            if self.system is not None:
                messages.insert(0, {"role": "system", "content": self.system})
            tokens = self.tokenizer.encode_chat(messages, add_generation_prompt=False)
        return Rendering(tokens, [len(tokens) - 1])


@dataclasses.dataclass(frozen=True)
class ContinuationFormat:
    """A language model that gives the likelihood of the solution after a prompt.

    The marks are the token that predicts the solution's first token, and the last
    token. The solution is encoded separately, as a policy writes it, and appended to
    the prompt's tokens. If the solution has ended, the token that ends a turn in this
    model's chat template follows.
    """

    tokenizer: Tokenizer
    system: str | None = None
    heads = (LanguageModel,)
    answers = None

    def render(self, question: str, steps: Sequence[str], ended: bool) -> Rendering:
        """See :class:`Format`."""
        prompt = self.tokenizer.encode_prompt(question, system=self.system)
        tokens = [*prompt, *self.tokenizer.encode("".join(steps))]
        end = self.tokenizer.turn_end
        if ended and end is not None:
            tokens.append(end)
        return Rendering(tokens, [len(prompt) - 1, len(tokens) - 1])


FORMATS: dict[str, type] = {
    "qwen": QwenFormat,
    "math-shepherd": MathShepherdFormat,
    "rlhflow": RLHFlowFormat,
    "skywork": SkyworkFormat,
    "outcome": OutcomeFormat,
}


def _cut_after_last_mark(tokens: list[int], marks: list[int]) -> Rendering:
    return Rendering(tokens[: marks[-1] + 1] if marks else tokens, marks)


def _control_id(tokenizer: Tokenizer, name: str) -> int:
    id = tokenizer.backend.token_to_id(name)
    if id is None:
        raise ConfigurationError(
            f"The reward model's tokenizer has no token {name!r}, at which this format "
            "reads the score of a step. Choose the format of this model."
        )
    return id
