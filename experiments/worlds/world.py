"""A task with the models that work on it, as experiments use it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from tsi.explorer import Explorer
from tsi.problem import Problem
from tsi.results.result import Result
from tsi.sampler import Sampler


class ProblemRunner(Protocol):
    """What experiments ask of `tsi.engine.engine.Engine`."""

    def check(self, problems: Sequence[Problem]) -> None: ...

    def check_fits(self, sampler: Sampler | Explorer, num_particles: int) -> None: ...

    def problems_at_once(
        self, sampler: Sampler | Explorer, num_particles: int
    ) -> int: ...

    def run(
        self,
        sampler: Sampler | Explorer,
        key: Any,
        problems: Sequence[Problem],
        num_particles: int,
        *,
        extract: Callable[[str], str | None],
        temperature: float | None = None,
        proposal_temperature: float | None = None,
    ) -> list[Result]: ...


class World(NamedTuple):
    """A task with the models that work on it.

    Args:
        engine: runs samplers on problems.
        problems: what is asked, in order, each with an id of its own.
        extract: canonical answer of a generated text.
        correct: whether an answer is right.
        max_steps: the target's step limit.
        settings: what decides a row besides method, budget, seed and problem: task,
            models with their hashes, temperature, limits, versions.
        notes: what a user should know of how the policy is used, a sentence each.
        typical_tokens: says how many tokens a solution may well have; None where that
            is not known.
    """

    engine: ProblemRunner
    problems: list[Problem]
    extract: Callable[[str], str | None]
    correct: Callable[[Problem, str | None], bool]
    max_steps: int
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    typical_tokens: Callable[[], float] | None = None
