"""How problems leave a lane: with their final rows, or with an error."""

from typing import Any, NamedTuple

from tsi.reasoning.particles import Particles


class EndedProblem(NamedTuple):
    """A problem that has ended: its index, and its final state on the host."""

    problem: int
    particles: Particles
    state: Any
    infos: Any
    cost: Any


class FailedProblem(NamedTuple):
    """A problem that failed: its index, the error, and the step, counted from 1.

    The step is None if the error did not occur at a certain step.
    """

    problem: int
    error: Exception
    step: int | None = None
