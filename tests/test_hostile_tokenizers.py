"""Tokenizer files of unknown authors: read and used within limits, or refused."""

import json
import resource

import pytest
import tokenizers
from small_checkpoints import bpe_tokenizer
from test_gguf_tokenizer import sentencepiece_fields, write_vocabulary

from tsi.errors import CheckpointError, ConfigurationError
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.tokens.tokenizer_parts import is_bounded
from tsi.models.workers import untrusted
from tsi.models.workers.process_limits import Limits

TEXT = "a" * 40 + "b"
BIG = 2**31


def special(content, id, **flags):
    return {
        "id": id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    } | flags


def state(vocabulary=None, model=None, **parts):
    words = {"a": 0, "b": 1} if vocabulary is None else vocabulary
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": words, "merges": []} | (model or {}),
    } | parts


def replace(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*parts, kind="normalizers"):
    return {"type": "Sequence", kind: list(parts)}


def split(pattern):
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def saved(folder, fields, **files):
    text = fields if isinstance(fields, str) else json.dumps(fields)
    (folder / "tokenizer.json").write_text(text)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(autouse=True, scope="module")
def short_limits():
    patch = pytest.MonkeyPatch()
    patch.setattr(untrusted, "BUILD", Limits(10.0, 256))
    patch.setattr(untrusted, "ENCODE", Limits(0.3, 64))
    yield
    patch.undo()


