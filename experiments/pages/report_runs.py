"""The command `tsi report`: a page of finished runs, and their tables and figures."""

from collections.abc import Sequence
from pathlib import Path

from tsi.errors import ResultsError
from tsi.experiments.pages.kept_trees import has_particles, trees_of
from tsi.experiments.pages.page import write_page
from tsi.experiments.pages.page_data import page_data
from tsi.experiments.places import Place, join_place, local_folder
from tsi.experiments.scaling.curves import Rows
from tsi.experiments.scaling.methods import get_method
from tsi.experiments.scaling.pool_curves import PoolPoint, pool_curves
from tsi.experiments.scaling.results import read_rows
from tsi.experiments.scaling.write_report import run_title, write_files
from tsi.models.files import check_writable

NUM_SUBSETS = 500
"""Random subsets of each pool for weighted votes."""


def report_runs(
    folders: Sequence[Place], out: Path, *, tables: bool = False, genealogies: int = 40
) -> str:
    """Write the page of some runs, from their rows and kept particles.

    Args:
        folders: each with a file rows.jsonl.
        out: the HTML file.
        tables: also write the tables and figures of each run into its folder again.
        genealogies: problems of each run whose genealogies are in the page.

    Returns:
        What was written, as text.

    Raises:
        ConfigurationError: plotly is not installed.
        ResultsError: there are no rows, or some are missing or malformed.
    """
    found = [read_rows(join_place(folder, "rows.jsonl")) for folder in folders]
    check_writable(out)
    runs, written = [], [str(out)]
    for folder, rows in zip(folders, found, strict=True):
        trees = trees_of(rows, join_place(folder, "rows.jsonl"), genealogies)
        pools, note = _pools(rows, join_place(folder, "rows.jsonl"))
        data = page_data(str(folder), rows, trees, pools)
        data["notes"] += [note] if note else []
        runs.append(data)
        if tables:
            with local_folder(folder) as local:
                _, names = write_files(rows, _title(rows), local)
            written += [f"{folder}/{name}" for name in names]
    write_page(runs, out)
    return f"Written: {', '.join(written)}"


def _pools(
    rows: Rows, place: Place
) -> tuple[dict[str, dict[int, PoolPoint]], str | None]:
    """Curves over subsets of kept pools, or why there are none."""
    is_pooled = any(get_method(cell.method).independent for cell in rows)
    if not is_pooled or not has_particles(place):
        return {}, None
    try:
        return pool_curves(rows, place, NUM_SUBSETS), None
    except ResultsError as error:
        return {}, f"There are no curves over subsets of pools: {error}"


def _title(rows: Rows) -> str:
    tasks = {
        str((row.get("settings") or {}).get("task", "task")) for row in rows.values()
    }
    problems = {cell.problem for cell in rows}
    seeds = {cell.seed for cell in rows}
    return run_title(", ".join(sorted(tasks)), len(problems), len(seeds))
