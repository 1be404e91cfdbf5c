"""The benchmark of models on a model of no size: every row, and what rows say."""

import json

import jax
import numpy as np
import pytest
from conftest import resident_bytes
from flax import nnx
from small_checkpoints import saved, small_config, small_model

from tsi.experiments.benchmarks import models
from tsi.experiments.benchmarks.ceilings import Ceilings, measure_ceilings, seconds_of
from tsi.experiments.benchmarks.loading import (
    measure_load,
    measure_load_in_new_process,
    peak_bytes,
)
from tsi.experiments.benchmarks.throughput import Speed, Work, ceiling_fractions


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Nothing fetched, no torch, no processes."""
    monkeypatch.setenv("TSI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "has_torch", lambda: False)
    monkeypatch.setattr(models, "measure_load_in_new_process", measure_load)
    return tmp_path


def measured(folder, out):
    models.main(
        models=(str(folder),),
        load_only=(f"{folder}/.",),
        out=out,
        batches=(1, 2),
        prompt=8,
        new=4,
        repeats=1,
        matrix_sizes=(64,),
        array_bytes=2**16,
    )
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_row_for_each_measurement_and_a_table_of_the_last_run(alone):
    folder = saved(alone / "model", small_config())
    rows = measured(folder, alone / "out")
    kinds = [(row["kind"], row.get("batch")) for row in rows]
    assert kinds == [
        ("ceilings", None),
        ("load", None),
        ("speed", 1),
        ("speed", 2),
        ("load", None),
    ]
    text = (alone / "out" / "table.md").read_text()
    assert text.count(f"| {folder}") == 4
    (alone / "out" / "table.md").unlink()
    again = measured(folder, alone / "out")
    assert again[:5] == rows
    assert len(again) == 10
    assert (alone / "out" / "table.md").read_text().count(f"| {folder}") == 4


def test_loading_counts_the_weights_in_their_final_type(tmp_path):
    config = small_config()
    folder = saved(tmp_path, config)
    weights = jax.tree.leaves(nnx.state(small_model(config), nnx.Param))
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        row = measure_load(folder, dtype, "tsi")
        assert row["weight_bytes"] == size * sum(leaf.size for leaf in weights)
        assert row["seconds"] > 0


def test_the_peak_is_of_the_process_that_loads_and_not_of_its_parent(tmp_path):
    # A process of the suite holds a part of a GiB already, and needs no more than that.
    held = np.ones(max(1, 2**30 + 2**26 - resident_bytes()), np.uint8)
    assert peak_bytes() > 2**30
    row = measure_load_in_new_process(saved(tmp_path, small_config()), "float32", "tsi")
    del held
    assert 2**25 < row["base_bytes"] <= row["peak_bytes"] < 2**30


@pytest.mark.parametrize("tied", [True, False])
def test_fractions_count_the_arithmetic_and_the_memory_of_the_work(tied):
    config = small_config(tied=tied)
    model = small_model(config)
    work, speed = Work(batch=3, prompt=10, new=4, repeats=1), Speed(2.0, 0.5)
    found = ceiling_fractions(model, work, speed, Ceilings(1e6, 1e5))
    assert found["prefill_tokens_per_s"] == 15.0
    assert found["decode_tokens_per_s"] == 24.0
    # By hand: queries and outputs 32 x 32, keys and values 32 x 16, three of 32 x 48.
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    norms, head = 7 * 32, 40 * 32
    read = 30 * 2 * (3 * block + 3 * 2 * 32 * 5)
    assert found["prefill_of_flops"] == pytest.approx(read / 2.0 / 1e6)
    written = 12 * 2 * (3 * block + 3 * 2 * 32 * 12 + head)
    assert found["decode_of_flops"] == pytest.approx(written / 0.5 / 1e6)
    cache = 3 * 12 * 3 * 2 * 2 * 8
    moved = 4 * 4 * (3 * block + norms + head + cache)
    assert found["decode_of_bandwidth"] == pytest.approx(moved / 0.5 / 1e5)


def test_ceilings_are_of_what_was_run():
    best = measure_ceilings("float32", [256], 2**22)
    assert 1e8 < best.flops < 1e16
    assert 1e8 < best.bandwidth < 1e14
    calls = []
    assert len(seconds_of(lambda: calls.append(1), 3)) == 3
    assert len(calls) == 4
