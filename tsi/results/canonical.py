"""The canonical form of an answer; particles with the same form vote together.

A model's text is never evaluated. Numbers are parsed by bounded regular expressions
into exact fractions, so 1,000 = 1000.0 and \\frac{1}{2} = 0.5, but 0.333 is not 1/3.
Other answers are compared as strings without spaces; case is ignored in words. Currency
signs, units and the name of a variable are dropped ("4 apples" = 4, "x = 5" is 5), as
in the MATH graders. A number keeps its percent sign ("50 percent" is 50%), because
graders accept it as equal to 50 and to 1/2, and without the gold answer it is unknown
which one is meant.

LaTeX in the answer remains LaTeX in the canonical form, so that a computer algebra
system can read it. Canonicalisation is idempotent.
"""

import re

from tsi.results.markup import MAX_ANSWER, remove_markup
from tsi.results.members import bracket_members, list_members
from tsi.results.names import drop_name, name_of
from tsi.results.numbers import number_of
from tsi.results.units import drop_unit

MAX_PASSES = 64

# A space ends a LaTeX command, and "1 2" must not become the number 12.
_SPACE = re.compile(r"(\\[A-Za-z]{1,32} )(?=[A-Za-z])|(\d )(?=\d)| ")
_WORDS = re.compile(r"[A-Za-z][A-Za-z ,.'’()-]{0,511}")
_PERCENT = re.compile(
    r"(?:%|(?<![A-Za-z])per ?cent(?:age)?)[\s.,;:$*_`)}\\]{0,16}$", re.IGNORECASE
)
_LETTER = re.compile(r"\(([A-Za-z])\)")


def canonical(answer: str | None) -> str | None:
    """The canonical form of an answer, or None for an empty or too long one.

    Args:
        answer: untrusted text; more than 512 characters give None.

    Returns:
        "7", "-3/2" or "50%" for a number; "a,b" for a list; otherwise the string
        without spaces, in lower case if it consists of words. The result is a fixed
        point of this function.
    """
    form = answer
    for _ in range(MAX_PASSES):
        if form is None or len(form) > MAX_ANSWER:
            return None
        form, before = _simplify(form), form
        if form == before:
            return form
    return None


def equivalent(left: str | None, right: str | None) -> bool:
    """Whether two answers are equal; a missing answer equals no other."""
    left = canonical(left)
    return left is not None and left == canonical(right)


def _simplify(answer: str) -> str | None:
    """One pass of simplification; further passes may simplify more."""
    plain_text = remove_markup(answer)
    if not plain_text:
        return None
    plain_text = drop_unit(drop_name(plain_text))
    number = number_of(plain_text)
    if number is not None:
        return f"{number}%" if _PERCENT.search(answer) else str(number)
    bracketed = bracket_members(plain_text)
    if bracketed is not None:
        left, members, right = bracketed
        inner = [_simplify(member) or "" for member in members]
        # A set has no order.
        inner = sorted(inner) if left == "\\{" else inner
        return left + ",".join(inner) + right
    members = list_members(plain_text)
    if len(members) > 1:
        return _join(members)
    if letter := _LETTER.fullmatch(plain_text):
        plain_text = letter.group(1)
    if _WORDS.fullmatch(plain_text):
        plain_text = plain_text.casefold()
    return _SPACE.sub(lambda match: match[1] or match[2] or "", plain_text) or None


def _join(members: list[str]) -> str:
    """The canonical form of a list without brackets."""
    names = [name_of(member)[0] for member in members]
    if None not in names and len(set(names)) == len(names):
        # "y = 2, x = 1" is "x = 1, y = 2".
        values = [_simplify(name_of(member)[1]) or "" for member in members]
        return ",".join(sorted(map("{}={}".format, names, values)))
    forms = [_simplify(member) or "" for member in members]
    joined = ",".join(forms)
    # "1, 200" is two numbers, and "1,200" is one.
    return joined if number_of(joined) is None else ", ".join(forms)
