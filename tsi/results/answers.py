"""Answers: extraction from untrusted text, canonical form, counts and selection.

A model's text is never evaluated. Numbers are parsed by bounded regular expressions
into exact fractions, so 1,000 = 1000.0 and \\frac{1}{2} = 0.5, but 0.333 is not 1/3.
Other answers are compared as strings, ignoring spaces and case. Percent signs and
currency signs are dropped ("50%" = 50), as in the MATH graders.

The selection rules are those of the literature: the posterior mode; the particle of
highest reward (best-of-N); the majority (self-consistency, Wang et al. 2022, arXiv
2203.11171); the sum of rewards per answer (weighted best-of-N, Li et al. 2022, arXiv
2206.02336). Ties go to the answer that appears first.
"""

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from tsi.errors import UnknownNameError

MAX_TEXT = 65_536
MAX_ANSWER = 512
MAX_DIGITS = 100
UNANSWERED = "\ud800"
"""Stands for a missing answer: a lone surrogate, which no decoded text has."""

# Every quantifier below is bounded and no two adjacent ones can match the same
# characters, so matching is linear in the text.
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3}){1,32}|\d{1,100})(?:\.\d{1,100})?|\.\d{1,100}"
_DECIMAL = rf"(?:{_UNSIGNED})(?:[eE][+-]?\d{{1,3}})?"
_NUMBER_IN_TEXT = re.compile(
    # The minus of "7-4" is not a sign.
    rf"(?:(?<![\w)])-)?\$?(?:{_DECIMAL})(?:/\d{{1,100}})?"
)
_DECIMAL_ONLY = re.compile(rf"([+-]?)({_DECIMAL})")
_RATIO_ONLY = re.compile(rf"([+-]?)({_DECIMAL})/([+-]?)({_DECIMAL})")
_MIXED = re.compile(r"([+-]?)(\d{1,100}) (\d{1,100})/(\d{1,100})")
_ASSIGNMENT = re.compile(r"[A-Za-z]\w{0,15} ?= ?(.+)", re.DOTALL)
_QUANTITY = re.compile(
    rf"\s{{0,8}}([+-]?\$?(?:{_DECIMAL})(?:/\d{{1,100}})?) [A-Za-z]{{2}}"
)
_ANSWER_CUE = re.compile(r"answer (?:is|=)[: ]?|answer:|####", re.IGNORECASE)
_FRACTION = re.compile(r"\\frac ?(\d|\{)")
_DROPPED = re.compile(
    r"\\left|\\right|\\!|\\,|\\;|\\:|\\\(|\\\)|\\\[|\\\]|\\?\$|\\?%|\^\\circ"
    r"|\^\{\\circ\}|°|€|£"
)
_WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|boxed|fbox)\{")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def extract_answer(text: str) -> str | None:
    """The answer of a text: its last box, else after "answer is", else its last number.

    Args:
        text: untrusted; only its last 65,536 characters are read.

    Returns:
        The answer in canonical form, or None if the text has no answer.
    """
    text = text[-MAX_TEXT:]
    boxed = _last_boxed(text)
    if boxed is not None:
        return canonical(boxed)
    cues = list(_ANSWER_CUE.finditer(text))
    if cues:
        stated = canonical(_answer_after(text[cues[-1].end() :]))
        if stated is not None:
            return stated
    numbers = _NUMBER_IN_TEXT.findall(text)
    return canonical(numbers[-1]) if numbers else None


def canonical(answer: str | None) -> str | None:
    """The canonical form of an answer; None if there is no answer.

    Args:
        answer: untrusted; a string of more than 512 characters is no answer.

    Returns:
        "7" or "-3/2" for a number; otherwise the string in lower case without spaces.
    """
    if answer is None or len(answer) > MAX_ANSWER:
        return None
    plain = _remove_markup(answer)
    if not plain:
        return None
    assignment = _ASSIGNMENT.fullmatch(plain)
    if assignment:
        plain = assignment.group(1)
    number = _number(plain)
    if number is not None:
        return str(number)
    parts = _tuple_parts(plain)
    if parts is not None:
        inner = [canonical(part) or "" for part in parts]
        return plain[0] + ",".join(inner) + plain[-1]
    # "1 2" must not become the number 12.
    return re.sub(r"(?<!\d) | (?!\d)", "", plain).casefold() or None


def equivalent(left: str | None, right: str | None) -> bool:
    """Whether two answers are equal; a missing answer equals no other."""
    left = canonical(left)
    return left is not None and left == canonical(right)


def answer_posterior(
    answers: Sequence[str | None], log_weights: Float[np.ndarray, "N"]
) -> dict[str, float]:
    """Probability of each answer among particles with an answer, most probable first.

    The weight of particles without an answer is :func:`unanswered_weight`. If every
    particle with an answer has weight zero, they count equally.

    Args:
        answers: canonical answers.
        log_weights: in any normalisation; a NaN counts as weight zero.
    """
    indices = [n for n, answer in enumerate(answers) if answer is not None]
    if not indices:
        return {}
    chosen = np.asarray(log_weights, np.float64)[indices]
    chosen = np.where(np.isnan(chosen), -np.inf, chosen)
    top = chosen.max()
    if np.isneginf(top):
        weights = np.ones_like(chosen)
    elif np.isposinf(top):
        weights = (chosen == top).astype(np.float64)
    else:
        weights = np.exp(chosen - top)
    totals = _totals([str(answers[n]) for n in indices], weights)
    mass = math.fsum(totals.values())
    # sorted() is stable: equal masses stay in the order of first appearance.
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    return {answer: total / mass for answer, total in ranked}


def unanswered_weight(
    answers: Sequence[str | None], log_weights: Float[np.ndarray, "N"]
) -> float:
    """Share of the weight of particles without an answer.

    If every weight is zero, particles count equally.

    Args:
        answers: canonical answers.
        log_weights: in any normalisation; a NaN counts as weight zero.
    """
    labels = [UNANSWERED if answer is None else answer for answer in answers]
    return answer_posterior(labels, log_weights).get(UNANSWERED, 0.0)


def select(
    rule: str,
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    rewards: Float[np.ndarray, "N"],
) -> str | None:
    """Select an answer by a rule; particles without an answer are ignored.

    Args:
        rule: "posterior", "argmax", "vote" or "weighted_vote".
        answers: canonical answers.
        log_weights: used by "posterior".
        rewards: in (0, 1); used by "argmax" and "weighted_vote"; a NaN counts as 0.

    Returns:
        The answer, or None if no particle has one.

    Raises:
        UnknownNameError: for an unknown rule.
    """
    if rule not in SELECTION_RULES:
        raise UnknownNameError("selection rule", rule, SELECTION_RULES)
    return SELECTION_RULES[rule](answers, log_weights, rewards)


def _select_posterior(
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    rewards: Float[np.ndarray, "N"],
) -> str | None:
    return next(iter(answer_posterior(answers, log_weights)), None)


def _select_argmax(
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    rewards: Float[np.ndarray, "N"],
) -> str | None:
    indices = [n for n, answer in enumerate(answers) if answer is not None]
    rewards = np.nan_to_num(np.asarray(rewards, np.float64), nan=0.0)
    # max() keeps the first of equals.
    return answers[max(indices, key=lambda n: rewards[n])] if indices else None


def _select_vote(
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    rewards: Float[np.ndarray, "N"],
) -> str | None:
    return _select_largest_total(answers, np.ones(len(answers)))


def _select_weighted_vote(
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    rewards: Float[np.ndarray, "N"],
) -> str | None:
    return _select_largest_total(
        answers, np.nan_to_num(np.asarray(rewards, np.float64), nan=0.0)
    )


SELECTION_RULES: dict[str, Callable[..., str | None]] = {
    "posterior": _select_posterior,
    "argmax": _select_argmax,
    "vote": _select_vote,
    "weighted_vote": _select_weighted_vote,
}


def _select_largest_total(
    answers: Sequence[str | None], weights: np.ndarray
) -> str | None:
    indices = [n for n, answer in enumerate(answers) if answer is not None]
    totals = _totals([str(answers[n]) for n in indices], weights[indices])
    return max(totals, key=lambda answer: totals[answer]) if totals else None


def _totals(answers: Sequence[str], weights: np.ndarray) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for answer, weight in zip(answers, weights, strict=True):
        groups.setdefault(answer, []).append(float(weight))
    # fsum: sums of equal weights in another order must be exactly equal.
    return {answer: math.fsum(group) for answer, group in groups.items()}


def _last_boxed(text: str) -> str | None:
    start = len(text)
    while (start := text.rfind("\\boxed{", 0, start)) >= 0:
        content = _brace_content(text, start + len("\\boxed"))
        if content is not None:
            return content
    return None


def _brace_content(text: str, start: int) -> str | None:
    """The text between the brace at `start` and the matching brace, if it is near."""
    depth = 0
    for i in range(start, min(len(text), start + MAX_ANSWER + 2)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + 1 : i]
    return None


def _answer_after(tail: str) -> str:
    line = tail[: MAX_ANSWER + 2].strip().split("\n", 1)[0]
    quantity = _QUANTITY.match(line)
    if quantity:
        return quantity.group(1)
    # A full stop ends the sentence unless a digit follows it.
    return re.split(r"\.(?!\d)", line, maxsplit=1)[0].strip(" *:,;")


def _remove_markup(answer: str) -> str:
    """Remove LaTeX markup from an answer, and normalise spaces."""
    plain = answer.replace("−", "-").replace("{,}", ",").replace("\\ ", " ")
    plain = plain.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    plain = _DROPPED.sub("", plain)
    while wrapper := _WRAPPER.search(plain):
        content = _brace_content(plain, wrapper.end() - 1)
        if content is None:
            break
        end = wrapper.end() + len(content) + 1
        plain = plain[: wrapper.start()] + content + plain[end:]
    plain = _slash_fractions(plain)
    plain = " ".join(plain.split()).rstrip(" .")
    return re.sub(r" ?([-+/,=()\[\]]) ?", r"\1", plain)


def _slash_fractions(plain: str) -> str:
    r"""Write \frac{a}{b}, \frac12 and 1\frac{1}{2} as a/b, 1/2 and "1 1/2"."""
    match = _FRACTION.search(plain)
    while match:
        start, position, parts = match.start(), match.end() - 1, []
        for _ in range(2):
            while plain[position : position + 1] == " ":
                position += 1
            if plain[position : position + 1] == "{":
                part = _brace_content(plain, position)
                if part is None:
                    return plain
                position += len(part) + 2
            else:
                part = plain[position : position + 1]
                position += 1
            simple = re.fullmatch(r"[+-]?[\w.]{1,100}", part.strip())
            parts.append(part.strip() if simple else f"({part.strip()})")
        whole = " " if start and plain[start - 1].isdigit() else ""
        ratio = f"{whole}{parts[0]}/{parts[1]}"
        plain = plain[:start] + ratio + plain[position:]
        match = _FRACTION.search(plain)
    return plain


def _number(plain: str) -> Fraction | None:
    mixed = _MIXED.fullmatch(plain)
    if mixed:
        sign, whole, top, bottom = mixed.groups()
        if int(bottom) == 0:
            return None
        value = int(whole) + Fraction(int(top), int(bottom))
        return -value if sign == "-" else value
    if decimal := _DECIMAL_ONLY.fullmatch(plain):
        return _decimal(*decimal.groups())
    if ratio := _RATIO_ONLY.fullmatch(plain):
        above = _decimal(*ratio.groups()[:2])
        below = _decimal(*ratio.groups()[2:])
        return above / below if above is not None and below else None
    return None


def _decimal(sign: str, digits: str) -> Fraction | None:
    mantissa, _, exponent = digits.replace(",", "").lower().partition("e")
    # An exponent of three digits would make a number of up to a thousand digits.
    if len(mantissa) > 2 * MAX_DIGITS or abs(int(exponent or 0)) > MAX_DIGITS:
        return None
    return Fraction(sign + mantissa) * Fraction(10) ** int(exponent or 0)


def _tuple_parts(plain: str) -> list[str] | None:
    """The members of "(a, b)" or "[a, b]", or None for another form."""
    if len(plain) < 2 or _BRACKETS.get(plain[0]) != plain[-1]:
        return None
    parts, depth, start = [], 0, 1
    for i in range(1, len(plain) - 1):
        depth += (plain[i] in "([{") - (plain[i] in ")]}")
        if depth < 0:
            return None
        if depth == 0 and plain[i] == ",":
            parts.append(plain[start:i])
            start = i + 1
    return [*parts, plain[start:-1]] if parts and depth == 0 else None
