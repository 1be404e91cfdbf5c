"""Tokenizers rebuilt from GGUF files are those of transformers on a nasty corpus."""

import json

import pytest
import transformers
from small_checkpoints import (
    NASTY,
    SPECIALS,
    bpe_tokenizer,
    sentencepiece_fields,
    write_vocabulary,
)
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    convert_gguf_tokenizer,
)

from tsi.errors import CheckpointError, ConfigurationError
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.tokens.tokenizer import Tokenizer

TEXTS = (
    *NASTY,
    "HelloWorld's camelCase XMLHttpRequest WE'RE i'm",
    "1 12 123 1234 12345.678 1,000,000",
    "  two\n\n\n  three   \t\t four" + " " * 40 + "x",
    " leading and trailing ",
    "a/b\r\nc/\n/d ==> !!! ---",
    "<|im_end|>a<s>b</s><unk><0x41><end_of_turn>[PAD3]",
    "x = [1, 2];\n\tif (x > 1) { return 'its'; }\n",
    "▁▁a ▁",
)
SPM_TURN = {"<pad>": 3, "<start_of_turn>": 3, "<end_of_turn>": 3}


@pytest.fixture(scope="module")
def bpe():
    return bpe_tokenizer()


def bpe_fields(bpe, pre):
    model = json.loads(bpe.backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3 if t in SPECIALS else 1 for t in tokens],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "padding_token_id": 1,
    }


def theirs(architecture, fields):
    """The tokenizer that transformers builds from the same fields of a GGUF."""
    names = {"model": "tokenizer_type", "pre": "pre_tokenizer_type"}
    renamed = {names.get(name, name): value for name, value in fields.items()}
    return convert_gguf_tokenizer(architecture, renamed)[0]


def check_equal(ours, their, texts=TEXTS):
    # Text is never control here; transformers splits control tokens off first.
    their.encode_special_tokens = True
    for text in texts:
        expected = their.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == expected, repr(text)
        assert not set(ours.encode(text)) & set(ours.special_ids.values())


@pytest.mark.parametrize("pre", ["llama-bpe", "dbrx", "tekken", "gpt-4o", "qwen2"])
def test_byte_level_tokenizers_equal_those_of_transformers(bpe, tmp_path, pre):
    fields = bpe_fields(bpe, pre)
    path = write_vocabulary(tmp_path / "m.gguf", "llama", fields)
    ours, their = load_tokenizer(path), theirs("llama", fields)
    if pre == "qwen2":
        # Reading a GGUF, transformers forgets Qwen's normaliser.
        model = json.loads(bpe.backend.to_str())["model"]
        pairs = [tuple(pair) for pair in model["merges"]]
        qwen = transformers.Qwen2Tokenizer(vocab=model["vocab"], merges=pairs)
        their = qwen.backend_tokenizer
    check_equal(ours, their)
    assert ours.add_bos == (pre in ("llama-bpe", "tekken"))
    for text in TEXTS:
        plain = text if pre != "qwen2" else ours.backend.normalizer.normalize_str(text)
        assert ours.decode(ours.encode(text)) == plain
        whole = b"".join(map(ours.token_bytes, ours.encode(text)))
        assert whole == plain.encode()


def test_the_rules_split_text_apart_where_they_differ(bpe, tmp_path):
    text = "WordThen 1234's/\n\n!!\nI'M"
    splits = {}
    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "default"):
        path = write_vocabulary(tmp_path / "m.gguf", "llama", bpe_fields(bpe, pre))
        backend = load_tokenizer(path).backend
        words = backend.pre_tokenizer.pre_tokenize_str(text)
        splits[pre] = tuple(word for word, _ in words)
    assert len(set(splits.values())) == len(splits)
    assert "Then" in splits["gpt-4o"]
    assert "Then" in splits["tekken"]
    assert {"123", "4"} <= set(splits["default"])


