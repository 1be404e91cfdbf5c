"""The README's snippets print what they say, and its tables are the measured ones."""

import doctest
from pathlib import Path

import pytest

from tsi.errors import ResultsError
from tsi.experiments.scaling.readme import with_tables

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["README.md", "docs/numpyro.md"])
def test_the_snippets_print_what_the_text_says(name):
    failed, attempted = doctest.testfile(
        str(ROOT / name),
        module_relative=False,
        optionflags=doctest.NORMALIZE_WHITESPACE,
    )
    assert attempted > 10
    assert failed == 0


def test_the_tables_are_those_that_the_experiments_wrote():
    text = (ROOT / "README.md").read_text()
    assert with_tables(text, ROOT) == text


def test_a_table_whose_file_is_missing_is_named(tmp_path):
    with pytest.raises(ResultsError, match=r"gone\.md"):
        with_tables("<!-- table: gone.md -->\n<!-- end -->", tmp_path)
