"""The table of measurements over a server."""

from collections.abc import Sequence
from typing import Any

HEADER = (
    "method",
    "reward",
    "N",
    "by",
    "tokens/s",
    "relative to its_hub",
    "requests per step",
    "read per generated token",
    "by the reward",
    "client ms per step (HTTP)",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: sums over repetitions."""
    lines = [line(HEADER), line("---" for _ in HEADER)]
    cells = list(dict.fromkeys(map(cell_of, rows)))
    for *cell, by in cells:
        tsi_sums, peer_sums = sums(rows, *cell, by), sums(rows, *cell, "its_hub")
        ratio = rate(tsi_sums) / rate(peer_sums) if peer_sums else None
        turns = tsi_sums["turns"]
        lines.append(
            line(
                (
                    *cell,
                    by,
                    f"{rate(tsi_sums):.1f}",
                    "" if ratio is None else f"{ratio:.2f}",
                    f"{tsi_sums['requests'] / turns:.1f}",
                    f"{tsi_sums['prompt_tokens'] / tsi_sums['generated_tokens']:.3f}",
                    f"{tsi_sums['reward_tokens'] / tsi_sums['generated_tokens']:.3f}",
                    f"{1e3 * tsi_sums['client_seconds'] / turns:.1f}",
                )
            )
        )
    return "\n".join(lines)


def cell_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What measurements have in common whose numbers are added up."""
    return row["method"], row["reward"], row["particles"], row["by"]


def sums(rows: Sequence[dict[str, Any]], *cell: Any) -> dict[str, float]:
    """Numbers of one cell, added up; empty without rows."""
    rows_of_cell = [row for row in rows if cell_of(row) == cell]
    if not rows_of_cell:
        return {}
    names = [
        name for name, value in rows_of_cell[0].items() if type(value) in (int, float)
    ]
    return {name: sum(row[name] for row in rows_of_cell) for name in names}


def rate(cell: dict[str, float]) -> float:
    """Generated tokens per second."""
    return cell["generated_tokens"] / cell["seconds"]


def line(cells: Any) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"
