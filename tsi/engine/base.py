"""The interface of engines, wherever the policy runs."""

import abc
import time
from collections.abc import Callable, Iterator, Sequence

from jax.sharding import Mesh

from tsi.decoding.truncation import Truncation
from tsi.engine.engine_run import collect
from tsi.engine.meters.report import Progress, Report, Totals
from tsi.explorer import Explorer
from tsi.problem import Problem
from tsi.problem_ids import check_ids
from tsi.results.result import Result
from tsi.sampler import Sampler
from tsi.step_keys import AnyKey


class BaseEngine(abc.ABC):
    """Runs samplers on problems.

    Attributes:
        report: of the last run; None before the first.
        totals: counts of all runs so far, and of what a run has done until the last
            problem that has ended.
        mesh: devices; None for one device, and for a policy on a server.
    """

    mesh: Mesh | None = None
    report: Report | None = None
    totals: Totals = Totals()

    @abc.abstractmethod
    def encode_problem(self, problem: Problem) -> list[int]:
        """The prompt of a problem, as the policy reads it.

        Raises:
            ConfigurationError: the prompt is empty, or has tokens that a model lacks.
            PromptTooLongError: the prompt and the token limit exceed the context.
        """

    def check(self, problems: Sequence[Problem]) -> None:
        """Refuse problems that cannot be run, before anything is computed.

        Raises:
            ConfigurationError: problems have the same id or an invalid one, or see
                `encode_problem`.
            PromptTooLongError: see `encode_problem`.
        """
        check_ids(problems)
        for problem in problems:
            self.encode_problem(problem)

    @abc.abstractmethod
    def check_fits(self, sampler: Sampler | Explorer, num_particles: int) -> None:
        """Refuse a number of particles that is too large, before work begins."""

    @abc.abstractmethod
    def problems_at_once(self, sampler: Sampler | Explorer, num_particles: int) -> int:
        """Maximum number of problems that run at once."""

    @abc.abstractmethod
    def stream(
        self,
        sampler: Sampler | Explorer,
        key: AnyKey,
        problems: Sequence[Problem],
        num_particles: int,
        *,
        extract: Callable[[str], str | None],
        temperature: float | None = None,
        proposal_temperature: float | None = None,
        truncation: Truncation | None = None,
        progress: Callable[[Progress], None] | None = None,
        exact: bool = False,
    ) -> Iterator[Result]:
        """Run a sampler on problems and yield each result as its problem ends."""

    def run(
        self,
        sampler: Sampler | Explorer,
        key: AnyKey,
        problems: Sequence[Problem],
        num_particles: int,
        *,
        extract: Callable[[str], str | None],
        temperature: float | None = None,
        proposal_temperature: float | None = None,
        truncation: Truncation | None = None,
        progress: Callable[[Progress], None] | None = None,
        exact: bool = False,
    ) -> list[Result]:
        """Run a sampler on every problem; arguments and errors are those of `stream`.

        Returns:
            One result per problem, in order.

        Raises:
            ProblemError: as `stream` does; it has the results of the other problems.
            Stopped: after a signal; it has the results of problems that had ended.
        """
        start_time = time.perf_counter()
        stream = self.stream(
            sampler,
            key,
            problems,
            num_particles,
            extract=extract,
            temperature=temperature,
            proposal_temperature=proposal_temperature,
            truncation=truncation,
            progress=progress,
            exact=exact,
        )
        return collect(stream, problems, start_time)

    def _recorder(self) -> Callable[[Report], None]:
        """A function that records the reports of one run, as often as there are any."""
        counted = Totals()

        def record(report: Report) -> None:
            nonlocal counted
            so_far = Totals().plus(report)
            self.totals = self.totals.plus(so_far.minus(counted))
            self.report, counted = report, so_far

        return record
