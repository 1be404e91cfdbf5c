r"""The grader "math": mathematical equality of two answers.

Numbers are compared here, exactly. So are names of variables, kinds of brackets, lists,
sets and words, because the computer algebra system of math-verify (the package
``math-verify``, extra ``tasks``) reads (1, 2) and {1, 2} as equal, both R and r as r,
and "no" as n·o. math-verify compares only the remaining formulas, one by one.

- "x = 1" is 1 and x = 1, but not y = 1.
- (1, 2) is the list 1, 2, but not [1, 2], {1, 2} or (2, 1). Sets and lists without
  brackets have no order. ± stands for two members.
- A decimal with at least six places is a number that rounds to it, as 0.333333 is 1/3.
- With a percent sign, 50% is 50 and 1/2; 50 without a sign is not 1/2. Currency,
  degrees and units do not count.
- Formulas with words, "...", \gcd, \pmod or a base, as in 101_2, must be the same
  text, because math-verify does not read them or drops a part.

A problem's data may have ``equivalent_answers``, a list of texts, each of which is
right too.
"""

import functools
import importlib.util
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from tsi.problem import Problem
from tsi.results.canonical import canonical
from tsi.results.markup import MAX_ANSWER, remove_markup
from tsi.results.members import bracket_members, list_members
from tsi.results.names import name_of
from tsi.results.numbers import number_of
from tsi.results.units import drop_unit

Verify = Callable[[str, str], bool | None]

MIN_PLACES = 6
"""Decimal places from which on a decimal may stand for the number that rounds to it."""

EQUIVALENT = "equivalent_answers"

INSTALL = (
    "math-verify is not installed; install it with `pip install -e '.[tasks]'` or "
    "`pip install math-verify`"
)

_WORDS = re.compile(r"[A-Za-z][A-Za-z ,.'’-]{1,511}")
_PRODUCT = re.compile(r"[b-df-hj-np-tv-z]{2,3}")
# Words, also those that have lost their spaces ("xis0"), and what cannot be parsed.
_TEXT_ONLY = re.compile(
    r"(?<![A-Za-z\\])(?:[A-Za-z]{4,}|(?=[A-Za-z]{3})[A-Za-z]*(?:i[sfn]|o[rf]|to|at)"
    r"|(?:i[sfn]|o[rf]|to|at|as|by)(?![A-Za-z]))"
    r"|\\(?:gcd|lcm|max|min|p?mod|bmod|equiv|choose|[clv]?dots|sim|approx)(?![A-Za-z])"
    r"|\.\.|\?|\d:\d\d(?!\d)"
)
_BASE = re.compile(r"(\d{1,100})_(?:\{(\w{1,8})\}|(\w))")
_CAPITAL_COMMAND = re.compile(r"\\[A-Z][A-Za-z]{0,31}")
_CAPITAL = re.compile(r"(?<![A-Za-z\\])(?<!\\[A-Za-z])[A-Z](?![a-z])")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z]{1,16}\}")


class MissingPackageError(ImportError):
    """math-verify is needed and not installed."""


def shortcut(problem: Problem, answer: str) -> bool | None:
    """Whether the answer is right, if that can be seen without math-verify."""
    return _disjunction(
        [decide(gold, answer, lambda *pair: None) for gold in gold_answers(problem)]
    )


def is_correct(problem: Problem, answer: str) -> bool:
    """Whether the answer equals one of the gold answers.

    math-verify needs time and memory without limits for some texts: call it in a
    process with limits.

    Raises:
        MissingPackageError: math-verify would have to decide and is not installed.
    """
    return any(decide(gold, answer, verify) for gold in gold_answers(problem))


def gold_answers(problem: Problem) -> list[str]:
    """The right answer of a problem, and those that are equivalent to it."""
    return [problem.answer, *problem.data.get(EQUIVALENT, [])]


def prepare() -> None:
    """Import math-verify, which takes two seconds, and what it imports later."""
    if importlib.util.find_spec("math_verify") is not None:
        verify("x^2+2x+1", "(x+1)^2")


