"""The grader "numeric": numbers within a tolerance, with the gold answer's unit.

A problem's data may have ``tolerance`` (relative to the gold answer) and
``absolute_tolerance``; the answer may differ by the larger of the two. Without them it
must be the same number. Numbers are exact fractions, so that 0.1 is 1/10. If the gold
answer has a unit, the answer must have the same unit or none; units are compared by a
list of common spellings and are not converted. A unit that only the answer has is
ignored. A percent sign is a unit, too: 50% is 50, and it is 1/2 if one of the two has
the sign and the other has no unit.
"""

import math
import re
from fractions import Fraction
from typing import NamedTuple

from tsi.problem import Problem
from tsi.results.answers import MAX_TEXT, answers_in, last_number
from tsi.results.canonical import canonical
from tsi.results.markup import MAX_ANSWER, remove_markup
from tsi.results.names import drop_name
from tsi.results.numbers import DECIMAL, number_of
from tsi.results.units import split_unit

_SPELLINGS = """
    % percent pct percentage
    $ usd dollar us-dollar
    € eur euro
    £ gbp pound-sterling
    ° deg degree
    cm centimeter centimetre
    mm millimeter millimetre
    m meter metre
    km kilometer kilometre
    in inch inche
    ft foot feet
    yd yard
    mi mile
    g gram gramme
    kg kilogram kilo
    lb pound
    oz ounce
    l liter litre
    ml milliliter millilitre
    s sec second
    min minute
    h hr hour
    km/h kmh kph
    mi/h mph
"""
_SPELLING = {
    word: line.split()[0]
    for line in _SPELLINGS.strip().splitlines()
    for word in line.split()
}
MAX_TOLERANCE, MAX_EXPONENT = 64, 400
"""Characters of a tolerance, and its exponent of ten."""

_CURRENCY = re.compile(r"^([-+]?) ?(?:\\?(\$)|([€£¥₹]))")
_SIGN = re.compile(r"(\\?%|°|\^\\circ|\^\{\\circ\})$")


_QUANTITY_IN_TEXT = re.compile(
    rf"((?:(?<![\w)])-)?[$€£]?(?:{DECIMAL})(?:/\d{{1,100}})?)"
    r"(?: ?(%|°|[A-Za-z/]{1,16}))?"
)


class Quantity(NamedTuple):
    """A number and its unit, "" if it has none."""

    value: Fraction
    unit: str


def extract(text: str) -> str | None:
    """The number that a text gives as its answer, with its unit, or its last number."""
    *earlier_answers, last = [None, *answers_in(text)]
    if last is not None and last == last_number(text):
        last = _last_quantity(text)
    for words in (*earlier_answers, last):
        quantity = None if words is None else quantity_of(words)
        if quantity is not None:
            return f"{quantity.value} {quantity.unit}".strip()
    return None


def quantity_of(text: str) -> Quantity | None:
    """The number and the unit of an answer, or None for other answers."""
    text = text.strip(" .,;*\n")
    if len(text) > MAX_ANSWER:
        return None
    unit = ""
    if currency := _CURRENCY.match(text):
        unit = currency.group(2) or currency.group(3)
    elif sign := _SIGN.search(text):
        unit = "%" if "%" in sign.group() else "°"
    plain_text = drop_name(remove_markup(text, keep_units=True))
    number, words = split_unit(plain_text, short_too=True)
    value = number_of(number)
    if value is None:
        simple = canonical(text)
        value = None if simple is None else number_of(simple)
    return None if value is None else Quantity(value, unit or _normal_unit(words))


def _last_quantity(text: str) -> str:
    """The last number of a text, with the word after it if that is a known unit."""
    *_, last = _QUANTITY_IN_TEXT.finditer(text[-MAX_TEXT:])
    number, word = last.groups()
    is_known = word is not None and _normal_unit(word) in _SPELLING.values()
    return f"{number} {word}" if is_known else number


def is_correct(problem: Problem, answer: str) -> bool:
    """Whether the answer is the gold number, within the problem's tolerance."""
    gold, given = quantity_of(problem.answer), quantity_of(answer)
    if gold is None or given is None:
        return False
    if not gold.unit:
        gold = gold._replace(unit=_normal_unit(str(problem.data.get("unit", ""))))
    if gold.unit != given.unit and _excludes_unit(gold.unit, given.unit):
        return False
    relative = tolerance_of(problem.data.get("tolerance", 0))
    absolute = tolerance_of(problem.data.get("absolute_tolerance", 0))
    if relative is None or absolute is None:
        raise ValueError("the problem's tolerance is not a number from 0")
    allowed = max(relative * abs(gold.value), absolute)
    readings = [given.value]
    if (gold.unit, given.unit) == ("", "%"):
        readings.append(given.value / 100)
    if (gold.unit, given.unit) == ("%", ""):
        readings.append(given.value * 100)
    return any(abs(gold.value - value) <= allowed for value in readings)


def check_gold(problem: Problem) -> str | None:
    """What is wrong with a gold answer or a tolerance, as the end of a sentence."""
    if quantity_of(problem.answer) is None:
        return "is not a number; use the grader math or exact"
    for name in ("tolerance", "absolute_tolerance"):
        if tolerance_of(problem.data.get(name, 0)) is None:
            return (
                f"has the {name} {problem.data[name]!r}; write a number from 0, such "
                "as 0.01"
            )
    return None


def tolerance_of(value: object) -> Fraction | None:
    """The exact number that a value of data is; None if it is not finite and from 0.

    Numbers that a float can hold are read, apart from rounding: a fraction with an
    exponent of nine digits would fill the memory.
    """
    if isinstance(value, bool) or len(text := str(value)) > MAX_TOLERANCE:
        return None
    try:
        number = float(text)
        exponent = int(text.lower().partition("e")[2] or 0)
        if not 0 <= number < math.inf or abs(exponent) > MAX_EXPONENT:
            return None
        return Fraction(text)
    except ValueError:
        return None


def _excludes_unit(gold: str, given: str) -> bool:
    """Whether a unit excludes another; a word that is not a unit excludes none."""
    if not gold or not given:
        return False
    return given in _SPELLING.values() or gold not in _SPELLING.values()


def _normal_unit(words: str) -> str:
    """One spelling of a unit."""
    unit = re.sub(r"[\s.{}^]", "", words.casefold())
    if unit in _SPELLING:
        return _SPELLING[unit]
    single = unit.removesuffix("s")
    return _SPELLING.get(single, single or unit)
