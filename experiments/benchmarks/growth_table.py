"""How time and memory grow with N, with the length of solutions and of prompts.

``python -m tsi.experiments.benchmarks.growth_table`` runs
:mod:`tsi.experiments.benchmarks.growth` in a process per size and writes rows and a
table, with slopes: the least-squares slope of the logarithm of a number against the
logarithm of the size, over the upper half of the sizes, where what is constant matters
least. A slope of 1 is proportional. Rows are kept as they finish, and the same command
resumes.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float

from tsi.experiments.benchmarks import growth
from tsi.experiments.benchmarks.engine import (
    command_arguments,
    compilation_environment,
    run_process,
)
from tsi.experiments.benchmarks.engine_table import format_number
from tsi.experiments.command import exit_code, exit_resumably
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.reports.report import markdown
from tsi.experiments.worlds.provenance import commit
from tsi.models.files import check_writable, write_text

MIB = 2**20
Row = dict[str, Any]
HEADER = ["s", "tokens", "tokens/s", "caches MiB", "without sharing MiB", "prompt MiB"]
SLOPES = ("seconds", "generated_tokens", None, "held_bytes", "unshared_bytes", None)
"""The number of each column that has a slope."""


class Sizes(NamedTuple):
    """Sizes of each sweep; everything else is as in :class:`growth.Growth`.

    Attributes:
        particles: numbers N of particles of the filter.
        tokens: lengths of solutions.
        prompts: lengths of prompts.
        explorers: N of each explorer.
        explorer_tokens: length of an explorer's solutions.
    """

    particles: tuple[int, ...] = (1, 4, 16, 64, 256)
    tokens: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    prompts: tuple[int, ...] = (16, 64, 256, 1024, 4096)
    explorers: int = 64
    explorer_tokens: int = 256

    def sweeps(self) -> dict[str, list[growth.Growth]]:
        """The runs of each table, by the name of what grows."""
        base, explorer = growth.Growth(), growth.Growth(tokens=self.explorer_tokens)
        names = [name for name in growth.SAMPLERS if name != base.sampler]
        return {
            "particles": [base._replace(particles=n) for n in self.particles],
            "tokens": [base._replace(tokens=t) for t in self.tokens],
            "prompt": [base._replace(prompt=p) for p in self.prompts],
            "sampler": [
                explorer._replace(sampler=name, particles=self.explorers)
                for name in names
            ],
        }


TITLES = {
    "particles": "Particles N of the particle filter",
    "tokens": "Tokens of a solution of the particle filter",
    "prompt": "Tokens of the prompt of the particle filter",
    "sampler": "Explorers",
}


def slope(
    sizes: Float[np.ndarray, " K"], numbers: Float[np.ndarray, " K"]
) -> float | None:
    """Slope of log number against log size over the upper half of the sizes.

    Returns:
        None with fewer than two sizes, or where a number is not positive.
    """
    upper = slice(len(sizes) // 2, None)
    x, y = sizes[upper], numbers[upper]
    if len(x) < 2 or (y <= 0).any():
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def sweep_table(name: str, rows: Sequence[Row]) -> str:
    """One line per size, and a line of slopes where sizes are numbers."""
    lines = [[name, *HEADER]]
    for row in rows:
        seconds, tokens = row["seconds"], row["generated_tokens"]
        lines.append(
            [
                str(row["work"][name]),
                format_number(seconds, 2),
                format_number(tokens, 0),
                format_number(tokens / seconds, 0),
                format_number(row["held_bytes"] / MIB, 1),
                format_number(row["unshared_bytes"] / MIB, 1),
                format_number(row["prefill_bytes"] / MIB, 1),
            ]
        )
    if name != "sampler":
        sizes = np.array([row["work"][name] for row in rows], float)
        cells = [
            format_number(slope(sizes, np.array([row[n] for row in rows], float)), 2)
            if n
            else ""
            for n in SLOPES
        ]
        lines.append(["slope", *cells])
    return markdown(lines)


def table(rows: Sequence[Row]) -> str:
    """A table for each sweep that has rows."""
    parts = []
    for name, title in TITLES.items():
        rows_of_sweep = [row for row in rows if row["sweep"] == name]
        if rows_of_sweep:
            work = {**rows_of_sweep[0]["work"]}
            del work[name]
            if name != "sampler":
                del work["sampler"]
            settings = ", ".join(
                f"{key.replace('_', ' ')} {value}" for key, value in work.items()
            )
            parts += [f"**{title}** ({settings})", sweep_table(name, rows_of_sweep)]
    return "\n\n".join(parts)


@exit_resumably()
def main(
    sizes: tyro.conf.OmitArgPrefixes[Sizes] = Sizes(),  # noqa: B008
    out: Path = Path("docs/results/engine"),
    label: str | None = None,
) -> int:
    """Measure all sizes and write growth.jsonl and growth.md; can be resumed.

    Args:
        sizes: what to measure.
        out: folder of the files.
        label: of the rows, by default the commit; rows with other labels are ignored.
    """
    check_writable(out / "growth.md")
    label = label or commit() or metadata.version("tsi")
    with (
        AppendOnlyFile(out / "growth.jsonl") as file,
        tempfile.TemporaryDirectory() as scratch,
    ):
        rows_by_key = {row["key"]: row for row in map(json.loads, file.lines())}
        rows: list[Row] = []
        for sweep, runs in sizes.sweeps().items():
            for work in runs:
                key = json.dumps([label, sweep, *work])
                if key not in rows_by_key:
                    command = [sys.executable, "-m", growth.__name__]
                    command += command_arguments(work._asdict())
                    numbers = run_process(
                        command, "", compilation_environment(Path(scratch))
                    )
                    rows_by_key[key] = {
                        "key": key,
                        "sweep": sweep,
                        "work": work._asdict(),
                        **numbers,
                    }
                    file.append(json.dumps(rows_by_key[key]).encode() + b"\n")
                    print(json.dumps(rows_by_key[key]), flush=True)
                rows.append(rows_by_key[key])
                write_text(out / "growth.md", table(rows) + "\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