def check_gold(problem: Problem) -> str | None:
    """What is wrong with a gold answer, as the end of a sentence."""
    others = problem.data.get(EQUIVALENT, [])
    if not isinstance(others, list) or not all(isinstance(x, str) for x in others):
        return f"has {EQUIVALENT} that are not a list of texts"
    for gold in gold_answers(problem):
        place = "" if gold == problem.answer else f"has {gold!r:.80}, which "
        if canonical(gold) is None:
            return f"{place}is empty or has more than {MAX_ANSWER} characters"
        if _has_formula(gold) and importlib.util.find_spec("math_verify") is None:
            return f"{place}is a formula, and {INSTALL}"
    return None


def decide(gold: str, given: str, verify: Verify) -> bool | None:
    """Whether two answers are equal.

    Args:
        gold: the right answer.
        given: untrusted.
        verify: ``(gold, given) -> bool``, decides about two formulas; None if it
            cannot.

    Returns:
        None if the answer depends on formulas about which `verify` cannot decide.
    """
    if len(gold) > MAX_ANSWER or len(given) > MAX_ANSWER:
        return False
    gold_form, given_form = canonical(gold), canonical(given)
    if gold_form is None or given_form is None:
        return False
    gold_name, gold_value = name_of(remove_markup(gold))
    given_name, given_value = name_of(remove_markup(given))
    if gold_name and given_name and gold_name != given_name:
        return False
    gold_value, given_value = drop_unit(gold_value), drop_unit(given_value)
    gold_number, given_number = _number(gold_value), _number(given_value)
    if gold_number is not None and given_number is not None:
        percents = "%" in gold, "%" in given
        return _equal_numbers(gold_number, given_number, *percents)
    if gold_form == given_form:
        return True
    gold_base, given_base = _BASE.fullmatch(gold_value), _BASE.fullmatch(given_value)
    if gold_base or given_base:
        # In an answer the base may be missing, and never be another.
        return gold_base is not None and given_value == gold_base.group(1)
    members = _members(gold_value), _members(given_value)
    if len(members[0][1]) > 1 or len(members[1][1]) > 1 or members[0][0] == "\\{":
        return _equal_members(members[0], members[1], verify)
    return _equal_formulas(gold_value, given_value, verify)


def verify(gold: str, given: str) -> bool:
    """Whether math-verify calls two formulas equal.

    Raises:
        MissingPackageError: it is not installed.
    """
    parse, compare = _math_verify()
    names = "".join(_CAPITAL.findall(gold + given))
    parsed = [parse(_rename_capitals(text, names)) for text in (gold, given)]
    return all(parsed) and bool(compare(*parsed))


@functools.cache
def _math_verify() -> tuple[Callable[[str], Any], Callable[[Any, Any], bool]]:
    """Functions that parse a formula and compare two."""
    try:
        import math_verify
        from latex2sympy2_extended.math_normalization import NormalizationConfig
    except ImportError as error:
        raise MissingPackageError(INSTALL) from error
    # It says at each start that it has no limit of time: the worker has one.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    # Units are ours, so that "5m" is 5·m.
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    config = math_verify.LatexExtractionConfig(
        boxed_match_priority=-1, normalization_config=normalization
    )

    def parse(formula: str) -> Any:
        # It reads LaTeX only between dollars.
        return math_verify.parse(
            f"${formula}$",
            [config],
            fallback_mode="no_fallback",
            parsing_timeout=None,
            raise_on_error=True,
        )

    def compare(gold: Any, given: Any) -> bool:
        return math_verify.verify(
            gold, given, timeout_seconds=None, raise_on_error=False
        )

    return parse, compare


def _has_formula(gold: str) -> bool:
    """Whether a gold answer has a part about which math-verify decides."""
    value = drop_unit(name_of(remove_markup(gold))[1])
    members = _members(value)[1]
    if len(members) > 1:
        return any(map(_has_formula, members))
    return _number(value) is None and not _is_text(value)


