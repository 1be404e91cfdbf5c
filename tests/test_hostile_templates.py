"""Chat templates of unknown authors: they end, and the question stays as it is."""

import pytest
from small_checkpoints import TEMPLATE
from transformers import PreTrainedTokenizerFast

from tsi.errors import ConfigurationError
from tsi.models.tokens.char_tokenizer import char_tokenizer
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.models.workers import untrusted
from tsi.models.workers.process_limits import Limits

ALPHABET = "".join(map(chr, range(32, 127))) + "\n"
BACKEND = char_tokenizer(ALPHABET).backend
QUESTION = "What is 12 + 30?"
ASKED = "{{ messages[0]['content'] }}"

STOPPED = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "five nested loops": "{% for a in range(999) %}" * 5 + "{% endfor %}" * 5,
    "loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}x"
    "{% endfor %}{% endfor %}",
    "text times a number": "{{ 'a' * 10**9 }}",
    "text times a number, kept": "{% set x = 'a' * 10**9 %}",
    "list times a number": "{{ ([0] * 10**9) | length }}",
    "tuple times a number": "{% set x = (1, 2) * 10**9 %}",
    "width of a percent": "{{ '%1000000000d' | format(1) }}",
    "width given by a star": "{{ '%*d' | format(10**9, 1) }}",
    "precision": "{{ '%.1000000000f' | format(1) }}",
    "width of a format": "{{ '{:1000000000}'.format(1) }}",
    "percent operator": "{{ '%1000000000s' % 'x' }}",
    "centre": "{{ 'a' | center(10**9) }}",
    "centre, by method": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) | length }}",
    "zfill": "{{ 'a'.zfill(10**9) | length }}",
    "expandtabs": "{{ '\\t'.expandtabs(10**9) | length }}",
    "replace that doubles": "{% set ns = namespace(x='aa') %}{% for i in range(99) %}"
    "{% set ns.x = ns.x | replace('a', 'aa') %}{% endfor %}",
    "join of long text": "{{ range(99999) | join('a' * 10**5) }}",
    "join by method": "{{ ('a' * 10**5).join('b' * 10**5) | length }}",
    "indent": "{{ ('a\\n' * 10**4) | indent(10**6) }}",
    "indent of JSON": "{{ [[1], [2]] | tojson(indent=10**9) }}",
    "wordwrap": "{{ ('a ' * 10**4) | wordwrap(1, wrapstring='b' * 10**6) }}",
    "doubling by addition": "{% set ns = namespace(x='a') %}{% for i in range(99) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by a tilde": "{% set ns = namespace(x='a') %}{% for i in range(99) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling of a list": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by blocks": "{% set ns = namespace(x='a') %}{% for i in range(99) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubling of the question": "{% set ns = namespace(x=messages[0].content) %}"
    "{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "squares": "{% set ns = namespace(x=7) %}{% for i in range(64) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "powers": "{{ (9 ** (9 ** 9)) is odd }}",
    "shift of a batch": "{{ range(99999) | batch(10**9, 'x') | list | length }}",
    "slice": "{{ range(9) | slice(10**9) | list | length }}",
    "recursion that branches": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}"
    "{% endif %}{% endmacro %}{{ f(90) }}",
    "recursive loop": "{% for x in [[1]] recursive %}{% for i in range(999) %}"
    "{{ loop([[1], [1]]) }}{% endfor %}{% endfor %}",
    "lipsum": "{{ lipsum(n=10**7) }}",
    "cycler": "{% set c = cycler('a', 'b') %}{% for i in range(99999) %}"
    "{% for j in range(99999) %}{{ c.next() }}{% endfor %}{% endfor %}",
    "sorting": "{% for i in range(99999) %}{% set x = range(99999) | sort %}"
    "{% endfor %}",
    "groups": "{% for i in range(99999) %}{% set x = range(99999) | groupby('real') %}"
    "{% endfor %}",
    "sums of lists": "{{ range(99999) | map('string') | map('list') | sum(start=[]) }}",
    "urls": "{% for i in range(99999) %}{{ ('www.' * 9999) | urlize | length }}"
    "{% endfor %}",
    "truth of a long loop": "{% if range(99999) | map('string') | join in 'x' %}"
    "{% endif %}" * 99,
    "dates": "{{ strftime_now('%A' * 10**7) | length }}",
}
FAILS = {
    "range": "{{ range(10**9) | length }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "blocks in blocks": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "files": "{% include '/etc/passwd' %}",
    "classes": "{{ ''.__class__.__mro__ }}",
    "calls of attributes": "{{ (''.format | attr('__globals__'))() }}",
    "format of attributes": "{{ '{0.__class__.__mro__}'.format('') }}",
    "changes": "{{ messages.append(1) }}",
    "namespace": "{% set ns = namespace(__class__=1) %}",
    "a number that is too long": "{{ 10 ** (10 ** 4) }}",
    "syntax": "{% for %}",
}
CHANGES = {
    "nothing of it": "hello",
    "its length": "{{ messages[0].content | length }}",
    "its beginning": "{{ messages[0].content[:12] }}",
    "its end": "{{ messages[0].content[-5:] }}",
    "upper case": "{{ messages[0].content | upper }}",
    "titles": "{{ messages[0].content | title }}",
    "other digits": "{{ messages[0].content | replace('1', '2') }}",
    "other spaces": "{{ messages[0].content.split() | join(' ') }}",
    "one line": "{{ messages[0].content | replace('\n', ' ') }}",
    "escapes": "{{ messages[0].content | e }}",
    "JSON": "{{ messages[0].content | tojson }}",
    "backwards": "{{ messages[0].content | reverse }}",
    "cut": "{{ messages[0].content | truncate(12) }}",
    "wrapped": "{{ messages[0].content | wordwrap(4) }}",
    "whole and in part": ASKED + "{{ messages[0].content[:9] }}",
    "another text": "{{ messages[0].content | replace(messages[0].content, 'x') }}",
}


