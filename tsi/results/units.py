r"""Units after a number: ``4 apples``, ``5\text{ cm}^2``, ``90 degrees``, ``3 km/h``.

A word after a number is a unit unless it belongs to mathematics ("2 or 3", "3 pi") or
is short enough to be a product of variables ("3 xy"). Short units are recognised from a
list. In ``\text{}`` every word that does not belong to mathematics is a unit.
"""

import re
from fractions import Fraction

from tsi.results.numbers import NUMBER, number_of

SHORT = """
    mm cm dm km ft yd mi kg mg lb lbs oz ml dl kl hr hrs min mins sec secs ms mph kph
    kmh hz khz mhz ghz kb mb gb tb ev kj kw kwh mw pa kpa psi mol usd eur gbp deg rad
    sq cu pts km/h mi/h m/s m/s^2 cm/s km/s ft/s g/l g/ml mol/l
"""
"""Units that need no space before them, or that are as short as a product of
variables."""

MATHEMATICS = """
    or and pi sqrt mod modulo choose to times plus minus over divided multiplied by
    squared cubed sin cos tan cot sec csc arcsin arccos arctan log ln exp max min gcd
    lcm if for when where is are than less more greater not factorial through until
    infinity inf nan unless but either both then hence am pm a.m. p.m. a.m p.m base
"""
"""Words after a number that change its meaning."""

_SHORT, _MATHEMATICS = frozenset(SHORT.split()), frozenset(MATHEMATICS.split())
_MULTIPLIERS = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_EXPONENT = r"(?:\^?(?:\{-?[1-3]\}|-?[1-3]))?"
_QUANTITY = re.compile(
    rf"({NUMBER})( ?)(%|[A-Za-zµΩ][A-Za-zµΩ./']{{0,31}}{_EXPONENT})"
    rf"((?: [A-Za-z.'()/-]{{1,31}}){{0,15}}{_EXPONENT})"
)
_IN_TEXT = re.compile(
    r"\\(?:text|mathrm|mbox|textrm|rm|textit)"
    r"\{[ ~]{0,8}([A-Za-zµΩ][A-Za-zµΩ .'/-]{0,63})\}"
    rf" ?{_EXPONENT}\.?$"
)


def drop_unit(plain_text: str) -> str:
    """The number of a quantity; other texts are returned unchanged.

    Args:
        plain_text: without markup.
    """
    number, unit = split_unit(plain_text)
    return number if unit else plain_text


def split_unit(plain_text: str, *, short_too: bool = False) -> tuple[str, str]:
    """The number and the unit of a quantity; the text and "" otherwise.

    Args:
        plain_text: without markup.
        short_too: whether every word that does not belong to mathematics is a unit,
            although "5 m" may be a product.
    """
    quantity = _QUANTITY.fullmatch(plain_text)
    if quantity is None:
        return plain_text, ""
    number, space, first, rest = quantity.groups()
    word = first.casefold().rstrip(".")
    multiplier = _MULTIPLIERS.get(word)
    if multiplier is not None:
        value = number_of(number)
        if value is None:
            return plain_text, ""
        product = str(Fraction(value * multiplier))
        return product, rest.strip() or "1"
    if not is_unit(word, has_space=bool(space)) and not (
        short_too and word not in _MATHEMATICS
    ):
        return plain_text, ""
    return number, (first + rest).strip()


def changes_meaning(word: str) -> bool:
    """Whether a word after a number belongs to mathematics, or is a number itself."""
    word = word.casefold()
    return word in _MATHEMATICS or word.rstrip("s") in _MULTIPLIERS


def drop_text_unit(latex: str) -> str:
    r"""A formula without the unit in ``\text{}`` at its end."""
    match = _IN_TEXT.search(latex)
    if match is None or not re.search(r"\d", latex[: match.start()]):
        return latex
    words = match.group(1).casefold().split()
    if words[0] in _MATHEMATICS or words[0] in _MULTIPLIERS:
        return latex
    return latex[: match.start()]


def is_unit(word: str, *, has_space: bool = True) -> bool:
    """Whether a word after a number is a unit or names the counted objects.

    Args:
        word: the word as written.
        has_space: whether a space precedes it.
    """
    word = word.casefold().rstrip(".")
    if word in _MATHEMATICS:
        return False
    unit_name = re.split(r"\^|\{|(?<=[a-z])-?[1-3]$", word)[0]
    if word in _SHORT or unit_name in _SHORT:
        return True
    if unit_name in ("degrees", "degree", "percent"):
        return True
    return has_space and len(unit_name) >= 3
