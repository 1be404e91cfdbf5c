"""The names of control tokens in a text: found, and hidden from a template."""

import tokenizers
from tokenizers import AddedToken, models

from tsi.models.tokens.control_names import ControlNames, NameMask


def names(*tokens):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.add_special_tokens([AddedToken(name, **flags) for name, flags in tokens])
    backend.add_tokens(["plain"])
    return ControlNames(backend)


CONTROL = names(("<|a|>", {}), ("<|a|>b", {}), ("<|end|>", {"rstrip": True}))


def test_only_control_tokens_have_names():
    assert set(CONTROL.ids) == {"<|a|>", "<|a|>b", "<|end|>"}
    assert CONTROL.names_by_id == {id: name for name, id in CONTROL.ids.items()}


def test_a_text_is_split_at_the_longest_names():
    pieces = CONTROL.split("x<|a|>by<|a|> z")
    assert pieces == ["x", "<|a|>b", "y", "<|a|>", " z"]
    # Some control tokens strip the white space that follows.
    assert CONTROL.split("x <|end|> y") == ["x ", "<|end|>", "y"]
    assert names().split("x <|end|> y") == ["x <|end|> y"]


def test_hidden_names_come_back():
    text = "one <|a|>b <|end|> \ue000 two"
    mask = NameMask(CONTROL, [text])
    hidden = mask.hide(text)
    assert not CONTROL.pattern.search(hidden)
    assert "\ue000" in hidden
    assert mask.restore(f"<|a|>{hidden}") == f"<|a|>{text}"
    # The mark is another character where the first ones occur in a text.
    assert mask.restore("\ue00015\ue000") == "\ue00015\ue000"
    assert mask.restore("\ue00115\ue001") == ""


def test_without_control_tokens_nothing_is_hidden():
    mask = NameMask(names(), ["<|a|>"])
    assert mask.hide("<|a|>") == mask.restore("<|a|>") == "<|a|>"
