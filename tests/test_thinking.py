"""Whether a solution was cut before its thinking ended."""

import pytest

from tsi.models.tokens.thinking import TAGS, is_thinking, opens_thinking


@pytest.mark.parametrize("begin", TAGS)
def test_thinking_lasts_from_its_tag_to_the_end_tag(begin):
    end = TAGS[begin]
    assert is_thinking(f"{begin}7*8 is")
    assert not is_thinking(f"{begin}7*8 is 56{end}56")
    assert is_thinking(f"{begin}a{end}b{begin}c")
    assert not is_thinking("7*8 is 56")
    # The template has begun it.
    for prompt in (f"7*8{begin}", f"7*8{begin}\n\n"):
        assert opens_thinking(prompt)
        assert is_thinking("7*8 is", prompt)
        assert not is_thinking(f"56{end}56", prompt)
    # Or begun and ended it; or the question speaks of it.
    assert not is_thinking("56", f"{begin}\n\n{end}\n\n")
    assert not is_thinking("56", f"What does {begin} mean?")


def test_one_tag_does_not_end_another():
    assert is_thinking("<think>a</reasoning>")
