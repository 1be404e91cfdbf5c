"""What tokenizer.json and tokenizer_config.json may ask for besides a vocabulary."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import models as token_models

from tsi.errors import CheckpointError
from tsi.models.loading.load_tokenizer import load_tokenizer

WORDS = ["<s>", "<e>", "▁", "a", "b", "▁a", "\n"]


def saved(folder, *, scheme="always", template=None, **control):
    """A SentencePiece-like tokenizer with a control token and a run of spaces."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(token_models.BPE(vocabulary, [("▁", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    backend.add_special_tokens(
        [AddedToken("<s>", normalized=False), AddedToken("<e>", **control)]
    )
    backend.add_tokens([AddedToken("▁▁", normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    fields = {"bos_token": "<s>", "eos_token": "<e>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return load_tokenizer(folder), backend


def test_a_run_of_spaces_that_was_added_is_spaces(tmp_path):
    tokenizer, backend = saved(tmp_path)
    run = backend.token_to_id("▁▁")
    assert tokenizer.token_bytes(run) == b"  "
    assert tokenizer.decode([3, run, 4]) == "a  b"


@pytest.mark.parametrize("control", [{"lstrip": True}, {"rstrip": True}, {}])
def test_control_tokens_swallow_the_white_space_that_they_say(tmp_path, control):
    tokenizer, backend = saved(tmp_path, scheme="never", **control)
    backend.encode_special_tokens = False
    for text in ("a \n<e> a", "a<e>\nb", "<e><e> a", " <e>"):
        expected = backend.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, allow_special=True) == expected


def test_a_space_before_the_first_word_only_is_put_before_no_other(tmp_path):
    tokenizer, backend = saved(tmp_path, scheme="first")
    for text in ("<s>ab", "a<e>a", "ab"):
        expected = backend.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, allow_special=True) == expected
    messages = "{% for m in messages %}<s>{{ m['content'] }}<e>{% endfor %}"
    tokenizer, backend = saved(tmp_path, scheme="first", template=messages)
    found = tokenizer.encode_chat([{"role": "user", "content": "ab"}])
    assert found == backend.encode("<s>ab<e>", add_special_tokens=False).ids


def test_of_several_chat_templates_the_default_is_taken(tmp_path):
    named = [
        {"name": "tools", "template": "no"},
        {"name": "default", "template": "{{ messages[0]['content'] }}"},
    ]
    tokenizer, _ = saved(tmp_path, template=named)
    assert tokenizer.chat_template == named[1]["template"]
    for odd in (named[:1], 3, ["text"]):
        with pytest.raises(CheckpointError, match="chat_template"):
            saved(tmp_path, template=odd)
