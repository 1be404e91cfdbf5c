"""Write a report as one HTML page that needs no network.

The page holds plotly.js, a program and the data of the runs. Texts of models and of
files are untrusted: they are JSON in an element that browsers do not run, with every
"<" escaped, and the program shows them only by `textContent`. A content security
policy forbids the page to load or send anything.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tsi.errors import ConfigurationError
from tsi.models.files import write_text

SCRIPTS = (
    "elements.js",
    "figures.js",
    "tables.js",
    "tree.js",
    "problems.js",
    "page.js",
)


def write_page(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the page of some runs.

    Args:
        runs: from `page_data.page_data`.
        path: of the HTML file.

    Raises:
        ConfigurationError: plotly is not installed.
    """
    folder = resources.files("tsi.experiments.pages")
    parts = {
        "STYLE": (folder / "page.css").read_text(),
        "PLOTLY": _plotly(),
        "DATA": as_script_data({"runs": list(runs)}),
        "PROGRAM": "\n".join((folder / name).read_text() for name in SCRIPTS),
    }
    text = (folder / "page.html").read_text()
    head, *rest = text.split("{{")
    pieces = [head]
    for piece in rest:
        name, tail = piece.split("}}", 1)
        pieces += [parts[name], tail]
    write_text(path, "".join(pieces))


def as_script_data(value: Any) -> str:
    """JSON that is safe in a script element, whatever texts it contains.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    # Within JSON a "<" is part of a string, and nothing else ends a script element.
    return text.replace("<", "\\u003c")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigurationError(
            "A report as a page needs plotly; run `pip install -e '.[report]'`."
        ) from error
    return get_plotlyjs()
