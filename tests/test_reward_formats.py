"""Formats against strings written out by hand after the published examples."""

import unicodedata

import pytest
import tokenizers
from small_checkpoints import SPECIALS, TEMPLATE, bpe_tokenizer
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as token_models

from tsi.errors import ConfigurationError
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.rewards.formats import (
    ContinuationFormat,
    MathShepherdFormat,
    OutcomeFormat,
    QwenFormat,
    RLHFlowFormat,
    SkyworkFormat,
)

QUESTION = "Janet's ducks lay 16 eggs per day. How many in 2 days?"
STEPS = ["Step 1: 16 eggs a day.\n\n", "Step 2: 16 * 2 = 32. The answer is: 32"]


def tokenizer(vocab_size: int = 400, extra: tuple[str, ...] = ()) -> Tokenizer:
    """Byte-level BPE whose merges cross white space, trained on a text of tags."""
    backend = tokenizers.Tokenizer(token_models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[
            AddedToken(s, special=True, normalized=False) for s in (*SPECIALS, *extra)
        ],
    )
    text = [f"{QUESTION} {STEPS[0].strip()} ки\n{STEPS[1]} ки\n + -"] * 4
    backend.train_from_iterator(text, trainer)
    return Tokenizer(backend, bos_id=0, eos_ids=[2], chat_template=TEMPLATE)


READER = tokenizer(extra=("<extra_0>",))


def spelled(ids: list[int]) -> str:
    """The text with control tokens spelled out."""
    names = {id: name for name, id in READER.special_ids.items()}
    parts = [names.get(i, "").encode() or READER.token_bytes(i) for i in ids]
    return b"".join(parts).decode()


def read_at(rendering) -> list[str]:
    """What the model has seen at each mark."""
    return [spelled(rendering.tokens[: mark + 1]) for mark in rendering.marks]


def test_qwen_reads_the_separator_after_each_step_of_a_chat():
    system = (
        "<|im_start|>system\nPlease reason step by step, and put your final answer "
        "within \\boxed{}.<|im_end|>\n"
    )
    chat = f"{system}<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    one = f"{chat}Step 1: 16 eggs a day.<extra_0>"
    both = f"{one}Step 2: 16 * 2 = 32. The answer is: 32<extra_0>"
    found = QwenFormat(READER).render(QUESTION, STEPS, False)
    assert read_at(found) == [one, both]
    assert found.tokens == READER.encode(both, allow_special=True)
    assert [found.tokens[m] for m in found.marks] == [3, 3]
    assert QwenFormat(READER).answers is None


def test_a_step_that_spells_the_separator_is_not_read_there():
    found = QwenFormat(READER).render(QUESTION, ["a<extra_0>b<|im_end|>"], False)
    assert found.tokens.count(3) == len(found.marks) == 1
    assert spelled(found.tokens).endswith("a<extra_0>b<|im_end|><extra_0>")
    assert found.tokens.count(READER.special_ids["<|im_end|>"]) == 2


def test_qwen_asks_for_its_separator():
    with pytest.raises(ConfigurationError, match="no token '<extra_0>'"):
        QwenFormat(tokenizer()).render(QUESTION, STEPS, False)


def test_math_shepherd_reads_the_tag_after_each_step():
    format = MathShepherdFormat(READER)
    found = format.render(QUESTION, STEPS, False)
    one = f"{QUESTION} Step 1: 16 eggs a day. ки"
    both = f"{one}\nStep 2: 16 * 2 = 32. The answer is: 32 ки"
    assert found.tokens == [0, *READER.encode(both)]
    # This tokenizer joins the first tag with the line's end that follows it.
    first, last = (text.removeprefix(SPECIALS[0]) for text in read_at(found))
    before = spelled(found.tokens[1 : found.marks[0]])
    assert both.startswith(first)
    assert len(before) < len(one) < len(first)
    assert last == both
    assert read_at(format.render(QUESTION, STEPS[:1], False)) == [SPECIALS[0] + one]
    # One that parts at white space reads each at the tag's own end.
    plain = bpe_tokenizer()
    words = MathShepherdFormat(plain).render(QUESTION, STEPS, False)
    ends = [plain.decode(words.tokens[: mark + 1]) for mark in words.marks]
    assert ends == [one, both]
    assert [READER.token_bytes(i).strip() for i in format.answers] == [b"+", b"-"]