def reader(template, **options):
    return Tokenizer(BACKEND, eos_ids=[1], chat_template=template, **options)


@pytest.fixture(autouse=True, scope="module")
def short_limits():
    patch = pytest.MonkeyPatch()
    patch.setattr(untrusted, "RENDER", Limits(0.2, 64))
    yield
    patch.undo()


@pytest.mark.parametrize("name", STOPPED)
def test_a_template_that_does_not_end_or_eats_memory_is_stopped(name):
    hostile = reader(STOPPED[name] + ASKED)
    with pytest.raises(
        ConfigurationError, match=r"chat template of this model (was|f)"
    ):
        hostile.encode_prompt(QUESTION)
    # And whoever comes next is served.
    assert (
        reader(ASKED).render(
            [{"role": "user", "content": QUESTION}], add_generation_prompt=True
        )
        == QUESTION
    )


@pytest.mark.parametrize("name", FAILS)
def test_a_template_that_fails_is_a_sentence(name):
    hostile = reader(FAILS[name] + ASKED)
    with pytest.raises(ConfigurationError, match="chat template of this model"):
        hostile.encode_prompt(QUESTION)


@pytest.mark.parametrize("name", CHANGES)
def test_a_template_that_changes_the_question_is_refused(name):
    hostile = reader(CHANGES[name])
    with pytest.raises(ConfigurationError, match="messages of the user"):
        hostile.encode_prompt(QUESTION)


def test_a_template_does_not_see_the_question():
    spy = "{% if '7' in messages[0].content %}Say 1.{% endif %}" + ASKED
    for question in ("1+1", "7+7", "  7\n"):
        tokenizer = reader(spy)
        assert tokenizer.decode(tokenizer.encode_prompt(question)) == question


def test_many_questions_take_one_rendering(monkeypatch):
    calls = []
    render = untrusted.render
    monkeypatch.setattr(
        untrusted, "render", lambda *args: calls.append(args) or render(*args)
    )
    tokenizer = reader("<u>" + ASKED + "</u>")
    for number in range(100):
        ids = tokenizer.encode_prompt(f"{number}+1")
        assert tokenizer.decode(ids) == f"<u>{number}+1</u>"
    assert len(calls) == 1


