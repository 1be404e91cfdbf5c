"""What Markdown and docstrings hold that the site must be given as HTML.

Display equations become MathML, so that a page needs no script and no network. Roles
in docstrings, as in ``:func:`tsi.run.run` ``, become code.
"""

import re
from typing import Any

from latex2mathml.converter import convert

_DISPLAY = re.compile(r"^\$\$(.+?)\$\$$", re.DOTALL | re.MULTILINE)
_ERROR_BAR = re.compile(r"(?<=\d) ± (?=\d)")
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each ``$$ ... $$`` that is on separate lines."""

    def mathml(found: re.Match[str]) -> str:
        return f"<p>{convert(found[1].strip(), display='block')}</p>"

    return _DISPLAY.sub(mathml, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Drop the roles of docstrings, and keep a number and its error on one line."""
    return _ERROR_BAR.sub("\u00a0±\u00a0", _ROLE.sub("", html))
