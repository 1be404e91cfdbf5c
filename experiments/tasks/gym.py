"""Tasks of reasoning-gym by name, ``gym:chain_sum``, scored by their own verifiers.

The package reasoning-gym (Apache-2.0, extra ``tasks``) has about a hundred generators.
Settings of the difficulty follow the name: ``gym:chain_sum,min_terms=2,max_terms=4``.
Seeds select the problems; splits use different seeds. The verifier gives a score from 0
to 1, of which 1 is right. It reads untrusted text, so it runs in a separate process.

Source: Stojanovski et al. 2025, arXiv 2505.24760.
"""

import enum
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

import numpy as np

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.tasks.generated import NUM_PROBLEMS
from tsi.experiments.tasks.prompts import PromptFormat
from tsi.experiments.tasks.task import Split, Task
from tsi.problem import Problem
from tsi.results.answers import MAX_ANSWER, MAX_TEXT

PREFIX = "gym:"
SPLIT_SEEDS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
MAX_SEED = 2**31 - 1
SIZE = 10_000
"""Problems per seed; some generators prepare all of them at the start."""

SYSTEM = (
    "Work on the problem in short steps, with a blank line after each. Then write the "
    "final answer alone between <answer> and </answer>, in the form that the problem "
    "asks for."
)
_TAGGED = re.compile(r"<answer>(.{0,4096}?)</answer>", re.DOTALL)
_CUE = re.compile(r"answer(?: is)?: ?", re.IGNORECASE)


def gym_task(name: str) -> Task:
    """The task of a name such as ``gym:chain_sum,min_terms=2``.

    Raises:
        UnknownNameError: reasoning-gym has no such generator.
        ConfigurationError: the package is not installed, or a setting is unknown or
            refused by the generator.
    """
    generator, settings = parse_gym_name(name)
    _dataset(generator, settings, 0)

    def problems(
        split: Split, count: int | None, seed: int | Sequence[int]
    ) -> list[Problem]:
        """Problems with different questions; a shorter list is a prefix of a longer."""
        seeds = (seed,) if isinstance(seed, int) else tuple(seed)
        rng = np.random.default_rng((SPLIT_SEEDS[split], *seeds))
        first = int(rng.integers(MAX_SEED))
        size = NUM_PROBLEMS if count is None else count
        return _distinct_problems(generator, settings, first, size)

    return Task(
        name=name,
        problems=problems,
        extract=extract,
        grader=f"{__name__}:is_correct",
        prompts=PromptFormat(SYSTEM),
        settings={"generator": generator, "generator_settings": settings},
        citation="Stojanovski et al. 2025, Reasoning Gym, arXiv 2505.24760",
        licence="Apache-2.0, package reasoning-gym",
    )


def parse_gym_name(name: str) -> tuple[str, dict[str, Any]]:
    """Generator and settings of a name; values are JSON, or texts without commas.

    Raises:
        ConfigurationError: a setting is not written NAME=VALUE or occurs twice.

    >>> parse_gym_name("gym:chain_sum,min_terms=2,allow_negation=true")
    ('chain_sum', {'min_terms': 2, 'allow_negation': True})
    >>> parse_gym_name('gym:simple_equations,operators=["+","-"],max_terms=3')
    ('simple_equations', {'operators': ['+', '-'], 'max_terms': 3})
    >>> parse_gym_name("gym:word_sorting,transformation= lowercase ,max_words= 4")
    ('word_sorting', {'transformation': 'lowercase', 'max_words': 4})
    """
    generator, comma, rest = name.removeprefix(PREFIX).partition(",")
    settings: dict[str, Any] = {}
    while comma:
        key, equals, values = rest.partition("=")
        if not equals or not key.isidentifier() or key in settings:
            raise ConfigurationError(
                f"The setting {rest.partition(',')[0]!r} of {name!r} is not written "
                "NAME=VALUE, or occurs twice; write for example "
                "gym:chain_sum,min_terms=2."
            )
        settings[key], comma, rest = _first_value(values)
    return generator, settings


