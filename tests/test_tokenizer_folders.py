"""Folders of every age give the ids of transformers' own AutoTokenizer."""

import json

import pytest
import tokenizers
from small_checkpoints import NASTY, SPECIALS, TEMPLATE, bpe_tokenizer
from tokenizers import AddedToken, decoders, normalizers, processors
from tokenizers import models as token_models
from transformers import AutoTokenizer

from tsi.errors import CheckpointError, ConfigurationError
from tsi.models.loading.load_tokenizer import load_tokenizer

TEXTS = (
    *NASTY,
    "the cat sat",
    " a  cat",
    "▁a",
    "<s>the cat</s>\nthe <s> cat </s>",
    "</s></s> a",
    "a <|im_end|> b<tool> c",
)
CHAT = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": " sat\n"},
    {"role": "user", "content": "a cat"},
]
LLAMA_CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token "
    "+ '\n' }}{% endfor %}{{ unk_token }}"
)


def write(folder, **files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)


def equals_theirs(folder, texts=TEXTS):
    """Ours, once it has the ids, the roles and the chats of theirs."""
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, allow_special=True) == ids, text
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_ids[:1] == ((theirs.eos_token_id,) if theirs.eos_token else ())
    added = theirs.added_tokens_decoder.items()
    assert ours.special_ids.items() >= {(t.content, i) for i, t in added if t.special}
    assert ours.vocab_size == len(theirs)
    bare = theirs.encode("a")
    assert ours.add_bos == (bare[0] == theirs.bos_token_id)
    if ours.chat_template is None:
        assert ours.encode_prompt("a") == bare
    else:
        chat = theirs.apply_chat_template(CHAT, tokenize=False)
        assert ours.render(CHAT, add_generation_prompt=False) == chat
        ids = theirs.encode(chat, add_special_tokens=False)
        assert ours.encode_chat(CHAT, add_generation_prompt=False) == ids
    return ours


def byte_level():
    """The content of a tokenizer.json, and of the files beside it in a new folder."""
    state = json.loads(bpe_tokenizer().backend.to_str())
    roles = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    return state, {"chat_template": TEMPLATE, **roles}


FLAGGED = {"content": "<tool>", "lstrip": True, "special": True}
SWALLOWS = [
    {"id": id, "content": name, "special": True, "single_word": False}
    | {"lstrip": True, "rstrip": False, "normalized": False}
    for id, name in enumerate(SPECIALS)
]
SHAPES = {
    "roles apart": {"special_tokens_map": {"eos_token": "<|im_start|>"}},
    "roles as objects": {
        "special_tokens_map": {
            "eos_token": {"content": "<|im_end|>", "lstrip": True, "normalized": False},
            "unk_token": {"content": "<unk>", "rstrip": True},
            "additional_special_tokens": ["<tool>", "<|im_start|>"],
        }
    },
    "roles that the newer file overrules": {
        "special_tokens_map": {"eos_token": "<|im_start|>"},
        "tokenizer_config": {"added_tokens_decoder": {"400": FLAGGED}},
    },
    "tokens added apart": {"added_tokens": {"<tool>": 400, "<|im_end|>": 2}},
    "flags that the older file does not know": {
        "added_tokens": {"<tool>": 400, "<|im_end|>": 2},
        "tokenizer": {"added_tokens": SWALLOWS},
    },
    "a control token added apart": {
        "added_tokens": {"<tool>": 400},
        "special_tokens_map": {"additional_special_tokens": ["<tool>"]},
    },
    "flags that the newer file overrules": {
        "tokenizer_config": {
            "added_tokens_decoder": {
                "2": {"content": "<|im_end|>", "rstrip": True, "special": True},
                "1": {"content": "<|im_start|>", "special": False},
            }
        }
    },
    "text tokens that swallow white space": {
        "tokenizer_config": {
            "added_tokens_decoder": {
                "400": {"content": "<tool>", "rstrip": True, "special": False}
            }
        }
    },
    "a space before every text": {
        "tokenizer": {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
        }
    },
    "a role that nothing lists": {"tokenizer_config": {"pad_token": "<tool>"}},
    "a role of the model's own": {"tokenizer_config": {"image_token": "<tool>"}},
    "a beginning that nobody put": {"tokenizer_config": {"add_bos_token": True}},
    "a beginning that nobody decided": {"tokenizer_config": {"add_bos_token": None}},
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_folder_is_read_as_transformers_reads_it(name, tmp_path):
    state, fields = byte_level()
    files = {"tokenizer": state, "tokenizer_config": fields}
    for file, content in SHAPES[name].items():
        files[file] = files.get(file, {}) | content
    write(tmp_path, **files)
    equals_theirs(tmp_path)


def test_a_folder_without_tokenizer_config_has_its_roles_apart(tmp_path):
    state, fields = byte_level()
    write(tmp_path, tokenizer=state, special_tokens_map=fields)
    assert equals_theirs(tmp_path).eos_ids == (2,)


@pytest.mark.parametrize("added", [True, False, None])
def test_the_post_processor_says_whether_a_text_has_a_beginning(tmp_path, added):
    state, fields = byte_level()
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    del fields["chat_template"]
    fields["add_bos_token"] = added
    write(tmp_path, tokenizer=backend.to_str(), tokenizer_config=fields)
    loaded = equals_theirs(tmp_path)
    assert loaded.add_bos
    loaded.save(tmp_path / "again")
    assert equals_theirs(tmp_path / "again").add_bos


def test_single_digits_stay_whatever_the_class_would_make_of_them(tmp_path):
    """Where transformers is not followed: its GPT2Tokenizer drops SmolLM2's rule."""
    state, fields = byte_level()
    state["model"]["vocab"]["12"] = len(state["model"]["vocab"])
    state["model"]["merges"].append(["1", "2"])
    fields["tokenizer_class"] = "GPT2Tokenizer"
    write(tmp_path, tokenizer=state, tokenizer_config=fields)
    ids = load_tokenizer(tmp_path).encode("12")
    assert ids == [state["model"]["vocab"][digit] for digit in "12"]
    assert len(AutoTokenizer.from_pretrained(tmp_path).encode("12")) == 1


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"added_tokens": {"<tool>": 500}}, r"added_tokens\.json.*500.*400"),
        ({"added_tokens": {"<tool>": "x"}}, r"added_tokens\.json.*'x'"),
        ({"special_tokens_map": []}, r"special_tokens_map\.json"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "not a table"),
        ({"tokenizer_config": {"added_tokens_decoder": {"4": {}}}}, "not a table"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "y"}}}},
            "the id 'x'",
        ),
    ],
    ids=str,
)
def test_tokens_that_contradict_the_vocabulary_are_refused(tmp_path, files, says):
    write(tmp_path, **{"tokenizer": byte_level()[0], **files})
    with pytest.raises(CheckpointError, match=says):
        load_tokenizer(tmp_path)


