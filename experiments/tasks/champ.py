"""CHAMP: 270 competition problems with final answers, from a package of PyPI.

The package ``champ-dataset`` (MIT) also has model-written solutions and marks of their
first wrong steps. Its file is read without importing the package.

Source: Mao, Kim and Zhou 2024, arXiv 2401.06961.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

from tsi.errors import ConfigurationError
from tsi.experiments.tasks.data_files import file_sha256
from tsi.experiments.tasks.listed import graded_task
from tsi.experiments.tasks.presets import get_preset
from tsi.experiments.tasks.task import Task
from tsi.models.files import check_regular
from tsi.problem import Problem

SIZE = 270
MEMBER = "dataset_files/v0.json"


def champ_task() -> Task:
    """The task of CHAMP.

    Raises:
        ConfigurationError: the package is not installed, or its file has another
            layout.
    """
    path = champ_file()
    return graded_task(
        "champ",
        champ_problems(read_champ(path)),
        "math",
        get_preset("steps"),
        settings={"problems_sha256": file_sha256(path)},
        citation="Mao, Kim and Zhou 2024, arXiv 2401.06961",
        licence="MIT, package champ-dataset",
        shuffled=True,
    )


def champ_file() -> Path:
    """The file of the installed package.

    Raises:
        ConfigurationError: the package is not installed.
    """
    spec = importlib.util.find_spec("champ_dataset")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "The task champ needs the package champ-dataset; install it with "
            "`pip install -e '.[champ]'`."
        )
    return Path(spec.origin).parent / MEMBER


def read_champ(path: Path) -> dict[str, Any]:
    """The records of the problems by their ids.

    Raises:
        ConfigurationError: the file has another layout.
    """
    try:
        check_regular(path)
        records = json.loads(path.read_bytes())["problems"]
        if len(records) != SIZE:
            raise ValueError(f"{len(records)} problems")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} does not contain the {SIZE} problems of CHAMP ({error!r}); "
            "install champ-dataset 1.0.0 again."
        ) from error
    return records


def champ_problems(records: dict[str, Any]) -> list[Problem]:
    """The problems, with their category as data."""
    return [
        Problem(
            name, record["_text"], record["_answer"], {"category": record["category"]}
        )
        for name, record in records.items()
    ]
