"""How much of what a run computed was of use, and where its time went."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Report(NamedTuple):
    """Of one run of the engine.

    Attributes:
        useful: tokens that rows have written.
        computed: tokens that were computed for all slots, in use or not.
        bursts: how often the host looked at the slots.
        seconds: of the host's phases, summed over groups of devices that work side by
            side: ``prefill``, ``move`` (rows into slots), ``decode``, ``reward``,
            ``repeat`` and ``decide``. Each contains what it compiled.
        programs: that were compiled, or read from disk, while the run went on.
        compile_seconds: what that took.
        prefill_bytes: what reading prompts takes beside the weights at its peak, at
            most (:func:`tsi.models.prefill.prefill_bytes`).
    """

    useful: int
    computed: int
    bursts: int
    seconds: Mapping[str, float]
    programs: int = 0
    compile_seconds: float = 0.0
    prefill_bytes: int = 0

    @property
    def utilisation(self) -> float:
        """The share of the computed tokens that were of use; NaN if there are none."""
        return self.useful / self.computed if self.computed else math.nan


class Progress(NamedTuple):
    """How far a run of the engine is.

    Attributes:
        ended: problems.
        problems: in all.
        generated_tokens: so far, of all problems.
        seconds: since the run began.
    """

    ended: int
    problems: int
    generated_tokens: int
    seconds: float


def total(reports: Iterable[Report]) -> Report:
    """One report of several groups of devices."""
    useful, computed, bursts = 0, 0, 0
    seconds: Counter[str] = Counter()
    for report in reports:
        useful += report.useful
        computed += report.computed
        bursts += report.bursts
        seconds.update(report.seconds)
    return Report(useful, computed, bursts, dict(seconds))
