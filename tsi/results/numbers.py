r"""Numbers in untrusted text, as exact fractions.

Integers, decimals, thousands separators, powers of ten, ratios, mixed numbers,
recurring decimals such as 0.1\overline{6}, and the words from zero to twenty. A number
of more than a hundred digits, or with an exponent of more than a hundred, is not read
as a number.
"""

import re
from fractions import Fraction

MAX_DIGITS = 100

# Every quantifier is bounded and no two adjacent ones can match the same characters,
# so matching is linear in the text.
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3}){1,32}|\d{1,100})(?:\.\d{1,100})?|\.\d{1,100}"
DECIMAL = rf"(?:{_UNSIGNED})(?:[eE][+-]?\d{{1,3}})?"
"""Regular expression of a number without a sign."""

NUMBER = rf"[+-]?(?:{DECIMAL})(?:(?: \d{{1,100}})?/\d{{1,100}})?"
"""Regular expression of a number with a sign, a ratio or a mixed number."""

_DECIMAL_ONLY = re.compile(rf"([+-]?)({DECIMAL})")
_RATIO = re.compile(rf"([+-]?)({DECIMAL})/([+-]?)({DECIMAL})")
_MIXED = re.compile(r"([+-]?)(\d{1,100}) (\d{1,100})/(\d{1,100})")
_POWER = re.compile(
    rf"([+-]?)(?:({DECIMAL}) ?(?:\\times|\\cdot|\*) ?)?"
    r"10\^(?:\{([+-]?\d{1,3})\}|(\d))"
)
_RECURRING = re.compile(
    r"([+-]?)(\d{0,50})\.(\d{0,50})\\(?:overline|bar)(?:\{(\d{1,50})\}|(\d))"
)
WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen
    fourteen fifteen sixteen seventeen eighteen nineteen twenty
"""
_VALUES = {word: Fraction(value) for value, word in enumerate(WORDS.split())}


def number_of(text: str) -> Fraction | None:
    """The number that a text represents; None if it is not a number."""
    if decimal := _DECIMAL_ONLY.fullmatch(text):
        return _parse_decimal(*decimal.groups())
    if ratio := _RATIO.fullmatch(text):
        above = _parse_decimal(*ratio.groups()[:2])
        below = _parse_decimal(*ratio.groups()[2:])
        return above / below if above is not None and below else None
    if mixed := _MIXED.fullmatch(text):
        sign, whole, top, bottom = mixed.groups()
        if int(bottom) == 0:
            return None
        value = int(whole) + Fraction(int(top), int(bottom))
        return -value if sign == "-" else value
    if power := _POWER.fullmatch(text):
        sign, digits, *exponents = power.groups()
        number = _parse_decimal(sign, digits or "1")
        exponent = int(exponents[0] or exponents[1])
        if number is None or abs(exponent) > MAX_DIGITS:
            return None
        return number * Fraction(10) ** exponent
    if recurring := _RECURRING.fullmatch(text):
        sign, whole, before, *after = recurring.groups()
        return _recurring_decimal(sign, whole, before, after[0] or after[1])
    return _VALUES.get(text.casefold())


def _parse_decimal(sign: str, digits: str) -> Fraction | None:
    mantissa, _, exponent = digits.replace(",", "").lower().partition("e")
    # An exponent of three digits would make a number of up to a thousand digits.
    if len(mantissa) > 2 * MAX_DIGITS or abs(int(exponent or 0)) > MAX_DIGITS:
        return None
    return Fraction(sign + mantissa) * Fraction(10) ** int(exponent or 0)


def _recurring_decimal(sign: str, whole: str, before: str, period: str) -> Fraction:
    r"""The value of whole.before\overline{period}."""
    head = Fraction(int(f"0{whole}{before}"), 10 ** len(before))
    tail = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(before))
    return -(head + tail) if sign == "-" else head + tail