def _is_text(plain_text: str) -> bool:
    """Whether an answer must be the same text, because math-verify cannot read it."""
    if _WORDS.fullmatch(plain_text) and not _PRODUCT.fullmatch(plain_text):
        return True
    if _BASE.fullmatch(plain_text):
        return True
    return _TEXT_ONLY.search(_ENVIRONMENT.sub("", plain_text)) is not None


def _number(plain_text: str) -> Fraction | None:
    value = number_of(plain_text)
    if value is None:
        form = canonical(plain_text)
        value = None if form is None else number_of(form)
    return value


def _equal_numbers(
    gold: Fraction, given: Fraction, gold_percent: bool, given_percent: bool
) -> bool:
    readings = [given]
    if given_percent and not gold_percent:
        readings.append(given / 100)
    if gold_percent and not given_percent:
        readings.append(given * 100)
    return any(
        gold == value or _rounds_to(gold, value) or _rounds_to(value, gold)
        for value in readings
    )


def _rounds_to(exact: Fraction, decimal: Fraction) -> bool:
    """Whether a decimal of six places or more is a number, rounded."""
    places, rest = 0, decimal.denominator
    while rest % 10 == 0 or rest % 2 == 0 or rest % 5 == 0:
        rest //= 10 if rest % 10 == 0 else 2 if rest % 2 == 0 else 5
        places += 1
    if rest != 1 or places < MIN_PLACES:
        return False
    return round(exact, places) == decimal


def _members(value: str) -> tuple[str, list[str], str]:
    """The members of a list, a tuple, an interval or a set; the value alone if none."""
    if bracketed := bracket_members(value):
        return bracketed
    members = list_members(value)
    if len(members) == 1 and "\\pm" in value and "\\mp" not in value:
        members = [re.sub(r"\\pm ?", sign, value) for sign in "+-"]
        members = [member.removeprefix("+") for member in members]
    return "", members, ""


def _equal_members(
    gold: tuple[str, list[str], str], given: tuple[str, list[str], str], verify: Verify
) -> bool | None:
    left, members, right = gold
    given_left, given_members, given_right = given
    if left and given_left and (left, right) != (given_left, given_right):
        return False
    brackets = left or given_left
    if not (left and given_left) and brackets == "[":
        # Without brackets it is not a closed interval.
        return False
    if len(members) != len(given_members):
        return False
    if brackets and brackets != "\\{":
        results = [
            decide(*pair, verify) for pair in zip(members, given_members, strict=True)
        ]
        return _conjunction(results)
    return _equal_without_order(members, given_members, verify)


def _equal_without_order(
    gold: Sequence[str], given: Sequence[str], verify: Verify
) -> bool | None:
    """Whether members can be paired with equal ones, greedily."""
    left, undecided = list(given), False
    for member in gold:
        results = [decide(member, other, verify) for other in left]
        if True in results:
            left.pop(results.index(True))
        elif None in results:
            undecided = True
        else:
            return False
    return None if undecided else True


def _conjunction(results: Sequence[bool | None]) -> bool | None:
    if False in results:
        return False
    return None if None in results else True


def _disjunction(results: Sequence[bool | None]) -> bool | None:
    if True in results:
        return True
    return None if None in results else False


def _equal_formulas(gold: str, given: str, verify: Verify) -> bool | None:
    """Whether two formulas of different canonical forms are equal."""
    if _is_text(gold) or _is_text(given):
        return False
    if Counter(_CAPITAL_COMMAND.findall(gold)) != Counter(
        _CAPITAL_COMMAND.findall(given)
    ):
        # It reads \Delta as \delta.
        return False
    return verify(gold, given)


def _rename_capitals(formula: str, capitals: str) -> str:
    """Capital letters as separate variables: math-verify reads R as r."""
    if not capitals:
        return formula
    return _CAPITAL.sub(lambda match: f"{match.group().lower()}_{{99}}", formula)
