"""Reports of a run: useful tokens, time by part, and memory."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class CacheBytes(NamedTuple):
    """Bytes of keys and values in blocks, at their peak.

    Attributes:
        shared: of blocks that several rows read, each counted once.
        private: of blocks that one row reads.
        unshared: bytes that all rows would take without sharing.
    """

    shared: int = 0
    private: int = 0
    unshared: int = 0

    @property
    def held(self) -> int:
        """Bytes of all blocks that some row reads."""
        return self.shared + self.private


class Report(NamedTuple):
    """Of one run of the engine.

    Attributes:
        useful: tokens that rows have written, those among them that were lost when
            memory ran out.
        computed: tokens that were computed for all slots, in use or not.
        bursts: number of bursts.
        seconds: of each of :data:`tsi.engine.meters.clock.PARTS`, summed over groups of
            devices that work side by side. Parts of an exact run are what programs
            took, each from its call to its last result, and "host" is all else;
            otherwise they are the host's phases. Compilation is in neither.
        programs: that were compiled, or read from disk, while the run went on.
        compile_seconds: what the process spent on that, without tracing.
        compiling: seconds of "compile" by the part that they interrupted.
        wall: seconds that have passed.
        groups: of devices, side by side; their seconds sum to `wall` times this.
        read: tokens that the reward has read, of problems that have a result.
        model_programs: of the engine so far, by part.
        cache: summed over groups, each at its own largest.
        prefill_bytes: what reading prompts takes beside the weights at its peak, at
            most (:func:`tsi.models.prefill.prefill_bytes`).
        peak_bytes: the most that a device of the run has held, or on a CPU the
            process, since it began.
    """

    useful: int
    computed: int
    bursts: int
    seconds: Mapping[str, float]
    programs: int = 0
    compile_seconds: float = 0.0
    prefill_bytes: int = 0
    compiling: Mapping[str, float] = {}
    wall: float = 0.0
    groups: int = 1
    read: int = 0
    model_programs: Mapping[str, int] = {}
    cache: CacheBytes = CacheBytes()
    peak_bytes: int = 0

    @property
    def utilisation(self) -> float:
        """The share of the computed tokens that were useful; NaN if there are none."""
        return self.useful / self.computed if self.computed else math.nan

    def parts(self) -> dict[str, float]:
        """Seconds of each part, in the mean over groups; they sum to `wall`."""
        return {part: spent / self.groups for part, spent in self.seconds.items()}


class Progress(NamedTuple):
    """The progress of a run.

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
    """One report of several groups of devices, or of several lanes of one group."""
    sums, cache = Counter[str](), CacheBytes()
    seconds, compiling = Counter[str](), Counter[str]()
    for report in reports:
        sums.update(
            useful=report.useful, computed=report.computed, bursts=report.bursts
        )
        seconds.update(report.seconds)
        compiling.update(report.compiling)
        cache = CacheBytes(*map(sum, zip(cache, report.cache, strict=True)))
    return Report(
        sums["useful"],
        sums["computed"],
        sums["bursts"],
        dict(seconds),
        compiling=dict(compiling),
        cache=cache,
    )


def over(report: Report, wall: float, groups: int) -> Report:
    """A report of groups that worked side by side for so many seconds.

    Time before a group starts and after it ends counts as idle.
    """
    seconds = dict(report.seconds)
    uncounted = max(0.0, wall * groups - sum(seconds.values()))
    seconds["idle"] = seconds.get("idle", 0.0) + uncounted
    return report._replace(seconds=seconds, wall=wall, groups=groups)


def in_turn(reports: Iterable[Report]) -> Report:
    """One report of runs of one engine that followed each other.

    Raises:
        ValueError: there are none.
    """
    reports = list(reports)
    last, summed = reports[-1], total(reports)
    return summed._replace(
        programs=sum(report.programs for report in reports),
        compile_seconds=sum(report.compile_seconds for report in reports),
        prefill_bytes=max(report.prefill_bytes for report in reports),
        wall=sum(report.wall for report in reports),
        # Not all runs need have had as many groups: each group's time is counted.
        groups=max(report.groups for report in reports),
        read=sum(report.read for report in reports),
        model_programs=last.model_programs,
        cache=max((report.cache for report in reports), key=lambda cache: cache.held),
        peak_bytes=last.peak_bytes,
    )