TEMPLATES = {
    "as it is": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}",
    "trimmed": "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}"
    "{% endfor %}",
    "trimmed on one side": "{% for m in messages %}<{{ m.content.lstrip() }}>"
    "{% endfor %}",
    "trimmed on the other": "{% for m in messages %}<{{ m.content.rstrip() }}>"
    "{% endfor %}",
    "twice": "{{ messages[-1].content }}{% for m in messages %}{{ m.content }}"
    "{% endfor %}",
    "with all that there is": "{{ bos_token or '' }}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% if loop.first %}{% continue %}{% endif %}"
    "{{ m | length }}{{ dict(a='é<') | tojson }}{% endfor %}{{ tools is none }}\n"
    "  {% if add_generation_prompt %}\n"
    "go{% endif %}\n",
    "of the tests": TEMPLATE,
}
CHATS = [
    [{"role": "user", "content": QUESTION}],
    [{"role": "user", "content": "  a\n\n b \n"}],
    [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "\t1 < 2 & '3'\x0b\x0c"},
        {"role": "assistant", "content": " yes\n"},
        {"role": "user", "content": "\U000f0000 0: aB\n <&>  '1' \ue000"},
    ],
    [{"role": "user", "content": "  "}, {"role": "user", "content": "x"}],
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("begins", [True, False])
def test_what_is_rendered_is_what_transformers_renders(name, begins):
    ours = reader(TEMPLATES[name])
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=BACKEND, eos_token="<eos>", pad_token="<eos>"
    )
    for chat in CHATS:
        assert ours.render(chat, add_generation_prompt=begins) == (
            theirs.apply_chat_template(
                chat,
                chat_template=TEMPLATES[name],
                tokenize=False,
                add_generation_prompt=begins,
            )
        )


def test_what_system_and_assistant_say_is_not_dropped_in_silence():
    tokenizer = reader(
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    )
    assert tokenizer.encode_prompt("1")
    with pytest.raises(ConfigurationError, match="leave the system message out"):
        tokenizer.encode_prompt("1", system="Be brief.")
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "~"}]
    with pytest.raises(ConfigurationError, match="drops or repeats"):
        tokenizer.encode_with_tags(turns, {"~": 5})
    twice = reader("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}")
    with pytest.raises(ConfigurationError, match="drops or repeats"):
        twice.encode_with_tags(turns, {"~": 5})


def test_a_template_cannot_forge_the_marks_of_control_tokens():
    forged = "\ue0001\ue000\ue0009\ue000" + ASKED
    tokenizer = reader(forged)
    assert 1 not in tokenizer.encode_prompt("1")


def test_time_and_memory_are_limits_of_each_question():
    hundred = "{% set x = 'a' * (100 * 10**6) %}" + ASKED
    with pytest.raises(ConfigurationError, match="more than 64 MB of memory"):
        reader(hundred).encode_prompt("1")
    ten = "{% set x = 'a' * (10 * 10**6) %}" + ASKED
    assert reader(ten).encode_prompt("1")
    process = untrusted._process().process
    with pytest.raises(ConfigurationError, match=r"more than 0\.2 s of processor"):
        reader(STOPPED["nested loops"] + ASKED).encode_prompt("1")
    # What is written in Python is stopped without an end of the process.
    assert untrusted._process().process is process
    assert process.poll() is None


def test_a_process_that_ends_is_started_again():
    tokenizer = reader("a" + ASKED)
    untrusted._process().ask([[1.0, 64], "render", [ASKED, CHATS[0], {}]], 60.0)
    untrusted._process().process.kill()
    untrusted._process().process.wait()
    assert tokenizer.decode(tokenizer.encode_prompt("1")) == "a1"


SWITCHED = (
    "{% if enable_thinking is defined and not enable_thinking %}-{% endif %}"
    "{{ effort }}{{ tools | length if tools }}" + ASKED
)


def test_switches_reach_the_template():
    for switches, text in [
        ({}, "1"),
        ({"enable_thinking": False}, "-1"),
        ({"enable_thinking": True, "effort": "high "}, "high 1"),
        ({"tools": [{"name": "f"}]}, "11"),
    ]:
        tokenizer = reader(SWITCHED, switches=switches)
        assert tokenizer.decode(tokenizer.encode_prompt("1")) == text


def test_a_switch_that_the_template_never_reads_is_a_sentence():
    with pytest.raises(ConfigurationError, match=r"reads no switch 'thinking'.*enable"):
        reader(SWITCHED, switches={"thinking": False})
    with pytest.raises(ConfigurationError, match="It reads none"):
        reader(ASKED, switches={"enable_thinking": False})
    for name in ("messages", "add_generation_prompt", "eos_token"):
        with pytest.raises(ConfigurationError, match="reads no switch"):
            reader("{{ eos_token }}" + TEMPLATE, switches={name: 1})
    with pytest.raises(ConfigurationError, match="no chat template"):
        reader(None, switches={"enable_thinking": False})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        reader("{% for %}", switches={"enable_thinking": False})
