"""Step boundaries are found wherever the delimiter falls among tokens."""

import random

import numpy as np
import pytest

from tsi.boundary import step_boundary
from tsi.errors import ConfigurationError

TOKENS = [b"", b"\n", b"\n\n", b"a", b".\n", b"\nb", b"a\n\nb", b"ab"]


@pytest.mark.parametrize("delimiter", [b"\n", b"\n\n", b"\n\n\n", b"ab", b"aa"])
def test_ends_agree_with_a_search_in_the_text(delimiter):
    boundary = step_boundary(TOKENS, delimiter, [0])
    draw = random.Random(0)
    for _ in range(300):
        state, text = 0, b""
        for _ in range(12):
            token = draw.randrange(1, len(TOKENS))
            ends = bool(boundary.ends[state, token])
            state = int(boundary.next_state[state, token])
            # What a step holds so far contains the delimiter only once it has ended.
            text += TOKENS[token]
            assert ends == (delimiter in text)
            if ends:
                break


def test_a_step_starts_afresh_after_a_boundary():
    boundary = step_boundary(TOKENS, b"\n\n", [0])
    assert bool(boundary.ends[0, 2])
    assert int(boundary.next_state[0, 2]) == 0
    assert int(boundary.next_state[0, 1]) == 1


def test_end_tokens_are_marked():
    boundary = step_boundary(TOKENS, b"\n", [0, 3])
    assert np.flatnonzero(np.asarray(boundary.stops)).tolist() == [0, 3]


@pytest.mark.parametrize(("delimiter", "eos"), [(b"", [0]), (b"\n", [8]), (b"\n", [])])
def test_nonsense_is_refused_with_a_sentence(delimiter, eos):
    with pytest.raises(ConfigurationError, match=r"\.$"):
        step_boundary(TOKENS, delimiter, eos)
