"""Snippets print what the text says, and tables are the measured ones."""

import doctest
import re
from pathlib import Path

import pytest

from tsi.errors import ResultsError
from tsi.experiments.reports.readme import PAGES, insert_tables

ROOT = Path(__file__).parent.parent
PROGRAMS = re.compile(r"```python\n(.*?)```", re.DOTALL)
SKETCHES = {"docs/distributed.md"}
"""Pages whose program has a test of its own."""


def documents():
    """The README and every page of the site that shows Python."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = {str(page.relative_to(ROOT)): page.read_text() for page in pages}
    return [name for name, text in named.items() if PROGRAMS.search(text)]


@pytest.mark.long
@pytest.mark.parametrize("name", sorted({*documents()} - SKETCHES))
def test_the_snippets_print_what_the_text_says(name):
    failed, attempted = doctest.testfile(
        str(ROOT / name),
        module_relative=False,
        optionflags=doctest.NORMALIZE_WHITESPACE,
    )
    assert failed == 0
    programs = PROGRAMS.findall((ROOT / name).read_text())
    assert attempted >= len(programs)
    assert all(program.startswith(">>>") for program in programs)


@pytest.mark.parametrize("name", PAGES, ids=str)
def test_the_tables_are_those_that_the_experiments_wrote(name):
    text = (ROOT / name).read_text()
    assert insert_tables(text, ROOT) == text


def test_a_table_whose_file_is_missing_is_named(tmp_path):
    with pytest.raises(ResultsError, match=r"gone\.md"):
        insert_tables("<!-- table: gone.md -->\n<!-- end -->", tmp_path)
