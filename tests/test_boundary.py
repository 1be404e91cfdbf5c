"""Step boundaries are found wherever the delimiter falls among tokens."""

import collections
import inspect
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsi.decoding.boundary import step_boundary
from tsi.decoding.byte_search import search_tables
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


DELIMITERS = [[b"\n\n", b"ab"], [b"\n", b"b\n"], [b"aab", b"ab\n", b"b"], [b"a", b"a"]]


def without_matches(text, patterns):
    """How many matches that do not overlap there are, the earliest end first."""
    count, begin = 0, 0
    for end in range(1, len(text) + 1):
        if any(text[begin:end].endswith(pattern) for pattern in patterns):
            count, begin = count + 1, end
    return count


@pytest.mark.parametrize("patterns", DELIMITERS)
def test_several_strings_are_found_as_in_the_text(patterns):
    next_state, found = search_tables(TOKENS, patterns)
    draw = random.Random(0)
    for _ in range(300):
        state, text = 0, b""
        for _ in range(12):
            token, before = draw.randrange(1, len(TOKENS)), text
            text += TOKENS[token]
            matches = without_matches(text, patterns)
            more = matches > without_matches(before, patterns)
            assert found[state, token] == more
            state = next_state[state, token]


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("patterns", DELIMITERS)
def test_solutions_stop_at_strings_that_begin_in_an_earlier_step(patterns, least):
    """Against a search in the whole text, the steps cut as a reader would cut them."""
    stop_strings, eos = [b"\n\na", b"bb", b".\n\n\n"], 3
    boundary = step_boundary(
        TOKENS, patterns, [eos], stop_strings=stop_strings, min_step_tokens=least
    )
    assert boundary.strings.dtype == np.int8
    advance = jax.jit(boundary.advance)
    draw, seen = random.Random(1), collections.Counter()
    for _ in range(200):
        state, text, step, count = jnp.int32(0), b"", b"", 0
        for _ in range(12):
            token = draw.choice([1, 1, 2, 2, 4, 5, 6, 7, 7, 3])
            count, text, step = count + 1, text + TOKENS[token], step + TOKENS[token]
            state, ended, stopped = advance(state, jnp.int32(token), jnp.int32(count))
            found = any(stop in text for stop in stop_strings)
            assert bool(stopped) == (found or token == eos)
            # A delimiter that comes too soon is read over, and not kept for later.
            new = without_matches(step, patterns) > without_matches(
                step[: len(step) - len(TOKENS[token])], patterns
            )
            assert bool(ended) == (bool(stopped) or (new and count >= least))
            seen[bool(stopped), found, bool(ended)] += 1
            if stopped:
                break
            if ended:
                step, count = b"", 0
    assert min(seen.values()) > 10
    assert len(seen) == 4


def test_a_step_starts_afresh_after_a_boundary():
    boundary = step_boundary(TOKENS, b"\n\n", [0])
    assert bool(boundary.ends[0, 2])
    assert int(boundary.next_state[0, 2]) == 0
    assert int(boundary.next_state[0, 1]) == 1


def test_end_tokens_are_marked():
    boundary = step_boundary(TOKENS, b"\n", [0, 3])
    assert np.flatnonzero(np.asarray(boundary.stops)).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("delimiter", "eos", "more"),
    [
        (b"", [0], {}),
        ([], [0], {}),
        ([b"a", b""], [0], {}),
        (b"\n", [8], {}),
        (b"\n", [], {}),
        (b"\n", [0], {"stop_strings": [b"a", b""]}),
        (b"\n", [0], {"stop_strings": b"ab"}),
        (b"\n", [0], {"min_step_tokens": 0}),
        (b"\n", [0], {"min_step_tokens": 2.5}),
        ("\n", [0], {}),
        ([b"a", "b"], [0], {}),
        (bytearray(b"a"), [0], {}),
        (b"\n", [0], {"stop_strings": ["d"]}),
    ],
)
def test_nonsense_is_refused_with_a_sentence(delimiter, eos, more):
    with pytest.raises(ConfigurationError, match=r"\.$"):
        inspect.unwrap(step_boundary)(TOKENS, delimiter, eos, **more)