def _first_value(values: str) -> tuple[Any, str, str]:
    """The first value, the comma after it if there is one, and what follows."""
    text, comma, rest = values.partition(",")
    values = values.lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(values)
    except (ValueError, RecursionError):
        return text.strip(), comma, rest
    after = values[end:].lstrip()
    if after[:1] not in ("", ","):
        return text.strip(), comma, rest
    return value, after[:1], after[1:]


def extract(text: str) -> str | None:
    """The text between the last answer tags, else after a cue on the last line.

    >>> extract("2 + 2 = 4\\n\\n<answer> 4 </answer>")
    '4'
    >>> extract("So it is 4.\\nAnswer: 4")
    '4'
    """
    text = text[-MAX_TEXT:]
    tagged = _TAGGED.findall(text)
    if tagged:
        answer = tagged[-1]
    else:
        last_line = text.strip().rpartition("\n")[2]
        answer = _CUE.split(last_line)[-1]
    answer = answer.strip()
    return answer if 0 < len(answer) <= MAX_ANSWER else None


def is_correct(problem: Problem, answer: str | None) -> bool:
    """Whether the generator's own verifier gives the answer its full score."""
    if answer is None:
        return False
    data = problem.data
    dataset = _dataset(data["generator"], data["settings"], data["seed"])
    # The entry is generated again: JSON would change its tuples and dates.
    return float(dataset.score_answer(answer, dataset[data["index"]])) >= 1.0


def _distinct_problems(
    generator: str, settings: Mapping[str, Any], seed: int, count: int
) -> list[Problem]:
    problems: dict[str, Problem] = {}
    dataset = _dataset(generator, settings, seed)
    for index in range(SIZE):
        if len(problems) == count:
            break
        try:
            entry = dataset[index]
        except Exception as error:  # whatever a generator raises on odd settings
            raise ConfigurationError(
                f"The generator {generator} of reasoning-gym fails with the settings "
                f"{json.dumps(settings)}: {type(error).__name__}: {error}."
            ) from error
        question = entry["question"]
        if question in problems:
            continue
        data = {
            "generator": generator,
            "settings": dict(settings),
            "seed": seed,
            "index": index,
        }
        # Some generators verify answers without knowing one.
        answer = "" if entry["answer"] is None else str(entry["answer"])
        problems[question] = Problem(f"{seed}-{index}", question, answer, data)
    if len(problems) < count:
        raise ConfigurationError(
            f"{generator} gives only {len(problems):,} different problems with these "
            f"settings, not {count:,}; ask for fewer."
        )
    return list(problems.values())


def _dataset(generator: str, settings: Mapping[str, Any], seed: int) -> Any:
    return _cached_dataset(generator, json.dumps(settings, sort_keys=True), seed)


@functools.lru_cache(8)
def _cached_dataset(generator: str, settings: str, seed: int) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigurationError(
            f"The task {PREFIX}{generator} needs the package reasoning-gym; install it "
            "with `pip install -e '.[tasks]'`."
        ) from error
    if generator not in DATASETS:
        raise UnknownNameError("generator of reasoning-gym", generator, DATASETS)
    _, config = DATASETS[generator]
    try:
        return reasoning_gym.create_dataset(
            generator,
            size=SIZE,
            seed=seed,
            **_with_members(json.loads(settings), config),
        )
    except Exception as error:  # whatever a generator raises on odd settings
        raise ConfigurationError(
            f"reasoning-gym refuses the settings {settings} of {generator}: "
            f"{error or type(error).__name__}."
        ) from error


def _with_members(settings: Mapping[str, Any], config: type) -> dict[str, Any]:
    """The settings with members of enumerations for their values, as in JSON.

    Raises:
        ValueError: an enumeration has no such member.
    """
    declared = get_type_hints(config)
    members = dict(settings)
    for name, value in settings.items():
        hint: Any = declared.get(name)
        for kind in get_args(hint) or (hint,):
            if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
                continue
            if kind is hint:
                members[name] = kind(value)
            elif isinstance(value, list):
                members[name] = [kind(item) for item in value]
    return members
