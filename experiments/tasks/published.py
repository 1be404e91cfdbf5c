"""Published benchmarks by name; their problems are fetched when they are first used.

    math500        500 problems of MATH, the split of PRM800K
    aime24, aime25 30 problems each, with answers from 0 to 999
    gsm8k          1,319 word problems of primary school
    numglue2       325 problems of chemistry and physics, task 2 of NumGLUE
    financebench   53 of 150 questions about annual reports, with the page that has the
                   answer: those whose answer is a number, since others need a judge
    gpqa           198 questions of science with four choices (gated)

Each row of `BENCHMARKS` says where the file is, how its rows become problems, and how
answers are graded.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError
from tsi.experiments.tasks.data_files import HubFile, WebFile, file_sha256, find_file
from tsi.experiments.tasks.listed import graded_task
from tsi.experiments.tasks.presets import get_preset
from tsi.experiments.tasks.problem_file import read_rows
from tsi.experiments.tasks.task import Task
from tsi.problem import Problem

Fields = Mapping[str, Any]
GITHUB = "https://raw.githubusercontent.com"

_AMOUNT = re.compile(
    r"[-(]?\s*[$€£]?\s*[-(]?\d[\d,]*(?:\.\d+)?\)?\s*(%|x|[a-z]+)?", re.I
)


class Benchmark(NamedTuple):
    """A published set of problems.

    Attributes:
        source: of the file.
        problem: ``(row number, fields) -> Problem``, or None to leave the row out.
        size: number of problems, which is checked.
        grader: of answers.
        citation: what to cite.
        licence: of the problems.
        preset: prompt, step ends and limits.
    """

    source: HubFile | WebFile
    problem: Callable[[int, Fields], Problem | None]
    size: int | None
    grader: str
    citation: str
    licence: str
    preset: str = "steps"


def _math500(number: int, fields: Fields) -> Problem:
    data = {"subject": fields["subject"], "level": fields["level"]}
    return Problem(fields["unique_id"], fields["problem"], fields["answer"], data)


def _aime(number: int, fields: Fields) -> Problem:
    identity = str(fields.get("id", number))
    return Problem(identity, fields["problem"], str(int(fields["answer"])))


def _gsm8k(number: int, fields: Fields) -> Problem:
    solution, _, answer = fields["answer"].rpartition("####")
    # The solutions mark their calculations with << and >>.
    solution_text = re.sub(r"<<[^<>]*>>", "", solution).strip()
    data = {"solution": solution_text}
    answer = answer.strip().replace(",", "")
    return Problem(str(number), fields["question"], answer, data)


def _numglue2(number: int, fields: Fields) -> Problem | None:
    if str(fields["type"]) != "Type_2":
        return None
    return Problem(str(number), fields["question"], str(fields["answer"]))


def _financebench(number: int, fields: Fields) -> Problem | None:
    if not _AMOUNT.fullmatch(fields["answer"].strip().rstrip(".")):
        return None
    pages = [evidence["evidence_text"] for evidence in fields["evidence"]]
    prompt = "\n\n".join([*pages, fields["question"]])
    data = {"company": fields["company"], "tolerance": 0.01}
    return Problem(fields["financebench_id"], prompt, fields["answer"], data)


def _gpqa(number: int, fields: Fields) -> Problem:
    right = fields["Correct Answer"].strip()
    wrong = [fields[f"Incorrect Answer {i}"].strip() for i in (1, 2, 3)]
    choices = [right, *wrong]
    identity = fields["Record ID"]
    # The same order for everyone; the file has the right answer first.
    random.Random(identity).shuffle(choices)
    letter = "ABCD"[choices.index(right)]
    lines = [f"({name}) {text}" for name, text in zip("ABCD", choices, strict=True)]
    prompt = "\n".join([fields["Question"].strip(), "", *lines])
    return Problem(identity, prompt, letter, {"choices": choices})


BENCHMARKS = {
    "math500": Benchmark(
        HubFile(
            "HuggingFaceH4/MATH-500",
            "test.jsonl",
            "ff5b20257d8185524591543f8ff5993951537bb8",
        ),
        _math500,
        500,
        "math",
        "Hendrycks et al. 2021, arXiv 2103.03874; Lightman et al. 2023, "
        "arXiv 2305.20050",
        "MIT",
    ),
    "aime24": Benchmark(
        HubFile(
            "HuggingFaceH4/aime_2024",
            "data/train-00000-of-00001.parquet",
            "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        ),
        _aime,
        30,
        "math",
        "American Invitational Mathematics Examination 2024",
        "Mathematical Association of America",
    ),
    "aime25": Benchmark(
        HubFile(
            "math-ai/aime25",
            "test.jsonl",
            "563bb8404243c5f09de6ec262f2db674fe5bce9b",
        ),
        _aime,
        30,
        "math",
        "American Invitational Mathematics Examination 2025",
        "Mathematical Association of America",
    ),
    "gsm8k": Benchmark(
        WebFile(
            f"{GITHUB}/openai/grade-school-math/"
            "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/test.jsonl",
            "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        ),
        _gsm8k,
        1319,
        "math",
        "Cobbe et al. 2021, arXiv 2110.14168",
        "MIT",
    ),
    "numglue2": Benchmark(
        WebFile(
            f"{GITHUB}/allenai/numglue/3722b91a089a75572e619376d8a7a89a38f4d0f2/"
            "data/NumGLUE_test.json"
        ),
        _numglue2,
        325,
        "numeric",
        "Mishra et al. 2022, arXiv 2204.05660",
        "ODC-BY",
    ),
    "financebench": Benchmark(
        WebFile(
            f"{GITHUB}/patronus-ai/financebench/"
            "cc39aeb4afdf33909ee1412188bf89035950c2eb/data/financebench_open_source.jsonl",
            "a5a2aa673e573e55675fc3c0f9aa38c1cf59d2abc91edb077534f71f10a71877",
        ),
        _financebench,
        53,
        "numeric",
        "Islam et al. 2023, arXiv 2311.11944",
        "not stated in the repository",
    ),
    "gpqa": Benchmark(
        HubFile(
            "Idavidrein/gpqa",
            "gpqa_diamond.csv",
            "633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        ),
        _gpqa,
        198,
        "choice",
        "Rein et al. 2023, arXiv 2311.12022",
        "CC BY 4.0; the authors ask that no question is shown in the open",
    ),
}


def published_task(name: str) -> Task:
    """The task of a published benchmark.

    Args:
        name: of `BENCHMARKS`.

    Raises:
        DownloadError: its file cannot be fetched.
        ConfigurationError: the file has another layout than the benchmark's.
    """
    benchmark = BENCHMARKS[name]
    path = find_file(name, benchmark.source)
    problems = list(read_benchmark(name, benchmark, path))
    if benchmark.size is not None and len(problems) != benchmark.size:
        raise ConfigurationError(
            f"{path} has {len(problems)} problems of {name}, which has "
            f"{benchmark.size}; remove the file, and it is fetched again."
        )
    return graded_task(
        name,
        problems,
        benchmark.grader,
        get_preset(benchmark.preset),
        settings={"problems_sha256": file_sha256(path)},
        citation=benchmark.citation,
        licence=benchmark.licence,
        shuffled=True,
    )


def read_benchmark(name: str, benchmark: Benchmark, path: Path) -> Iterator[Problem]:
    """The problems in a benchmark's file.

    Raises:
        ConfigurationError: a row lacks a field or has one of another type.
    """
    for number, fields in read_rows(path):
        try:
            problem = benchmark.problem(number, fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"{path}, line {number}, does not have the layout of {name} "
                f"({error!r}); put the published file there."
            ) from error
        if problem is not None:
            yield problem