REFUSED = {
    "an id of 2^31": (state({"a": 0, "b": BIG}), "the id 2147483648"),
    "an id of 2^32": (state({"a": 0, "b": 2**32}), "usable tokenizer"),
    "an id beyond every vocabulary": (state({"a": 0, "b": 2**22}), "ids below"),
    "an id of a word of 2^30": (
        state(model={"type": "WordLevel", "vocab": {"a": 2**30}, "unk_token": "a"}),
        "the id 1073741824",
    ),
    "a negative id": (state({"a": 0, "b": -1}), "usable tokenizer"),
    "an id that is no whole number": (state({"a": 0.5}), "usable tokenizer"),
    "one id twice": (state({"a": 0, "b": 0}), "the id 0 to"),
    "a token of 10,000 characters": (state({"a": 0, "b" * 10**4: 1}), "10000 char"),
    "merges of absent tokens": (state(model={"merges": ["a c"]}), "usable tokenizer"),
    "an added token far away": (
        state(added_tokens=[special("<x>", BIG)]),
        "its id is 2",
    ),
    "an added token in a hole": (
        state(added_tokens=[special("<x>", 500)]),
        "its id is 2",
    ),
    "an added token on another": (
        state(added_tokens=[special("<x>", 0)]),
        "its id is 2",
    ),
    "an added token without characters": (
        state(added_tokens=[special("", 2)]),
        "it has no id",
    ),
    "an expression that is none": (state(pre_tokenizer=split("(")), "usable token"),
    "a normaliser that is none": (
        state(normalizer=replace("(?<n", "", "Regex")),
        "usable token",
    ),
    "a normaliser that panics": (
        state(
            normalizer=replace("(a+)+$", "b", "Regex"),
            added_tokens=[special("a" * 40 + "!", 2, normalized=True)],
        ),
        "usable tokenizer",
    ),
    "a normaliser that grows added tokens": (
        state(
            normalizer=sequence(*[replace("a", "aaaaaaaaaa")] * 12),
            added_tokens=[special("ab", 2, normalized=True)],
        ),
        "to build it",
    ),
    "thousands of tokens around a text": (
        state(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "a", "type_id": 0}}] * 5000
                + [{"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}},
            }
        ),
        "5000 control tokens",
    ),
    "one control token of a million": (
        state(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "a", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {
                    "a": {"id": "a", "ids": [0] * 10**5, "tokens": ["a"] * 10**5}
                },
            }
        ),
        "100000 control tokens",
    ),
    "a list": ("[]", "usable tokenizer"),
    "deep brackets": ("[" * 10**5, "usable tokenizer"),
    "no end": (json.dumps(state())[:-20], "usable tokenizer"),
    "a decoder of another kind": (
        state(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
        "WordPiece is not supported",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_file_that_cannot_be_used_is_refused(name, tmp_path):
    fields, says = REFUSED[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=says):
        load_tokenizer(saved(tmp_path, fields))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


BESIDE = {
    "an added token with an id of 2^31": (
        {"added_tokens": {"<x>": BIG}},
        "the id 2147483648",
    ),
    "an added token with a negative id": ({"added_tokens": {"<x>": -1}}, "id -1"),
    "a table of added tokens with holes": (
        {"tokenizer_config": {"added_tokens_decoder": {"77": {"content": "<x>"}}}},
        "the id 77",
    ),
    "ids beyond the embedding": ({"config": {"vocab_size": 1}}, "vocabulary of 1"),
    "ids beyond that of the text half": (
        {"config": {"text_config": {"vocab_size": 1}}},
        "vocabulary of 1",
    ),
    "an end that is no id": ({"generation_config": {"eos_token_id": "b"}}, "='b'"),
    "an end that is negative": ({"generation_config": {"eos_token_id": [-1]}}, "-1"),
    "an end that is true": ({"generation_config": {"eos_token_id": True}}, "True"),
    "an end beyond the vocabulary": (
        {"config": {"vocab_size": 9}, "generation_config": {"eos_token_id": 9}},
        "eos_token_id=9",
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_the_tokenizer_that_contradict_it_are_refused(name, tmp_path):
    files, says = BESIDE[name]
    with pytest.raises(CheckpointError, match=says):
        load_tokenizer(saved(tmp_path, state(), **files))


IGNORED = {
    "padding to a billion": {
        "padding": {
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "a",
        }
    },
    "truncation with too long a stride": {
        "truncation": {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 5,
        }
    },
    "dropout of merges": {
        "vocabulary": {"a": 0, "b": 1, "ab": 2},
        "model": {"merges": ["a b"], "dropout": 0.5},
    },
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_was_for_training_is_ignored(name, tmp_path):
    tokenizer = load_tokenizer(saved(tmp_path, state(**IGNORED[name])))
    ids = tokenizer.encode("ab" * 20)
    assert len(ids) == (20 if "vocabulary" in IGNORED[name] else 40)
    assert tokenizer.decode(ids) == "ab" * 20


SLOW = {
    "an exponential expression": (
        {"pre_tokenizer": split("(?:a|a)+$|(?:aa?)+$")},
        "fails on a text|was stopped",
    ),
    "an exponential expression in a normaliser": (
        {"normalizer": replace("(a+)+$", "b", "Regex")},
        "fails on a text|was stopped",
    ),
    "a square one": (
        {"pre_tokenizer": split("(?:a*){9}c?$")},
        "fails on a text|was stopped",
    ),
    "an expression that looks back": (
        {"pre_tokenizer": split(r"(a*)*\1*\1*$")},
        "fails on a text|was stopped",
    ),
    "replacements that double": (
        {"normalizer": sequence(*[replace("a", "aa")] * 40)},
        "was stopped",
    ),
    "a replacement of nothing": (
        {"normalizer": sequence(*[replace("", "aaaa", "Regex")] * 12)},
        "was stopped",
    ),
    "one long replacement": ({"normalizer": replace("a", "b" * 10**5)}, "was stopped"),
    "a long prefix": (
        {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
        "stopped",
    ),
    "many normalisers": (
        {"normalizer": sequence(*[replace("b", "ab", "Regex")] * 3000)},
        "was stopped",
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_encoding_by_a_hostile_tokenizer_is_stopped(name, tmp_path):
    parts, says = SLOW[name]
    tokenizer = load_tokenizer(saved(tmp_path, state(**parts)))
    with pytest.raises(ConfigurationError, match=says):
        tokenizer.encode(TEXT * 40)
    # And whoever comes next is served.
    assert untrusted.render("x", [], {}) == "x"


def test_a_tokenizer_of_its_own_rules_has_the_ids_that_it_has(tmp_path):
    fields = state(
        {"a": 0, "b": 1, "ab": 2, "▁": 3, "▁a": 4, "<e>": 5},
        model={"merges": ["a b", "▁ a"]},
        normalizer=sequence(replace(r"\s+", " ", "Regex"), replace(" ", "▁")),
        pre_tokenizer={
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        },
        decoder={
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        },
        added_tokens=[special("<e>", 5)],
    )
    folder = saved(tmp_path, fields)
    ours, backend = (
        load_tokenizer(folder),
        tokenizers.Tokenizer.from_str(json.dumps(fields)),
    )
    assert not is_bounded(backend)
    for text in ("ab a", "a  a\nab", "b<e>ab"):
        expected = backend.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, allow_special=True) == expected
    untrusted.close()
    assert ours.encode("ab a") == [3, 2, 4]
    assert ours.normalise("a  b") == "a b"


def test_tokenizers_of_released_kinds_encode_here(tmp_path):
    assert is_bounded(bpe_tokenizer().backend)
    path = write_vocabulary(tmp_path / "m.gguf", "llama", sentencepiece_fields())
    assert is_bounded(load_tokenizer(path).backend)


GGUF = {
    "a beginning beyond the vocabulary": ({"bos_token_id": 10**6}, "bos_token_id"),
    "an end beyond it": ({"eos_token_id": 10**6}, "eos_token_id"),
    "padding by a text": ({"padding_token_id": "a"}, "padding_token_id"),
    "a space that is a number": ({"add_space_prefix": 2}, "neither true nor false"),
    "a beginning that is a text": ({"add_bos_token": "no"}, "neither true nor false"),
}


@pytest.mark.parametrize("name", GGUF)
def test_numbers_of_a_gguf_tokenizer_are_not_passed_over(name, tmp_path):
    changes, says = GGUF[name]
    fields = sentencepiece_fields() | changes
    with pytest.raises(CheckpointError, match=says):
        load_tokenizer(write_vocabulary(tmp_path / "m.gguf", "llama", fields))


def test_a_gguf_may_say_that_it_has_no_such_token(tmp_path):
    fields = sentencepiece_fields() | {"padding_token_id": 2**32 - 1}
    path = write_vocabulary(tmp_path / "m.gguf", "llama", fields)
    tokenizer = load_tokenizer(path)
    assert tokenizer.pad_id == next(iter(tokenizer.eos_ids), None)


def test_a_control_token_without_a_row_is_refused_where_it_is_used(tmp_path):
    # Gemma 3's text model has none for its pictures, and never writes it.
    fields = state(added_tokens=[special("<picture>", 2)])
    config = {"chat_template": "{{ messages[0].content }}"}
    files = {"config": {"vocab_size": 2}, "tokenizer_config": config}
    tokenizer = load_tokenizer(saved(tmp_path, fields, **files))
    assert tokenizer.encode_prompt("ab") == [0, 1]
    config["chat_template"] += "<picture>"
    tokenizer = load_tokenizer(saved(tmp_path, fields, **files))
    with pytest.raises(ConfigurationError, match="the token id 2"):
        tokenizer.encode_prompt("ab")


def test_a_tag_of_thinking_is_shown_though_it_is_control(tmp_path):
    tags = [special("<think>", 2), special("</think>", 3), special("<e>", 4)]
    tokenizer = load_tokenizer(saved(tmp_path, state(added_tokens=tags)))
    assert tokenizer.decode([2, 0, 3, 4, 1]) == "<think>a</think>b"
