"""Upper bounds on the speed of accelerators, from data sheets; nothing is measured.

``python -m tsi.experiments.benchmarks.roofline`` prints the table of
``docs/accelerators.md``: a policy and a reward model of 7 billion weights each, both on
every group of chips, with the paper's limits (arXiv 2502.01618: 64 particles, 40 steps,
2,048 tokens). The time of a program is the larger of bytes over memory bandwidth and
FLOPs over peak speed.
"""

import sys
from typing import NamedTuple

import numpy as np

from tsi.experiments.command import exit_code
from tsi.experiments.reports.report import markdown
from tsi.models.decoder_config import DecoderConfig

QWEN_7B = DecoderConfig(
    vocab_size=152_064,
    width=3584,
    hidden=18_944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_width=128,
    max_length=4096,
    tied=False,
    attention_bias=True,
)
"""The shape of Qwen2.5-Math-7B and of the reward model based on it."""
ITEM = 2
"""Bytes per number, for weights, keys and values in bfloat16."""


class Chips(NamedTuple):
    """Groups of chips; each group holds both models.

    Attributes:
        name: in the table.
        size: chips per group; weights and heads are divided among them.
        groups: number of groups; the problems are divided among them.
        memory: bytes of one chip.
        bandwidth: bytes per second of its memory.
        flops: per second, at its peak in bfloat16.
        link: bytes per second between it and the others of its group.
    """

    name: str
    size: int
    groups: int
    memory: float
    bandwidth: float
    flops: float
    link: float


CHIPS = (
    Chips("H100 SXM, one", 1, 1, 80e9, 3.35e12, 989e12, 450e9),
    Chips("TPU v5e, 64 as 16 groups of 4", 4, 16, 16e9, 0.819e12, 197e12, 200e9),
)
"""Numbers from NVIDIA's and Google's data sheets."""


class Work(NamedTuple):
    """What is run.

    Attributes:
        past: mean number of positions that a token attends to: a prompt of 200 tokens
            and half of a solution of 1,000.
        longest: largest number of positions of a row.
        step: tokens per step; 39 for SmolLM2 in the paper's filter, 60 in ``step_law``.
        busy: share of the computed tokens that is used.
        particles, steps: per problem.
    """

    past: float = 700.0
    longest: int = 2048
    step: int = 60
    busy: float = 0.85
    particles: int = 64
    steps: int = 17


class Bound(NamedTuple):
    """Upper bounds for a group, or all groups, with a number of rows."""

    rows: int
    token: float
    read: float
    written: float
    problems: float
    bound: str


def num_weights(config: DecoderConfig) -> float:
    """Number of weights that are multiplied for every token."""
    return config.flops_per_token(0.0) / 2


def position_bytes(config: DecoderConfig) -> int:
    """Bytes of the keys and values of one position."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_width * ITEM


def max_rows(chips: Chips, config: DecoderConfig, work: Work) -> int:
    """Rows of full length whose caches of both models fit after the weights."""
    weights = config.vocab_size * config.width + num_weights(config)
    free_bytes = 0.9 * chips.size * chips.memory - 2 * ITEM * weights
    return int(free_bytes // (2 * work.longest * position_bytes(config)))


def bound(chips: Chips, config: DecoderConfig, work: Work, rows: int) -> Bound:
    """Seconds to write and to read one token of all rows, and the resulting rates.

    Args:
        chips: one group, and how many.
        config: of both models.
        work: what is run.
        rows: number of rows that write together on one group.
    """
    n = chips.size
    weights = num_weights(config)
    bytes_moved = (ITEM * weights + rows * work.past * position_bytes(config)) / n
    products = rows * config.flops_per_token(work.past) / n
    # Two sums over the group per layer; each sends and receives its data about once.
    sums = 4 * config.num_layers * rows * config.width * ITEM * (n - 1) / n
    times = {
        "memory": bytes_moved / chips.bandwidth,
        "products": products / chips.flops,
        "links": sums / chips.link,
    }
    token = max(times["memory"], times["products"]) + times["links"]
    # A reward reads whole steps of many rows at once, so arithmetic limits it.
    read = rows * config.flops_per_token(work.past, head=False) / n / chips.flops
    read += sums / chips.link
    written = chips.groups * rows * work.busy / (token + read)
    per_problem = work.particles * work.steps * work.step
    limit = max(times, key=lambda name: times[name])
    return Bound(rows, token, read, written, 3600 * written / per_problem, limit)


def table(config: DecoderConfig = QWEN_7B, work: Work = Work()) -> str:  # noqa: B008
    """The table, in Markdown."""
    lines = [
        [
            "chips",
            "rows per group",
            "ms per token of all rows",
            "limited by",
            "ms to read one more",
            "tokens/s written",
            "steps/s",
            "problems/h",
        ]
    ]
    for chips in CHIPS:
        limit = max_rows(chips, config, work)
        for rows in sorted({16, 64, *np.minimum([256], limit).tolist()}):
            estimate = bound(chips, config, work, rows)
            lines.append(
                [
                    chips.name,
                    f"{rows}",
                    f"{1e3 * estimate.token:.1f}",
                    estimate.bound,
                    f"{1e3 * estimate.read:.2f}",
                    f"{estimate.written:,.0f}",
                    f"{estimate.written / work.step:,.0f}",
                    f"{estimate.problems:,.0f}",
                ]
            )
    return markdown(lines)


def main() -> None:
    """Print the table and how many rows fit."""
    work = Work()
    print(table(QWEN_7B, work))
    for chips in CHIPS:
        limit = max_rows(chips, QWEN_7B, work)
        print(f"{chips.name}: {limit} rows of {work.longest:,} positions fit a group.")


if __name__ == "__main__":
    sys.exit(exit_code(main))