def test_rlhflow_reads_what_predicts_each_answer():
    found = RLHFlowFormat(READER).render(QUESTION, STEPS, False)
    one = (
        f"<|im_start|>user\n{QUESTION} Step 1: 16 eggs a day.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    both = (
        f"{one}+<|im_end|>\n<|im_start|>user\nStep 2: 16 * 2 = 32. The answer is: 32"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert read_at(found) == [one, both]
    good, bad = RLHFlowFormat(READER).answers
    assert (READER.token_bytes(good), READER.token_bytes(bad)) == (b"+", b"-")
    # The published code takes three from the end: answer, end of turn, and itself.
    assert found.tokens[found.marks[0] + 1] == good


def test_skywork_encodes_lines_by_themselves_and_reads_their_ends():
    steps = ["First:\n  16 eggs\n", "32"]
    found = SkyworkFormat(READER).render(QUESTION, steps, False)
    encode, newline = READER.encode, READER.encode("\n")[-1]
    expected = [0, *encode(QUESTION + "\n"), *encode("First:"), newline]
    expected += [*encode("  16 eggs"), newline]
    first = len(expected) - 1
    expected += [*encode("32"), newline]
    assert found.tokens == expected
    assert found.marks == [first, len(expected) - 1]


def test_an_outcome_is_read_at_the_last_token_of_the_chat():
    found = OutcomeFormat(READER, "Solve.").render(QUESTION, STEPS, True)
    assert read_at(found) == [
        f"<|im_start|>system\nSolve.<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
        f"<|im_start|>assistant\n{''.join(STEPS)}<|im_end|>\n"
    ]
    plain = Tokenizer(READER.backend, eos_ids=[2])
    found = OutcomeFormat(plain).render("Q: ", ["a", "b"], True)
    assert read_at(found) == ["Q: ab"]


TURNS = (
    "{{% for m in messages %}}{{{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
    "'{}' }}}}{{% endfor %}}{{% if add_generation_prompt %}}"
    "{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
)

# Without what the assistant says, an end cannot be found.
HIDDEN = "(m['content'] if m['role'] == 'user' else '')"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (TURNS.format("<end_of_turn>\n"), "<end_of_turn>"),  # Gemma
        (TURNS.format("<|im_end|>\n<|im_start|>"), "<|im_end|>"),
        (TURNS.format(" <|endoftext|>"), "<|endoftext|>"),  # Llama 2
        (TURNS.format("\n\n"), "<|im_end|>"),
        (TURNS.replace("m['content']", HIDDEN).format("<end_of_turn>"), None),
        (None, None),
    ],
)
def test_a_continuation_ends_as_a_turn_of_its_models_chats(template, end):
    # The texts of this tokenizer end with <|im_end|>, whatever its turns end with.
    plain = tokenizer(extra=("<end_of_turn>",))
    reader = Tokenizer(plain.backend, eos_ids=[2, 0], chat_template=template)
    ended = ContinuationFormat(reader).render(QUESTION, STEPS, True)
    ongoing = ContinuationFormat(reader).render(QUESTION, STEPS, False)
    assert ended.tokens == [*ongoing.tokens, reader.special_ids[end or "<|im_end|>"]]
    assert [m + i for i, m in enumerate(ongoing.marks)] == ended.marks


def test_a_continuation_without_any_end_is_left_open():
    reader = Tokenizer(READER.backend)
    found = ContinuationFormat(reader).render(QUESTION, STEPS, True)
    assert found == ContinuationFormat(reader).render(QUESTION, STEPS, False)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC"])
def test_tags_are_found_in_text_that_the_tokenizer_changes(form):
    reader = tokenizer()
    reader.backend.normalizer = getattr(normalizers, form)()
    question, steps = (
        "Cafe\u0301 \ufb01ve \u1e69?",
        ["cafe\u0301s e\u0301", "\u00e9\u2460"],
    )
    found = MathShepherdFormat(reader).render(question, steps, False)
    one = f"{question} {steps[0]} ки"
    both = f"{one}\n{steps[1]} ки"
    shown = [unicodedata.normalize(form, text) for text in (one, both)]
    assert shown != [one, both]
    # Each tag's last byte is in the token that is read, and in none before it.
    for mark, text in zip(found.marks, shown, strict=True):
        upto, before = (
            b"".join(map(reader.token_bytes, found.tokens[1:end]))
            for end in (mark + 1, mark)
        )
        assert len(before) < len(text.encode()) <= len(upto)
        assert upto.startswith(text.encode())


@pytest.mark.parametrize("ended", [False, True])
def test_a_continuation_is_scored_from_its_first_token_to_its_last(ended):
    found = ContinuationFormat(READER).render(QUESTION, STEPS, ended)
    prompt = READER.encode_prompt(QUESTION)
    solution = READER.encode("".join(STEPS)) + [2] * ended
    assert found.tokens == prompt + solution
    assert found.marks == [len(prompt) - 1, len(prompt) + len(solution) - 1]
