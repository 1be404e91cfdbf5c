"""Progress of a run: cells done, tokens per second, time left, and a measured forecast.

Time left is estimated from rollouts, since most rollouts of a plan take about as long
as each other. The bar names the methods whose rows are being computed, not the method
whose rollouts they share.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from tsi.engine.meters.report import Totals
from tsi.experiments.plans.methods import get_method
from tsi.experiments.plans.plan import Batch
from tsi.results.result import Result

BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
MAX_LABEL = 40


class Progress:
    """A progress bar on standard error.

    Args:
        batches: of the plan.
        is_done: for each batch, whether all its rows exist.
        visible: whether anything is printed.
        is_length_known: whether the typical length of a solution is known; if not, it
            is measured on the first problems, and the forecast is printed again.
        engine: whose counts are printed at the end; None prints none.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        is_done: Sequence[bool],
        *,
        visible: bool,
        is_length_known: bool = True,
        engine: Any = None,
    ) -> None:
        self._engine = engine
        self._totals: Totals = getattr(engine, "totals", Totals())
        self._num_cells = sum(len(batch.cells) for batch in batches)
        done_batches = [x for x, ok in zip(batches, is_done, strict=True) if ok]
        self._cells_done = sum(len(batch.cells) for batch in done_batches)
        self._tokens, self._rollouts, self._start = 0, 0, time.monotonic()
        self._text, self._waiting = "", 0
        self._is_measured, self._visible = is_length_known, visible
        self._bar = tqdm(
            total=sum(map(num_rollouts, batches)),
            initial=sum(map(num_rollouts, done_batches)),
            bar_format=BAR,
            dynamic_ncols=True,
            smoothing=0.05,
            disable=not visible,
        )

    def begin(self, batch: Batch, num_missing: int) -> None:
        """Show what is computed now.

        Args:
            batch: a call of the engine.
            num_missing: number of its problems that lack a row.
        """
        self._text, self._batch = describe_batch(batch), batch
        self._waiting = num_missing
        num_done = len(batch.problems) - num_missing
        self._cells_done += len(batch.outcomes) * num_done
        # The time that is left follows from what this run itself has computed.
        if self._visible:
            self._bar.n += batch.num_particles * num_done
            self._bar.initial += batch.num_particles * num_done
        self._show()

    def advance(self, results: Sequence[Result]) -> None:
        """Count results of the batch that is computed now."""
        batch, rollouts = self._batch, self._batch.num_particles * len(results)
        self._waiting -= len(results)
        self._cells_done += len(batch.outcomes) * len(results)
        self._tokens += sum(result.ledger.generated_tokens for result in results)
        self._rollouts += rollouts
        self._show()
        self._bar.update(rollouts)
        # Problems that end first tend to have short solutions.
        min_rollouts = batch.num_particles * min(2 * batch.at_once, len(batch.problems))
        if self._tokens and self._rollouts >= min_rollouts and not self._is_measured:
            self._is_measured = True
            self._print_measurement()

    def end(self) -> None:
        """Count the problems of the batch that have failed."""
        self._cells_done += len(self._batch.outcomes) * self._waiting
        self._show()
        self._bar.update(self._batch.num_particles * self._waiting)

    def close(self) -> None:
        """Leave the bar as it is, and say what the engine has done."""
        self._bar.close()
        totals = getattr(self._engine, "totals", None)
        if totals is None or not self._visible:
            return
        run_totals = totals.minus(self._totals)
        if run_totals.computed:
            print(f"tsi: {describe_totals(run_totals)}", file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self) -> None:
        seconds = time.monotonic() - self._start
        speed = f", {self._tokens / seconds:,.0f} tokens/s" if self._tokens else ""
        cells = f"{self._cells_done:,}/{self._num_cells:,} cells"
        self._bar.set_description_str(f"{self._text}: {cells}{speed}", refresh=False)

    def _print_measurement(self) -> None:
        """Print the forecast again, from the rollouts that have ended."""
        total, num_left = self._bar.total, self._bar.total - self._bar.n
        per_rollout = self._tokens / self._rollouts
        if not (num_left and self._visible):
            return
        seconds = (time.monotonic() - self._start) * num_left / self._rollouts
        text = (
            f"measured on the first {self._rollouts:,} rollouts: {per_rollout:,.0f} "
            f"tokens per rollout, so about {per_rollout * total:,.0f} tokens in all, "
            f"and {tqdm.format_interval(seconds)} or less for those that are left, "
            "since this includes compilation"
        )
        tqdm.write(f"tsi: {text}.", file=sys.stderr)


def describe_totals(totals: Totals) -> str:
    """A sentence on tokens, row utilisation and compilation."""
    return (
        f"{totals.useful:,} tokens were written, with a row utilisation of "
        f"{totals.useful / totals.computed:.2f}; {totals.programs:,} programs were "
        f"compiled or read from disk in {totals.compile_seconds:.0f} s."
    )


def num_rollouts(batch: Batch) -> int:
    """Rollouts of a batch."""
    return batch.num_particles * len(batch.problems)


def describe_batch(batch: Batch) -> str:
    """The methods, budget and seed of a batch's rows."""
    labels = [get_method(name).label for name, _ in batch.outcomes]
    names = list(dict.fromkeys(labels))
    text = ", ".join(names)
    if len(text) > MAX_LABEL and len(names) > 1:
        text = f"{names[0]} and {len(names) - 1} more"
    budgets = sorted({budget for _, budget in batch.outcomes})
    numbers = f"{budgets[0]}" if len(budgets) == 1 else f"{budgets[0]}-{budgets[-1]}"
    return f"{text}, N = {numbers}, seed {batch.seed}"
