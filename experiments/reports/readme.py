"""Insert measured tables into README.md and the pages of results.

A table is between ``<!-- table: PATH -->`` and ``<!-- end -->``, where PATH is a
Markdown file that an experiment wrote. Run this after an experiment, so that all tables
are generated.

Command: ``python -m tsi.experiments.reports.readme``.
"""

import re
import sys
from pathlib import Path

from tsi.errors import ResultsError
from tsi.experiments.command import exit_code
from tsi.models.files import write_text

PAGES = (
    Path("README.md"),
    Path("docs/results/embedded.md"),
    Path("docs/results/language_model.md"),
)
"""The pages with tables, relative to the repository's root."""

_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_COST_ROW = re.compile(r"^\|([^|\n]+)\| +(\d+) \|.*\n", re.MULTILINE)


def insert_tables(text: str, folder: Path) -> str:
    """The text with every marked table replaced by its file's content.

    Args:
        text: Markdown with markers.
        folder: to which the markers' paths are relative.

    Raises:
        ResultsError: a file is missing.
    """

    def render_table(match: re.Match[str]) -> str:
        path = folder / match[2]
        if not path.is_file():
            raise ResultsError(
                f"A page shows {match[2]}, which does not exist; run the experiment "
                "that writes it."
            )
        return f"{match[1]}\n{_drop_title(path.read_text()).strip()}\n\n{match[3]}"

    return _BLOCK.sub(render_table, text)


def _drop_title(text: str) -> str:
    """Drop the first heading, and all costs except those at the largest budget."""
    text = re.sub(r"\A# .*\n", "", text)
    costs = [(row, int(row[2])) for row in _COST_ROW.finditer(text)]
    largest = max((budget for _, budget in costs), default=0)
    for row, budget in reversed(costs):
        if budget < largest:
            text = text[: row.start()] + text[row.end() :]
    return text


def main() -> None:
    """Update the pages in the working folder."""
    for page in PAGES:
        write_text(page, insert_tables(page.read_text(), Path()))


if __name__ == "__main__":
    sys.exit(exit_code(main))
