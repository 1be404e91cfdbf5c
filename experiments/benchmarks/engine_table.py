"""Rows of :mod:`tsi.experiments.benchmarks.engine` as tables."""

import statistics
from collections.abc import Sequence
from typing import Any

from tsi.experiments.reports.report import markdown

GIB = 2**30
NAMES = {
    "cold": "tsi, cold",
    "warm": "tsi, warm",
    "its_hub": "its_hub over llama.cpp",
    "transformers": "transformers' generate alone",
}
Row = dict[str, Any]


def table(rows: Sequence[Row], facts: dict[str, Any], label: str) -> str:
    """Tables of the filter and its peers, of busy rows, and of known step lengths."""
    busy = [row for row in rows if row["what"] == "rows"]
    runs = [row for row in rows if row["what"] == "filter"]
    versions = ("jax", "its_hub", "llama_cpp_python", "torch", "transformers")
    parts = [
        f"{facts['processor']} ({facts['machine']}, {facts['cores']} cores, "
        f"{facts['memory_bytes'] / GIB:.0f} GiB), {label}: "
        + ", ".join(f"{name} {facts[name]}" for name in versions if name in facts)
        + "."
    ]
    if runs:
        parts += [
            "The paper's particle filter. Generated tokens include those that "
            "resampling discarded; reward tokens are those read to judge. Numbers are "
            "medians of the runs; load is that of the machine before the first run. "
            "Ratios are to its_hub at the largest measured N that is not larger, and "
            "to this package's rate with all rows busy, at the largest measured number "
            "of rows that does not exceed N times the problems.",
            filter_table(runs, busy),
        ]
    if busy:
        parts += [
            f"Tokens per second with all rows busy and {busy[0]['work']['cache']} "
            "filled positions in each row's cache. The ceiling is the machine's, for "
            "arithmetic or for memory, whichever is lower.",
            busy_table(busy),
        ]
    for row in rows:
        if row["what"] == "law":
            law, weights = row["work"], row.get("num_weights")
            model = (
                ""
                if weights is None
                else f", with a model of {weights / 1e6:.0f} million weights"
            )
            parts.append(
                f"Known step lengths (log-normal, mean {law['mean']:.0f}, sigma "
                f"{law['sigma']:.0f}, cut at {law['cut']}), {law['problems']} problems "
                f"of {law['particles']} particles and {law['steps']} steps{model}: "
                f"{format_number(row['seconds'], 1)} s for "
                f"{format_number(row['generated_tokens'], 0)} tokens; utilisation "
                f"{format_number(row.get('utilisation'), 2)}."
            )
    return "\n\n".join(parts)


def rate(row: Row) -> float:
    """Generated tokens per second of the whole run."""
    return row["generated_tokens"] / row["seconds"]


def median(rows: Sequence[Row], name: str) -> float | None:
    """Median of a field that rows may lack."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return float(statistics.median(values)) if values else None


def _per_token(row: Row) -> Row:
    read = row["reward_tokens"] / row["generated_tokens"]
    return {"read": read or None}


def group_repeats(rows: Sequence[Row]) -> dict[tuple[int, str], list[Row]]:
    """Group the repeats of a measurement, sorted by size."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["size"]):
        groups.setdefault((row["size"], row["by"]), []).append(row)
    return groups


def rate_below(rows: Sequence[Row], by: str, size: int) -> float | None:
    """Median rate of a program at its largest size that is at most `size`."""
    groups = group_repeats(
        [row for row in rows if row["by"] == by and row["size"] <= size]
    )
    return statistics.median(map(rate, [*groups.values()][-1])) if groups else None


def filter_table(rows: Sequence[Row], busy: Sequence[Row]) -> str:
    """One line for each N and program."""
    head = ["program", "N", "problems", "runs", "s", "tokens", "tokens/s", "x its_hub"]
    head += [
        "of busy",
        "reward per token",
        "peak GiB",
        "utilisation",
        "compile s",
        "programs",
    ]
    lines = [[*head, "load"]]
    for (size, by), group in group_repeats(rows).items():
        speed, problems = (
            statistics.median(map(rate, group)),
            group[0]["work"]["problems"],
        )
        peer_rate = rate_below(rows, "its_hub", size)
        busy_rate = rate_below(busy, "tsi", size * problems)
        read = median([_per_token(row) for row in group], "read")
        peak = median(group, "peak_bytes")
        lines.append(
            [
                NAMES.get(by, by),
                str(size),
                str(problems),
                str(len(group)),
                format_number(median(group, "seconds"), 1),
                format_number(median(group, "generated_tokens"), 0),
                format_number(speed, 1),
                format_number(speed / peer_rate if peer_rate else None, 2),
                format_number(
                    speed / busy_rate if busy_rate and by in ("cold", "warm") else None,
                    2,
                ),
                format_number(read, 2),
                format_number(peak / GIB if peak else None, 2),
                format_number(median(group, "utilisation"), 2),
                format_number(median(group, "compile_seconds"), 1),
                format_number(median(group, "programs"), 0),
                format_number(group[0]["load"], 1),
            ]
        )
    return markdown(lines)


def busy_table(rows: Sequence[Row]) -> str:
    """One line for each number of rows, one column for each program."""
    groups = group_repeats(rows)
    programs = list(dict.fromkeys(by for _, by in groups))
    lines = [["rows", *(f"{NAMES.get(by, by)} tokens/s" for by in programs)]]
    lines[0] += [f"{NAMES.get(by, by)} GiB" for by in programs]
    lines[0] += ["ceiling", "tsi of ceiling"]
    for size in dict.fromkeys(size for size, _ in groups):
        repeats = [groups.get((size, by), []) for by in programs]
        speeds = [statistics.median(map(rate, g)) if g else None for g in repeats]
        peaks = [median(g, "peak_bytes") for g in repeats]
        own = groups.get((size, "tsi"), [])
        ceiling = median(own, "ceiling")
        lines.append(
            [
                str(size),
                *(format_number(speed, 0) for speed in speeds),
                *(format_number(p / GIB if p else None, 2) for p in peaks),
                format_number(ceiling, 0),
                format_number(
                    statistics.median(map(rate, own)) / ceiling if ceiling else None, 2
                ),
            ]
        )
    return markdown(lines)


def format_number(value: float | int | None, digits: int) -> str:
    """A formatted number, or a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"
