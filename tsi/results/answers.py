r"""Answers: extraction from untrusted text.

The answer of a text is the content of its last box, or else the text after its last cue
("the answer is", "Answer:", "####", <answer>). After a cue the answer ends at the end
of the sentence, line, emphasis or tag, and before a remark such as "(out of 9)" or ",
because ...". If a text has neither a box nor a cue, its last sentence is read: "No,
...", "there are 29 strings of length 6", "the sum of 3 terms is 2^n". Otherwise its
last number is the answer.
"""

import re
from collections.abc import Iterator

from tsi.results.canonical import canonical
from tsi.results.markup import MAX_ANSWER, brace_content
from tsi.results.names import name_of
from tsi.results.numbers import DECIMAL, NUMBER
from tsi.results.units import changes_meaning, drop_unit, is_unit

MAX_TEXT = 65_536
MAX_PLACES, MAX_VERBS = 64, 16
"""The maximum number of boxes and cues, and verbs of the last sentence, that are tried
from the end."""

# Every quantifier is bounded, so that matching is linear in the text.
_NUMBER_IN_TEXT = re.compile(
    # The minus of "7-4" is not a sign.
    rf"(?:(?<![\w)])-)?\$?(?:{DECIMAL})(?:/\d{{1,100}})?(?: ?\\?%)?"
)
_BOX = re.compile(r"\\f?boxed ?\{|\\fbox ?\{")
_CUE = re.compile(
    r"""
    \#{4}(?=[ ]{0,4}(?:\$?(?:[A-Za-z][ ]?=[ ]?)?[-+−–$€£(\\*]{0,3}\d|\S{1,64}[ ]{0,4}$))
    | <(?:final_)?answer>
    | ^[#*_>\ ]{0,8}(?:the\ |my\ |your\ )?(?:final\ |correct\ )?answers?
        [*_\ ]{0,6}(?P<heading>$)
    | (?<![A-Za-z/])ans(?:wer)?s?[*_`"”)]{0,4}
        (?: [ ]?(?P<sign>:|=|[–—→]|->|-(?=[ ]))
          | (?:,?[ ][A-Za-z'’]{1,16}){0,6}?,?[ ](?:is|are|be|equals)
            (?![A-Za-z'’])[ ]?[:=]?
        )
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_LEAD = re.compile(
    r"""(?:
      [\s*_`:;>"“”]{1,64} | ['‘](?=\S)
      | not[ ][^,.\n]{1,40}?,?[ ]but[ ]
      | (?:(?:therefore|thus|then|hence|so|simply|just|indeed|clearly|obviously|exactly
          |approximately|about|precisely|actually|finally|now|also|only|probably
          |equal[ ]to|given[ ]by|found[ ]to[ ]be|to[ ]be|a[ ]total[ ]of|that
          |there[ ](?:are|is)|equals?|option|choice
      |the[ ](?:number|value|integer|interval|expression|formula|equation|set|fraction))
        (?:,[ ]?|[ :]))
    ){1,16}""",
    re.IGNORECASE | re.VERBOSE,
)
_MATHEMATICS = re.compile(
    r"(?:\$\$(?P<double>[^$]{1,512})\$\$|\\\[(?P<display>(?:[^\\]|\\(?!\])){1,512})\\\]"
    r"|\\\((?P<inline>(?:[^\\]|\\(?!\))){1,512})\\\)|\$(?P<single>[^$\n]{0,511}[^$\s])\$)"
)
_CONTINUES = re.compile(r"[*_ ]{0,4}(?:,|;|and |or |\\|[-+*/=^<>$0-9(]|%)")
_DASHED = re.compile(r"[-−–—‐‑‒] ?(?=[\d$.\\])")
_END = re.compile(
    r"""\n | \.(?=[\s*_"”')]|$) | (?<!\w)\*\*|\*\*(?!\w) | </
      | [ ]\((?!p?mod)(?=[^()\n]{0,200}[A-Za-z]{3})
      | [ ][-–—]{1,3}[ ](?=[A-Za-z]{3})
      | ;[ ](?=[A-Za-z]{3})
      | ,?[ ](?:because|since)(?![A-Za-z])
      | [ ]for[ ](?:all|any|every|each|some)(?![A-Za-z])
      | ,[ ](?:as|which|where|when|so|not|after|i\.e|for|given|but|with|assuming|using)
        (?![A-Za-z])
    """,
    re.IGNORECASE | re.VERBOSE,
)
_QUANTITY = re.compile(
    rf"\$?({NUMBER}) ?(\\?%)? ([A-Za-z]{{2,32}}[A-Za-z.']{{0,8}})(?![\w^\\])"
)
_TAG = re.compile(r"</?(?:b|i|u|em|strong|mark|code|span|p|br|div)(?: [^<>]{0,64})?/?>")
_NO_ANSWER = re.compile(
    r"(?:indeed |also |not |in)?(?:correct|right|wrong|clear|unclear|obvious|valid"
    r"|reasonable|as follows|below|above|consistent|verified|complete|plausible"
    r"|confirmed)(?![A-Za-z])",
    re.IGNORECASE,
)
_PROSE_WORDS = 4

_SENTENCE_END = re.compile(r"(?<=[\w)$%])[.!][*_]{0,3} (?=[A-Z*])")
_VERDICT = re.compile(r"[*_ ]{0,4}(yes|no)[*_]{0,3}(?:,|\.?$)", re.IGNORECASE)
_COUNT = re.compile(
    r"(?<![A-Za-z])there (?:are|is|exists?) (?:exactly |only |a total of )?"
    rf"\$?({NUMBER})(?![\w^])",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"(?<![A-Za-z])(?:is|are|be|equals?|equal to|as(?= \\?[$(]))(?![A-Za-z'’])"
    r"|(?<![<>!=])="
)
_REMARK = re.compile(
    r"[ ,](?:when|where|if|given(?! by)|provided|which|assuming|since|because|achieved"
    r"|attained)(?![A-Za-z])"
    r"|,?[ ]and[ ](?:(?:it|this|that|they)(?![A-Za-z])|is (?:achiev|attain))"
    r"|[ ](?:at|with|for)[ ][$\\(]{0,3}[A-Za-z][ ]?=",
    re.IGNORECASE,
)
_UNKNOWN = r"(?:[A-Za-z]|\([A-Za-z](?:, ?[A-Za-z]){1,3}\))"
_VALUE = r"(?:\([^()=\n]{1,40}\)|[^=,;\s]{1,40})"
_EQUATIONS = re.compile(
    rf"(?<![\w)]){_UNKNOWN} ?= ?{_VALUE}"
    rf"(?:(?:,? and |,? or |, ){_UNKNOWN} ?= ?{_VALUE}){{1,9}}"
)
_DOLLARS = re.compile(r"\$|\\\( ?| ?\\\)")
_FORMULA = re.compile(r"[^\n]{0,512}[\dA-Za-z)}][^\n]{0,8}")
_VARIABLE = re.compile(r"[A-Za-z](?: ?= ?[A-Za-z]){0,3}")
_PROSE = re.compile(
    r"(?<![A-Za-z\\])(?!sqrt|floor|ceil)[A-Za-z]{3,}|^[A-Za-z]{2}(?![\w(^])|^a "
    r"| (?:is|are) "
)


def extract_answer(text: str) -> str | None:
    """The answer of a text: from its last box, its last cue, or its last sentence.

    Args:
        text: untrusted; only its last 65,536 characters are read.

    Returns:
        The answer in canonical form, or None if the text has no answer.
    """
    for answer in answers_in(text):
        form = canonical(answer)
        if form is not None:
            return form
    return None


def answers_in(text: str) -> Iterator[str]:
    """Candidates for the answer of a text, as written, the most certain first.

    Args:
        text: untrusted; only its last 65,536 characters are read.
    """
    text = text[-MAX_TEXT:]
    boxed = _find_last_box(text)
    if boxed is not None:
        yield boxed
        return
    for find in (_find_statement, _find_in_last_sentence, last_number):
        answer = _only_number(find(text))
        if answer is not None:
            yield answer


def find_answer(text: str, limit: int = MAX_ANSWER) -> str | None:
    """The last box of a text, or else the text after its last cue.

    Args:
        text: untrusted; only its last 65,536 characters are read.
        limit: characters of the longest answer in a box; twice as many are read after a
            cue.

    Returns:
        The answer as written in the text; None if it has neither box nor cue.
    """
    text = text[-MAX_TEXT:]
    boxed = _find_last_box(text, limit)
    return _find_statement(text, limit) if boxed is None else boxed


def last_number(text: str) -> str | None:
    """The last number of a text; only its last 65,536 characters are read."""
    numbers = _NUMBER_IN_TEXT.findall(text[-MAX_TEXT:])
    return numbers[-1] if numbers else None


def _find_last_box(text: str, limit: int = MAX_ANSWER) -> str | None:
    for box in reversed(list(_BOX.finditer(text))[-MAX_PLACES:]):
        content = brace_content(text, box.end() - 1, limit)
        if content is not None:
            return content
    return None


def _find_statement(text: str, limit: int = MAX_ANSWER) -> str | None:
    """The text after the last cue; "the answer is right" does not count as a cue."""
    for cue in reversed(list(_CUE.finditer(text))[-MAX_PLACES:]):
        tail = text[cue.end() : cue.end() + 2 * limit]
        stated = _answer_after(tail, is_line=cue["heading"] is not None)
        if stated and not _NO_ANSWER.match(stated):
            return stated
    return None


def _find_in_last_sentence(text: str) -> str | None:
    """The answer in a text's last sentence, found by its verb."""
    line = text.rstrip().rsplit("\n", 1)[-1][-MAX_ANSWER:]
    sentence = _SENTENCE_END.split(line)[-1]
    if verdict := _VERDICT.match(sentence):
        return verdict.group(1)
    if count := _COUNT.search(sentence):
        return count.group(1)
    plain_text = _DOLLARS.sub("", sentence)
    if equations := _EQUATIONS.search(plain_text):
        return equations.group()
    answer = None
    for verb in list(_VERB.finditer(sentence))[-MAX_VERBS:]:
        tail = sentence[verb.end() :]
        remark = _REMARK.search(tail)
        candidate = _answer_after(
            tail[: remark.start() if remark else None], is_line=False
        )
        if _is_formula(drop_unit(candidate)):
            if verb.group() == "=" and _VARIABLE.fullmatch(candidate):
                continue
            answer = candidate
            if remark:
                break
    return answer


def _is_formula(text: str) -> bool:
    """Whether a text is a complete formula, not words or a part of a formula."""
    if not _FORMULA.fullmatch(text) or _PROSE.search(text):
        return False
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _answer_after(tail: str, *, is_line: bool) -> str:
    """The answer at the beginning of a text that follows a cue."""
    tail = _TAG.sub("", tail)
    lead = _LEAD.match(tail)
    if lead:
        is_line = is_line or "\n" in lead.group()
        tail = tail[lead.end() :]
    sign = ""
    if dash := _DASHED.match(tail):
        # "- 3" on its own line is an item of a list.
        is_item = is_line and dash.group() in ("- ", "– ", "— ")
        sign, tail = "" if is_item else "-", tail[dash.end() :]
    if formula := _MATHEMATICS.match(tail):
        inside = next(group for group in formula.groups() if group is not None)
        if not _CONTINUES.match(tail, formula.end()):
            return sign + inside.strip()
    end = _END.search(tail)
    line = tail[: end.start() if end else None].strip(" *_:,;\"“”'‘’`")
    name, value = name_of(line)
    quantity = _QUANTITY.match(sign + value)
    if quantity and not changes_meaning(quantity.group(3)):
        number, percent, word = quantity.groups()
        number_with_unit = f"{number} {word}" if is_unit(word) else number
        number_with_unit = f"{number}%" if percent else number_with_unit
        return number_with_unit if name is None else f"{name} = {number_with_unit}"
    return sign + line


def _only_number(stated: str | None) -> str | None:
    """The number of a sentence with exactly one, such as "that there are 4 ways"."""
    if stated is None or len(re.findall(r"[A-Za-z]{2,}", stated)) < _PROSE_WORDS:
        return stated
    numbers = _NUMBER_IN_TEXT.findall(stated)
    return numbers[0] if len(numbers) == 1 and "\\" not in stated else stated
