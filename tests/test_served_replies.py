"""Replies of servers with any part of them replaced: an answer is untrusted."""

import copy
import json
import math

import pytest
from scripted_chain import EOS
from scripted_server import ScriptedServer
from served_faults import DIALECTS

from tsi.errors import ServerError
from tsi.serving.dialect import Drawing
from tsi.serving.identify import positive_integer_or_none
from tsi.serving.llama_cpp import LlamaCpp
from tsi.serving.reading import log_probability, number, shape_of
from tsi.serving.sglang import Sglang
from tsi.serving.step import Controls, ServedStep, StepRequest, check_step
from tsi.serving.text_server import TextServer
from tsi.serving.vllm import Vllm

DEEP = json.loads("[" * 500 + "]" * 500)
NASTY = [
    None,
    True,
    -1,
    10**400,
    1.5,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "\ud800",
    "stop",
    [],
    [None] * 50,
    [0] * 50,
    {},
    {"id": "x"},
    DEEP,
]
PLAIN = Drawing("tiny", Controls(), ("\n",), ("+",), (EOS,))


def places(node, path=()):
    """Every place of a reply."""
    yield path
    if isinstance(node, dict | list):
        children = node.items() if isinstance(node, dict) else enumerate(node)
        for name, child in children:
            yield from places(child, (*path, name))


def replaced(reply, path, value):
    """A reply with another value at a place."""
    if not path:
        return value
    changed = copy.deepcopy(reply)
    node = changed
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    return changed


def without(reply, path):
    """A reply without a place."""
    changed = copy.deepcopy(reply)
    node = changed
    for name in path[:-1]:
        node = node[name]
    del node[path[-1]]
    return changed


def variants(reply):
    for path in places(reply):
        for value in NASTY:
            yield replaced(reply, path, value)
        if path:
            yield without(reply, path)


def is_sound(step, request, takes_ids):
    """Whether a step can do no harm, whatever the server meant."""
    return (
        isinstance(step, ServedStep)
        and all(type(t) is int and 0 <= t < 2**31 for t in step.tokens)
        and (not takes_ids or len(step.tokens) <= request.max_tokens)
        and step.num_tokens >= 0
        and (math.isnan(step.log_prob) or step.log_prob <= 0)
        and step.end in ("delimiter", "end", "limit")
        and type(step.prompt_tokens) is type(step.cached_tokens) is int
        and 0 <= step.prompt_tokens < 2**31
        and 0 <= step.cached_tokens < 2**31
    )


@pytest.mark.parametrize("log_probs", [False, True])
@pytest.mark.parametrize("name", list(DIALECTS))
def test_no_reply_gives_more_than_a_step_or_a_sentence(name, log_probs):
    dialect, server = DIALECTS[name], ScriptedServer(name)
    drawing = PLAIN._replace(log_probs=log_probs)
    counts, longest = [0, 0], 0
    for seed in (1, 2):
        request = StepRequest((0, 1) if dialect.takes_ids else (49,), 3, seed)
        call = dialect.call([request], drawing)
        reply = server.answer(call.path, call.body)
        if call.streamed:
            reply = [e for e in reply[1:] if not isinstance(e, str)]
        (step,) = dialect.steps(reply, [request], drawing)
        assert is_sound(step, request, dialect.takes_ids)
        for changed in variants(reply):
            if call.streamed and not isinstance(changed, list):
                # The client itself makes the list of events.
                continue
            try:
                steps = dialect.steps(changed, [request], drawing)
            except ServerError as error:
                counts[1] += 1
                longest = max(longest, len(str(error)))
            else:
                counts[0] += 1
                assert len(steps) == 1
                assert is_sound(steps[0], request, dialect.takes_ids)
    assert min(counts) > 20
    assert longest < 1000


