"""The rows of one run of :mod:`tsi.experiments.benchmarks.models` as tables."""

from typing import Any

from tsi.experiments.reports.report import markdown

GIB = 2**30


def table(rows: list[dict[str, Any]]) -> str:
    """The machine's ceilings, then loading, then speed."""
    ceilings = next(row for row in rows if row["kind"] == "ceilings")
    return "\n\n".join(
        [
            f"{ceilings['device']} ({ceilings['machine']}), {ceilings['run'][:10]}: "
            f"{ceilings['flops'] / 1e9:,.0f} GFLOP/s in matrix products and "
            f"{ceilings['bandwidth'] / 1e9:,.1f} GB/s of memory, {ceilings['dtype']}, "
            "measured in the same run.",
            "Loading in a new process. Base and peak are the process's peak host "
            "memory before and after loading. The bound is 1.1 times the weights plus "
            "1 GiB.",
            _loading_table([row for row in rows if row["kind"] == "load"]),
            "Tokens per second of whole batches, as fractions of the ceilings too: of "
            "arithmetic for reading prompts, and of arithmetic and memory for writing "
            "tokens.",
            _speed_table([row for row in rows if row["kind"] == "speed"]),
        ]
    )


def _loading_table(rows: list[dict[str, Any]]) -> str:
    head = ["model", "form", "by", "weights GiB", "s", "s per GiB"]
    lines = [[*head, "base GiB", "peak GiB", "bound GiB", "kept"]]
    for row in rows:
        weights, peak = row["weight_bytes"] / GIB, row["peak_bytes"] / GIB
        bound = 1.1 * weights + 1
        lines.append(
            [
                row["model"],
                row["form"],
                row["by"],
                f"{weights:.3f}",
                f"{row['seconds']:.2f}",
                f"{row['seconds'] / weights:.2f}",
                f"{row['base_bytes'] / GIB:.2f}",
                f"{peak:.2f}",
                f"{bound:.2f}",
                "yes" if peak <= bound else "NO",
            ]
        )
    return markdown(lines)


def _speed_table(rows: list[dict[str, Any]]) -> str:
    head = ["model", "by", "batch", "prompt", "new", "read tok/s", "% FLOP/s"]
    lines = [[*head, "written tok/s", "% FLOP/s", "% GB/s"]]
    for row in rows:
        lines.append(
            [
                row["model"],
                row["by"],
                str(row["batch"]),
                str(row["prompt"]),
                str(row["new"]),
                f"{row['prefill_tokens_per_s']:,.0f}",
                f"{100 * row['prefill_of_flops']:.0f}",
                f"{row['decode_tokens_per_s']:,.0f}",
                f"{100 * row['decode_of_flops']:.0f}",
                f"{100 * row['decode_of_bandwidth']:.0f}",
            ]
        )
    return markdown(lines)