def test_sentencepiece_with_a_space_first_equals_that_of_transformers(tmp_path):
    fields = sentencepiece_fields()
    ours = load_tokenizer(write_vocabulary(tmp_path / "m.gguf", "phi3", fields))
    check_equal(ours, theirs("phi3", fields))
    assert ours.add_bos
    assert [ours.token_bytes(i) for i in ours.encode("\x01")] == [b" ", b"\x01"]
    for text in TEXTS:
        # A literal ▁ reads as a space, as in SentencePiece itself.
        assert ours.decode(ours.encode(text)) == text.replace("▁", " ")
    llama = load_tokenizer(write_vocabulary(tmp_path / "m.gguf", "llama", fields))
    for text in TEXTS:
        assert llama.encode(text) == ours.encode(text)
    # transformers puts no second space before a text that begins with one.
    plain = [text for text in TEXTS if text[:1] not in (" ", "▁")]
    check_equal(llama, theirs("llama", fields), plain)


def test_sentencepiece_of_gemma_equals_that_of_transformers(tmp_path):
    runs = {" " * n: 4 for n in range(2, 32)} | {"\n\n": 4, "\n\n\n": 4, "<table>": 4}
    fields = sentencepiece_fields(SPM_TURN | runs) | {"add_space_prefix": False}
    # The scores of a real Gemma are of no use; the order of its tokens is.
    fields["scores"] = [-1000.0] * len(fields["tokens"])
    path = write_vocabulary(tmp_path / "m.gguf", "gemma3", fields)
    ours = load_tokenizer(path)
    more = (*TEXTS, "<table>  <b>\n\n\n\n  x", "\n\n\n x", *runs)
    check_equal(ours, theirs("gemma3", fields), more)
    assert ours.encode("  x  ")[-1] == fields["tokens"].index("  ")
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text.replace("▁", " ")


def test_scores_decide_which_pair_merges_first(tmp_path):
    fields = sentencepiece_fields({"qj": 1, "jz": 1, "q": 1, "j": 1, "z": 1})
    at = fields["tokens"].index("qj")
    for best, expected in ((0, ["qj", "z"]), (1, ["q", "jz"])):
        fields["scores"][at : at + 2] = [-9.0, -9.0]
        fields["scores"][at + best] = -1.0
        fields["add_space_prefix"] = False
        path = write_vocabulary(tmp_path / "m.gguf", "llama", fields)
        ours = load_tokenizer(path)
        assert [ours.backend.id_to_token(i) for i in ours.encode("qjz")] == expected


def test_text_cannot_be_merged_into_a_control_token(tmp_path):
    parts = ("<", "/", "s", ">", "<s", "s>", "</")
    fields = sentencepiece_fields(dict.fromkeys(parts, 1))
    fields["scores"] = [-float(i) for i in range(len(fields["tokens"]))]
    path = write_vocabulary(tmp_path / "m.gguf", "llama", fields)
    ours = load_tokenizer(path)
    for text in ("<s>", "</s>", "a<s></s>b<unk>"):
        assert not set(ours.encode(text)) & {0, 1, 2}
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("<s>", allow_special=True)[0] == 1


def test_the_end_of_a_turn_is_control_and_ends_a_solution(tmp_path):
    fields = sentencepiece_fields({"<|end|>": 4, "<|assistant|>": 3})
    path = write_vocabulary(tmp_path / "m.gguf", "phi3", fields)
    ours = load_tokenizer(path)
    end = ours.special_ids["<|end|>"]
    assert ours.eos_ids == (2, end)
    assert end not in ours.encode("a<|end|>b")