@pytest.mark.parametrize("name", ["llama.cpp", "vLLM", "SGLang"])
def test_replies_of_several_steps_are_checked(name):
    dialect, server = DIALECTS[name], ScriptedServer(name)
    requests = [StepRequest((0, 1), 2, 1), StepRequest((0, 2), 2, 2)]
    call = dialect.call(requests, PLAIN)
    reply = server.answer(call.path, call.body)
    assert len(dialect.steps(reply, requests, PLAIN)) == 2
    for changed in variants(reply):
        try:
            steps = dialect.steps(changed, requests, PLAIN)
        except ServerError:
            continue
        assert all(
            is_sound(step, request, True)
            for step, request in zip(steps, requests, strict=True)
        )


@pytest.mark.parametrize("index", [1, -1, 2, True, "0", None, 0.0])
def test_choices_have_one_index_each(index):
    requests = [StepRequest((0, 1), 2, 1)] * 2
    for dialect in (Vllm(), LlamaCpp()):
        server = ScriptedServer(dialect.name)
        call = dialect.call(requests, PLAIN)
        reply = server.answer(call.path, call.body)
        items = reply["choices"] if isinstance(reply, dict) else reply
        items[0]["index"] = index
        with pytest.raises(ServerError, match="index"):
            dialect.steps(reply, requests, PLAIN)


@pytest.mark.parametrize("name", ["vLLM", "SGLang"])
def test_log_probabilities_of_a_prompt_are_checked(name):
    dialect, server, tokens = DIALECTS[name], ScriptedServer(name), [0, 1, 2, 3]
    call = dialect.log_probs_call(tokens, "tiny")
    reply = server.answer(call.path, call.body)
    right = dialect.log_probs(reply, tokens)
    assert len(right) == 3
    refused = 0
    for changed in variants(reply):
        try:
            found = dialect.log_probs(changed, tokens)
        except ServerError:
            refused += 1
        else:
            assert len(found) == 3
            assert all(x <= 0 for x in found)
    assert refused > 20


def test_a_stop_that_was_not_asked_for_is_refused():
    request = StepRequest((0, 1), 3, 1)
    replies = {
        Vllm(): {
            "choices": [
                {
                    "index": 0,
                    "token_ids": [1],
                    "finish_reason": "stop",
                    "stop_reason": "NaN happened",
                }
            ]
        },
        Sglang(): {
            "output_ids": [1],
            "meta_info": {
                "prompt_tokens": 2,
                "finish_reason": {"type": "stop", "matched": "NaN happened"},
            },
        },
        LlamaCpp(): {
            "tokens": [1],
            "stop_type": "word",
            "stopping_word": "NaN happened",
            "tokens_evaluated": 2,
        },
    }
    for dialect, reply in replies.items():
        with pytest.raises(ServerError, match="none of the strings"):
            dialect.steps(reply, [request], PLAIN)


def test_an_end_token_at_the_limit_ends_a_solution_of_sglang():
    request = StepRequest((0, 1), 2, 1)
    meta = {"prompt_tokens": 2, "finish_reason": {"type": "length", "length": 2}}
    for last, end in ((EOS, "end"), (2, "limit")):
        reply = {"output_ids": [1, last], "meta_info": meta}
        (step,) = Sglang().steps(reply, [request], PLAIN)
        assert step.end == end
        assert step.has_end_token == (end == "end")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (ServedStep((), 0, "delimiter"), "no token"),
        (ServedStep((1, 2), 2, "limit"), "after 2 of 3 tokens"),
        (ServedStep((), 0, "limit"), "context is full"),
        (ServedStep((1, 2, 3), 3, "limit"), None),
        (ServedStep((), 0, "end"), None),
        (ServedStep((1,), 1, "delimiter"), None),
    ],
)
def test_a_step_ends_as_it_says(step, message):
    request = StepRequest((0,), 3, 1)
    if message is None:
        check_step(step, request)
    else:
        with pytest.raises(ServerError, match=message):
            check_step(step, request)


