"""Convert rows to a pandas DataFrame (optional dependency: `pip install pandas`)."""

import json
from typing import Any

from tsi.errors import ConfigurationError
from tsi.experiments.reports.curves import Rows
from tsi.experiments.rows.row_format import SETTINGS


def to_frame(rows: Rows) -> Any:
    """Rows as a `pandas.DataFrame`, one line per method, budget, seed and problem.

    Args:
        rows: from `read_rows`.

    Returns:
        A table with the columns method, budget, seed and problem, the fields of a row,
        and a column ``settings.NAME`` for each setting. Settings that are lists or
        objects are JSON texts.

    Raises:
        ConfigurationError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigurationError(
            "A table of rows needs pandas; run `pip install pandas`."
        ) from error
    columns: dict[int, dict[str, Any]] = {}
    records = []
    for cell, row in rows.items():
        fields = dict(row)
        settings = fields.pop(SETTINGS, {})
        # Rows share their settings, so each is flattened once.
        if id(settings) not in columns:
            columns[id(settings)] = {
                f"{SETTINGS}.{name}": json.dumps(value)
                if isinstance(value, dict | list)
                else value
                for name, value in settings.items()
            }
        records.append(cell._asdict() | fields | columns[id(settings)])
    return pandas.DataFrame.from_records(records)
