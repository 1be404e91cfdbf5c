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
    def num_bytes(self) -> int:
        """Bytes of all blocks that at least one row reads."""
        return self.shared + self.private


class Totals(NamedTuple):
    """Counts of all runs of an engine so far; fields as in :class:`Report`."""

    useful: int = 0
    computed: int = 0
    programs: int = 0
    compile_seconds: float = 0.0

    def plus(self, run: "Totals | Report") -> "Totals":
        """With the counts of another run."""
        return Totals(
            self.useful + run.useful,
            self.computed + run.computed,
            self.programs + run.programs,
            self.compile_seconds + run.compile_seconds,
        )

    def minus(self, earlier: "Totals") -> "Totals":
        """Without the counts of earlier runs."""
        return Totals(
            self.useful - earlier.useful,
            self.computed - earlier.computed,
            self.programs - earlier.programs,
            self.compile_seconds - earlier.compile_seconds,
        )


class Report(NamedTuple):
    """Measurements of one run of the engine.

    Attributes:
        useful: tokens that rows have written, including those lost when memory ran out.
        computed: tokens that were computed for all slots, in use or not.
        bursts: number of bursts.
        seconds: seconds of each of :data:`tsi.engine.meters.clock.PARTS`, summed over
            groups of devices that work in parallel. In an exact run, the time of a
            program is counted from its call to its last result, and all other time is
            "host". In other runs, the parts are phases of the host. Compilation is a
            separate part in both cases.
        programs: number of programs that were compiled, or read from disk, during the
            run.
        compile_seconds: seconds that the process spent on that, without tracing.
        compiling: seconds of "compile" by the part that they interrupted.
        wall: elapsed seconds.
        groups: number of groups of devices; the seconds of all parts sum to `wall`
            times this number.
        read: tokens that the reward has read, for problems that have a result.
        model_programs: number of the engine's compiled model programs so far, by part.
        cache: sum over groups of the peak of each.
        prefill_bytes: upper bound of the peak memory for reading prompts, in addition
            to the weights (:func:`tsi.models.prefill.prefill_bytes`).
        peak_bytes: peak memory of a device of the run since the process began; on a CPU
            that of the process.
        weight_transfers: how often a model was copied to a device, if weights are
            offloaded.
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
    weight_transfers: int = 0

    @property
    def utilisation(self) -> float:
        """Fraction of computed tokens that were useful; NaN if none was computed."""
        return self.useful / self.computed if self.computed else math.nan

    def parts(self) -> dict[str, float]:
        """Seconds of each part, averaged over groups; they sum to `wall`."""
        return {part: spent / self.groups for part, spent in self.seconds.items()}


class Progress(NamedTuple):
    """The progress of a run.

    Attributes:
        ended: number of problems that have ended.
        problems: number of all problems.
        generated_tokens: tokens generated so far, for all problems.
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
            useful=report.useful,
            computed=report.computed,
            bursts=report.bursts,
            weight_transfers=report.weight_transfers,
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
        weight_transfers=sums["weight_transfers"],
    )


def report_of_groups(report: Report, wall: float, groups: int) -> Report:
    """A report of groups that worked in parallel for a number of seconds.

    Time before a group starts and after it ends counts as idle.
    """
    seconds = dict(report.seconds)
    uncounted = max(0.0, wall * groups - sum(seconds.values()))
    seconds["idle"] = seconds.get("idle", 0.0) + uncounted
    return report._replace(seconds=seconds, wall=wall, groups=groups)


def report_of_runs(reports: Iterable[Report]) -> Report:
    """One report of several runs of one engine, one after the other.

    Args:
        reports: of the runs, at least one.
    """
    reports = list(reports)
    last, summed = reports[-1], total(reports)
    return summed._replace(
        programs=sum(report.programs for report in reports),
        compile_seconds=sum(report.compile_seconds for report in reports),
        prefill_bytes=max(report.prefill_bytes for report in reports),
        wall=sum(report.wall for report in reports),
        # Runs may have different numbers of groups, so each group's time is counted.
        groups=max(report.groups for report in reports),
        read=sum(report.read for report in reports),
        model_programs=last.model_programs,
        cache=max(
            (report.cache for report in reports), key=lambda cache: cache.num_bytes
        ),
        peak_bytes=last.peak_bytes,
    )
