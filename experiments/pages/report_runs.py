"""The command `tsi report`: a page of finished runs, and their tables and figures."""

from collections.abc import Sequence
from pathlib import Path

from tsi.experiments.files.places import Place, join_place, local_folder
from tsi.experiments.pages.kept_trees import trees_of
from tsi.experiments.pages.page import write_page
from tsi.experiments.pages.page_data import page_data
from tsi.experiments.reports.curves import Rows
from tsi.experiments.reports.write_report import (
    find_published_curves,
    run_title,
    write_files,
)
from tsi.experiments.rows.results import read_rows
from tsi.models.files import check_writable


def report_runs(
    folders: Sequence[Place],
    out: Path,
    *,
    tables: bool = False,
    genealogies: int = 40,
    published: str | None = None,
) -> str:
    """Write the page of some runs, from their rows and kept particles.

    Args:
        folders: each with a file rows.jsonl.
        out: the HTML file.
        tables: also write the tables and figures of each run into its folder again.
        genealogies: problems of each run whose genealogies are in the page.
        published: policy of arXiv 2502.01618 whose curves are drawn behind those of the
            runs; by default the policy of the runs, if it is one of these.

    Returns:
        What was written, as text.

    Raises:
        ConfigurationError: plotly is not installed.
        ResultsError: there are no rows, or some are missing or malformed.
    """
    rows_by_folder = [read_rows(join_place(folder, "rows.jsonl")) for folder in folders]
    check_writable(out)
    runs, paths = [], [str(out)]
    for folder, rows in zip(folders, rows_by_folder, strict=True):
        trees = trees_of(rows, join_place(folder, "rows.jsonl"), genealogies)
        background_curves = find_published_curves(rows, published)
        runs.append(page_data(str(folder), rows, trees, background_curves))
        if tables:
            with local_folder(folder) as local:
                _, names = write_files(rows, _title(rows), local, background_curves)
            paths += [f"{folder}/{name}" for name in names]
    write_page(runs, out)
    return f"Written: {', '.join(paths)}"


def _title(rows: Rows) -> str:
    tasks = {
        str((row.get("settings") or {}).get("task", "task")) for row in rows.values()
    }
    problems = {cell.problem for cell in rows}
    seeds = {cell.seed for cell in rows}
    return run_title(", ".join(sorted(tasks)), len(problems), len(seeds))
