"""CHAMP: 270 competition problems with final answers, from a package of PyPI.

The package ``champ-dataset`` (MIT) also has model-written solutions and marks of their
first wrong steps. Its file is read without importing the package.

Its answers are prose, such as "C(10, 5), or equivalently 252". A problem's answer is
the first form that the prose allows, without its words; others are in the data under
``equivalent_answers``, and each of them is right.

Source: Mao, Kim and Zhou 2024, arXiv 2401.06961.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from tsi.errors import ConfigurationError
from tsi.experiments.grading.mathematics import EQUIVALENT
from tsi.experiments.tasks.data_files import file_sha256
from tsi.experiments.tasks.listed import graded_task
from tsi.experiments.tasks.presets import get_preset
from tsi.experiments.tasks.task import Task
from tsi.models.files import check_regular
from tsi.problem import Problem

SIZE = 270
MEMBER = "dataset_files/v0.json"
FIELDS = frozenset({"_text", "_raw_answer", "category"})
_PHRASES = re.compile(
    r"(?:The limit exists and is equal to|The only possible value for the limit is"
    r"|At (?:least|most)|Exactly)? ?(.*?)"
    r"(?:,? or (?:equivalently|an equivalent form such as|approximately) .*"
    r"| is the only possible value|,? or approximately .*| \(i\.e\.?,? .*| \(n.*"
    r"| (?:values?|inequalities|pairs|times|numbers?|roots?|zeros?|sequence"
    r"|integer-valued \w+)(?: .*)?)?"
)


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
        for name, record in records.items():
            if lacking := FIELDS - record.keys():
                raise ValueError(f"{name} lacks {', '.join(sorted(lacking))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} does not contain the {SIZE} problems of CHAMP ({error!r}); "
            "install champ-dataset 1.0.0 again."
        ) from error
    return records


def champ_problems(records: dict[str, Any]) -> list[Problem]:
    """The problems; data are the category, and equivalent answers if there are any."""
    problems = []
    for name, record in records.items():
        answer, *others = gold_forms(record["_raw_answer"])
        data = {"category": record["category"]} | (
            {EQUIVALENT: others} if others else {}
        )
        problems.append(Problem(name, record["_text"], answer, data))
    return problems


def gold_forms(raw: str) -> list[str]:
    """The answers that a gold answer of CHAMP allows, without its words.

    >>> gold_forms("@@C(10, 5)@@, or equivalently @@252@@")
    ['C(10, 5)', '252']
    >>> gold_forms("The limit exists and is equal to 2")
    ['2']
    """
    text = raw.replace("@@", "")
    found = _PHRASES.fullmatch(text)
    inner = found.group(1) if found else ""
    is_short = inner == "one" or not re.search(
        r"(?<![A-Za-z])(?!sqrt|sum)[A-Za-z]{2}", inner
    )
    forms = [inner if inner and is_short else text]
    if verdict := re.match(r"(Yes|No)(?=[ ,])", text):
        forms.append(verdict.group())
    for other in re.findall(
        r"or (?:equivalently|an equivalent form such as) (.*)", text
    ):
        forms.append(other)
    return forms
