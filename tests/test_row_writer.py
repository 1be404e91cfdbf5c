"""Rows are written on another thread; its errors surface, and nothing given is lost."""

import time

import pytest

from tsi.errors import ResultsError
from tsi.experiments.plans.plan import Batch
from tsi.experiments.rows.row_writer import BackgroundWriter, RowWriter


class Failing(RowWriter):
    """A writer that fails at its second batch, as on a full disk."""

    def __init__(self):
        self.written = []

    def write(self, batch, results, missing):
        time.sleep(0.05)
        if batch.seed == 2:
            raise ResultsError("the disk is full")
        self.written.append(batch.seed)


def write_batches(writer, seeds, error=None):
    with BackgroundWriter(writer) as file:
        for seed in seeds:
            file.write(Batch("smc", 1, seed, [], []), [], set())
        if error is not None:
            raise error


def test_an_error_of_the_writer_surfaces_and_the_next_batch_is_written_too():
    writer = Failing()
    with pytest.raises(ResultsError, match="full"):
        write_batches(writer, range(1, 6))
    assert writer.written == [1, 3]
    with pytest.raises(ResultsError, match="full"):
        write_batches(writer, [2])


def test_what_was_given_is_written_before_an_interruption_ends_the_run():
    writer = Failing()
    with pytest.raises(KeyboardInterrupt):
        write_batches(writer, [7], KeyboardInterrupt())
    assert writer.written == [7]