def sentencepiece(*, prepend=True, bytes=True):
    """What transformers 4 converted SentencePiece models of Llama's kind to."""
    words = ["<unk>", "<s>", "</s>"]
    words += [f"<0x{byte:02X}>" for byte in range(256)] if bytes else ["\n"]
    words += [*"▁abcehst<>|", "th", "the", "▁the", "ca", "cat", "▁cat", "at", "▁▁"]
    merges = ["t h", "th e", "▁ the", "c a", "ca t", "▁ cat", "a t", "▁ ▁"]
    model = token_models.BPE(
        {word: id for id, word in enumerate(words)},
        [tuple(merge.split(" ")) for merge in merges],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    before = [normalizers.Prepend("▁")] if prepend else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*stages, decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    backend.add_special_tokens(words[:3])
    backend.add_tokens([AddedToken("cat", normalized=False)])
    return backend.to_str()


TABLE = {
    str(id): {"content": word, "normalized": False, "special": True}
    for id, word in enumerate(["<unk>", "<s>", "</s>"])
}


@pytest.mark.parametrize(
    "fields",
    [
        {"legacy": False},
        {"legacy": True},
        {"legacy": None, "add_prefix_space": None},
        {"legacy": True, "add_prefix_space": False},
        {"legacy": False, "added_tokens_decoder": TABLE},
        {"bos_token": None},
        {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": True},
        {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_tokenizer_of_llamas_class_has_the_ids_of_transformers(
    tmp_path, fields, kind
):
    roles = {"eos_token": "</s>", "chat_template": LLAMA_CHAT}
    config = {"tokenizer_class": "LlamaTokenizer", **roles, **fields}
    write(tmp_path, tokenizer=sentencepiece(), tokenizer_config=config)
    write(tmp_path, config={"model_type": kind})
    equals_theirs(tmp_path)


def test_the_space_that_starts_a_text_is_where_the_class_puts_it(tmp_path):
    """By hand: the class and tokenizer.json differ, so the equality above is one."""
    plain, built = tmp_path / "plain", tmp_path / "built"
    for folder, name in ((plain, "PreTrainedTokenizerFast"), (built, "LlamaTokenizer")):
        folder.mkdir()
        config = {"tokenizer_class": name, "legacy": False}
        write(folder, tokenizer=sentencepiece(), tokenizer_config=config)
    spelt = {}
    for folder in (plain, built):
        tokenizer = load_tokenizer(folder)
        name = tokenizer.backend.id_to_token
        for text in ("the</s>the", " the"):
            ids = tokenizer.encode(text, allow_special=True)
            spelt[folder.name, text] = [name(id) for id in ids]
    assert spelt["plain", "the</s>the"] == ["▁the", "</s>", "▁the"]
    assert spelt["built", "the</s>the"] == ["▁the", "</s>", "the"]
    assert spelt["plain", " the"] == ["▁", "▁the"]
    assert spelt["built", " the"] == ["▁the"]


def test_what_the_vocabulary_of_the_class_cannot_spell_is_refused(tmp_path):
    config = {"tokenizer_class": "LlamaTokenizer"}
    write(tmp_path, tokenizer=sentencepiece(bytes=False), tokenizer_config=config)
    with pytest.raises(ConfigurationError, match="cannot spell"):
        load_tokenizer(tmp_path).encode("the ж cat")
