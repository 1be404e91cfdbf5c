r"""Plain text of an answer: LaTeX, Markdown and Unicode markup removed or unified."""

import re

from tsi.results.units import drop_text_unit

MAX_ANSWER = 512

# "\\" ends a row of a matrix: it is kept, and the characters after it as well.
_DROPPED = re.compile(
    r"(\\\\)|\\(?:left|right|displaystyle|textstyle|quad|qquad|degree)(?![A-Za-z])"
    r"|\\[!,;:()\[\]]|\\?[$%]|\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})"
    r"|[°€£¥₹\u200b\ufeff]"
)
_WRAPPER = re.compile(
    r"\\(?:text|textrm|textit|textbf|textnormal|mathrm|mathbf|mathit|mbox|boxed|fbox"
    r"|operatorname|underline)\{"
)
_FRACTION = re.compile(r"\\frac ?(\d|\{)")
_FACTOR = re.compile(r" ?(?:[0-9({^!\\√]|[A-Za-z](?![A-Za-z]{2}))")
_DIGITS = re.compile(r"\d{1,100}$")
_AROUND = re.compile(r" ?([-+/=<>()\[\]]) ?")
_BRACES = re.compile(r"([\^_])\{(\w)\}")
_ROOT = re.compile(r"\\sqrt ?(\d)(?!\d)|√ ?(\d{1,20})")
_NAME = re.compile(
    r"(?<![A-Za-z\\])(pi|infinity|theta|sin|cos|tan|ln|log)(?![A-Za-z]) ?"
)
_OPENING = re.compile(r"\^ ?\(|\\?(?<![A-Za-z])sqrt ?\(|√ ?\(")
_DASHES = dict.fromkeys(map(ord, "−–—‐‑‒﹣－"), "-")
_SYMBOLS = {
    "×": "\\times ",
    "·": "\\cdot ",
    "⋅": "\\cdot ",
    "π": "\\pi ",
    "∞": "\\infty ",
    "≤": "\\le ",
    "≥": "\\ge ",
    "≠": "\\ne ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∈": "\\in ",
    "∅": "\\emptyset ",
    "±": "\\pm ",
    "²": "^2",
    "³": "^3",
    "½": " 1/2",
    "¼": " 1/4",
    "¾": " 3/4",
    "{,}": ",",
    "\\ ": " ",
    "~": " ",
    "\\\\": "\\\\",
}
_SYMBOL = re.compile("|".join(map(re.escape, sorted(_SYMBOLS, key=len, reverse=True))))
_COMMANDS = {
    "leq": "\\le",
    "geq": "\\ge",
    "neq": "\\ne",
    "varnothing": "\\emptyset",
    "dfrac": "\\frac",
    "tfrac": "\\frac",
    "cfrac": "\\frac",
    "lbrace": "\\{",
    "rbrace": "\\}",
}
_COMMAND = re.compile(rf"\\({'|'.join(_COMMANDS)})(?![A-Za-z])")


def remove_markup(answer: str, *, keep_units: bool = False) -> str:
    r"""An answer without markup, with uniform dashes, fractions and spaces.

    Args:
        answer: any text.
        keep_units: whether to keep units in ``\text{}``.
    """
    plain_text = answer.translate(_DASHES)
    plain_text = _SYMBOL.sub(lambda match: _SYMBOLS[match.group()], plain_text)
    plain_text = _COMMAND.sub(lambda match: _COMMANDS[match.group(1)], plain_text)
    plain_text = _DROPPED.sub(lambda match: match.group(1) or "", plain_text)
    plain_text = plain_text if keep_units else drop_text_unit(plain_text)
    while wrapper := _WRAPPER.search(plain_text):
        content = brace_content(plain_text, wrapper.end() - 1)
        if content is None:
            break
        end = wrapper.end() + len(content) + 1
        plain_text = plain_text[: wrapper.start()] + content + plain_text[end:]
    plain_text = plain_text.strip("*`_ ").replace("**", "^")
    plain_text = slash_fractions(_plain_functions(plain_text))
    plain_text = _ROOT.sub(
        lambda match: rf"\sqrt{{{match[1] or match[2]}}}", plain_text
    )
    plain_text = _BRACES.sub(r"\1\2", plain_text)
    plain_text = " ".join(plain_text.split()).strip("*`_ ")
    return _AROUND.sub(r"\1", _strip_stops(plain_text))


def _plain_functions(plain_text: str) -> str:
    """LaTeX for formulas that models write in plain text: sqrt(2), 2^(n-1), pi."""
    plain_text = _NAME.sub(r"\\\1 ", plain_text)
    plain_text = plain_text.replace("\\infinity", "\\infty")
    start = 0
    while match := _OPENING.search(plain_text, start):
        content = _brackets_content(plain_text, match.end() - 1)
        if content is None:
            start = match.end()
            continue
        end = match.end() + len(content) + 1
        head = "^" if match.group().startswith("^") else "\\sqrt"
        plain_text = (
            f"{plain_text[: match.start()]}{head}{{{content}}}{plain_text[end:]}"
        )
        start = match.start() + len(head)
    return plain_text


def _brackets_content(text: str, start: int) -> str | None:
    """The text between the round bracket at `start` and the matching one."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + 1 : i]
    return None


def brace_content(text: str, start: int, limit: int = MAX_ANSWER) -> str | None:
    """The text between the brace at `start` and the matching brace, if it is near.

    Args:
        text: untrusted.
        start: place of the brace.
        limit: characters of the longest content.
    """
    depth = 0
    for i in range(start, min(len(text), start + limit + 2)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + 1 : i]
    return None


def slash_fractions(plain_text: str) -> str:
    r"""Write \frac{a}{b}, \frac12 and 1\frac{1}{2} as a/b, 1/2 and "1 1/2"."""
    match = _FRACTION.search(plain_text)
    while match:
        start, position, parts = match.start(), match.end() - 1, []
        for _ in range(2):
            while plain_text[position : position + 1] == " ":
                position += 1
            if plain_text[position : position + 1] == "{":
                part = brace_content(plain_text, position)
                if part is None:
                    return plain_text
                position += len(part) + 2
            else:
                part = plain_text[position : position + 1]
                position += 1
            simple = re.fullmatch(r"[+-]?[\w.]{1,100}", part.strip())
            parts.append(part.strip() if simple else f"({part.strip()})")
        before, after = plain_text[:start], plain_text[position:]
        ratio = f"{parts[0]}/{parts[1]}"
        whole = _DIGITS.search(before)
        if before.endswith("^"):
            ratio = f"{{{ratio}}}"
        elif whole and _FACTOR.match(after):
            before, ratio = before[: whole.start()], f"({whole.group()}+{ratio})"
        elif before.endswith("/") or _FACTOR.match(after):
            # Without brackets, the numerator or denominator could extend further.
            ratio = f"({ratio})"
        elif whole:
            ratio = f" {ratio}"
        plain_text = before + ratio + after
        match = _FRACTION.search(plain_text)
    return plain_text


def _strip_stops(plain_text: str) -> str:
    """Remove punctuation at the end, except an ellipsis."""
    while plain_text and plain_text[-1] in " .,;:" and not plain_text.endswith(".."):
        plain_text = plain_text[:-1]
    return plain_text