@pytest.mark.parametrize("value", NASTY)
def test_numbers_are_numbers(value):
    if value == -math.inf:
        assert number(value, "x") == log_probability(value, "x") == value
    elif value in (-1, 1.5) and value is not True:
        assert number(value, "x") == value
    else:
        with pytest.raises(ServerError, match="a finite number"):
            number(value, "x")


def test_a_number_that_no_float_holds_is_none():
    with pytest.raises(ServerError):
        number(10**400, "x")
    assert log_probability(-(10**400), "x") < -1e299
    assert positive_integer_or_none(10**400) is None
    assert (
        positive_integer_or_none(1.5)
        is positive_integer_or_none(True)
        is positive_integer_or_none("1")
        is None
    )
    assert positive_integer_or_none(4096) == 4096


def test_the_shape_of_a_reply_is_short():
    assert len(shape_of({f"{i}" * 999: 0 for i in range(999)})) < 1000


class TestText:
    """Texts that come in events."""

    def step(self, *pieces, delimiters=("\n\n",), stops=(), reason="length"):
        drawing = Drawing("tiny", Controls(), delimiters, stops)
        request = StepRequest((49,), 9, 1)
        call = TextServer().call([request], drawing)
        events = []
        for piece in [*pieces, None]:
            if isinstance(piece, dict):
                events.append(piece)
            else:
                why = reason if piece is None else None
                events.append({"choices": [{"text": piece, "finish_reason": why}]})
            if call.is_enough(events):
                break
        (step,) = TextServer().steps(events, [request], drawing)
        text = "".join(map(chr, step.tokens))
        return text, step.end, step.num_tokens, len(events)

    def test_a_delimiter_may_come_in_several_events(self):
        assert self.step("a", "\n", "\n", "b") == ("a\n\n", "delimiter", 3, 3)
        assert self.step("a\n", "", {"choices": []}, "\nb", "c") == (
            "a\n\n",
            "delimiter",
            2,
            4,
        )

    def test_a_long_delimiter_may_come_letter_by_letter(self):
        found = self.step(*"xxEND", *"OF", *"STEP!", delimiters=("ENDOFSTEP",))
        assert found == ("xxENDOFSTEP", "delimiter", 11, 11)

    def test_the_first_of_several_strings_counts(self):
        several = {"delimiters": ("\n", "##"), "stops": ("END",)}
        assert self.step("ab##c\n", **several)[:2] == ("ab##", "delimiter")
        assert self.step("a", "E", "N", "D", "\n", **several)[:2] == ("aEND", "end")
        assert self.step("a\nEND", **several)[:2] == ("a\n", "delimiter")

    def test_a_completion_may_be_empty(self):
        assert self.step(reason="stop") == ("", "end", 0, 1)
        assert self.step("", reason="length") == ("", "limit", 0, 2)

    def test_events_may_tell_of_usage_alone(self):
        usage = {"choices": [], "usage": {"completion_tokens": 2}}
        assert self.step(usage, "a", usage, "b", usage) == ("ab", "limit", 2, 6)

    def test_halves_of_a_character_are_joined(self):
        assert self.step("\ud83d", "\ude00", "!")[0] == "\U0001f600!"
        assert self.step("a\ud83d", "b\ude00")[0] == "a\ufffdb\ufffd"
        assert self.step("é", "\n", "\n")[:2] == ("é\n\n", "delimiter")


@pytest.mark.parametrize(("prefixes", "each"), [("aaa", 12), ("aab", 4), ("abc", 4)])
def test_cached_tokens_of_vllm_are_a_sum_over_different_prompts(prefixes, each):
    requests = [StepRequest((ord(letter),) * 9, 4, 0) for letter in prefixes]
    choice = {"token_ids": [1], "finish_reason": "length", "stop_reason": None}
    reply = {
        "choices": [choice | {"index": index} for index in range(3)],
        "usage": {"prompt_tokens_details": {"cached_tokens": 12}},
    }
    steps = Vllm().steps(reply, requests, Drawing("tiny", Controls(), ()))
    assert [step.cached_tokens for step in steps] == [each] * 3