def test_control_tokens_of_phi3_swallow_the_white_space_after_them(tmp_path):
    fields = sentencepiece_fields({"<|user|>": 3, "<|end|>": 3})
    path = write_vocabulary(tmp_path / "m.gguf", "phi3", fields)
    ours = load_tokenizer(path)
    user, end = (ours.special_ids[s] for s in ("<|user|>", "<|end|>"))
    ids = ours.encode("<|user|>\n hello<|end|>\n", allow_special=True)
    assert ids == [user, *ours.encode("hello"), end]
    template = "{{ '<|user|>\n' + messages[0]['content'] + '<|end|>\n' }}"
    chat = Tokenizer(ours.backend, chat_template=template)
    assert chat.encode_prompt("hello") == ids
    path = write_vocabulary(tmp_path / "m.gguf", "llama", fields)
    kept = load_tokenizer(path).encode("<|user|>\nhello", allow_special=True)
    assert kept == [user, *ours.encode("\nhello")]


def test_a_vocabulary_without_bytes_refuses_what_it_cannot_spell(tmp_path):
    fields = sentencepiece_fields()
    keep = [i for i, kind in enumerate(fields["token_type"]) if kind != 6]
    for name in ("tokens", "token_type", "scores"):
        fields[name] = [fields[name][i] for i in keep]
    path = write_vocabulary(tmp_path / "m.gguf", "llama", fields)
    ours = load_tokenizer(path)
    assert ours.decode(ours.encode("the sum")) == "the sum"
    with pytest.raises(ConfigurationError, match="cannot spell"):
        ours.encode("the sum \u4e01")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "t5"}, "the kind 't5'; from GGUF only 'gpt2'.*'llama'"),
        ({"model": "gemma4"}, "the kind 'gemma4'"),
        ({"scores": None}, "no scores"),
        ({"scores": [1.0]}, "scores of tokens that are not one"),
        ({"token_type": [1]}, "inconsistent vocabulary"),
        ({"tokens": ["a"] * 4, "token_type": [1] * 4}, "4 tokens, 1 different"),
        ({"tokens": ["a" * 5000]}, "a token of 5000 characters"),
        ({"token_type": "no bytes"}, "0 tokens of single bytes"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces = True"),
    ],
)
def test_vocabularies_that_cannot_be_read_are_refused(tmp_path, changes, says):
    fields = sentencepiece_fields()
    if changes == {"token_type": "no bytes"}:
        changes = {"token_type": [1] * len(fields["tokens"])}
    fields = {k: v for k, v in (fields | changes).items() if v is not None}
    path = write_vocabulary(tmp_path / "m.gguf", "llama", fields)
    with pytest.raises(CheckpointError, match=says):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"merges": ["a nothing"]}, r"1 of them of unknown tokens \['a nothing'\]"),
        ({"merges": ["a"]}, r"unknown tokens \['a '\]"),
        ({"pre": "deepseek-llm"}, "names the pre-tokenizer 'deepseek-llm'. Known: "),
        ({"add_space_prefix": True}, "add_space_prefix = True.*'gpt2'"),
    ],
)
def test_byte_level_vocabularies_that_cannot_be_read_are_refused(
    bpe, tmp_path, changes, says
):
    fields = bpe_fields(bpe, "llama-bpe") | changes
    path = write_vocabulary(tmp_path / "m.gguf", "llama", fields)
    with pytest.raises(CheckpointError, match=says):
        load_tokenizer(path)


def test_saved_tokenizers_are_read_again_the_same(bpe, tmp_path):
    spm = sentencepiece_fields(SPM_TURN) | {"add_space_prefix": False}
    for architecture, fields in (
        ("llama", bpe_fields(bpe, "llama-bpe")),
        ("phi3", sentencepiece_fields({"<|end|>": 3})),
        ("gemma3", spm),
    ):
        path = write_vocabulary(tmp_path / "m.gguf", architecture, fields)
        ours = load_tokenizer(path)
        ours.save(tmp_path / architecture)
        again = load_tokenizer(tmp_path / architecture)
        for text in TEXTS:
            assert again.encode(text) == ours.encode(text)
            ids = ours.encode(text, allow_special=True)
            assert again.encode(text, allow_special=True) == ids
            assert again.decode(ids) == ours.decode(ids)
