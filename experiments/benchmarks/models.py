"""Cost of loading models, reading prompts and writing tokens, and that of transformers.

Claim: loading takes at most 1.1 times the weights plus 1 GiB of host memory, and the
speed of reading and writing is close to the machine's ceilings. Cost: about 20 minutes
on 2 cores with the defaults; on a GPU use ``--prompt 1024 --new 128``. Command:
``python -m tsi.experiments.benchmarks.models``. Rows of transformers need the extra
``parity``. Rows are written as they finish; a table has the rows of one run, because
only these are from one state of the machine.
"""

import datetime
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from tsi.experiments.benchmarks.beside_torch import (
    has_torch,
    load_torch,
    measure_torch,
)
from tsi.experiments.benchmarks.ceilings import Ceilings, measure_ceilings
from tsi.experiments.benchmarks.loading import measure_load_in_new_process
from tsi.experiments.benchmarks.model_table import table
from tsi.experiments.benchmarks.throughput import (
    Speed,
    Work,
    ceiling_fractions,
    measure_speed,
    prompts_of,
)
from tsi.experiments.command import exit_code
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import DecoderConfig
from tsi.models.files import check_writable, write_text
from tsi.models.loading.catalogue import location, resolve
from tsi.models.loading.checkpoint import load, save
from tsi.models.rotary import Rope

RANDOM: dict[str, DecoderConfig] = {
    "random-llama-135m": DecoderConfig(  # SmolLM2-135M's shape
        vocab_size=49_152,
        width=576,
        hidden=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_width=64,
        max_length=8192,
        rope=Rope(100_000.0),
    ),
    "random-qwen2-494m": DecoderConfig(  # Qwen2.5-0.5B's shape
        vocab_size=151_936,
        width=896,
        hidden=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_width=64,
        max_length=32_768,
        rope=Rope(1_000_000.0),
        family="qwen2",
        attention_bias=True,
    ),
}
"""Models with random weights, for machines without downloads."""


class Rows:
    """Rows of one run, appended to a file as they finish."""

    def __init__(self, file: AppendOnlyFile, settings: dict[str, Any]):
        self.file, self.settings = file, settings
        self.rows: list[dict[str, Any]] = []

    def add(self, kind: str, **row: Any) -> None:
        """Write a row, with this run's settings."""
        self.rows.append({"kind": kind, **row, **self.settings})
        self.file.append(json.dumps(self.rows[-1]).encode() + b"\n")
        print(json.dumps({"kind": kind, **row}), flush=True)


def folder_of(name: str, scratch: Path) -> tuple[Path, Path]:
    """A model's file or folder, and a folder that transformers can read too."""
    if name not in RANDOM:
        path = resolve(name)
        if path.is_dir():
            return path, path
        model, config = load(path, dtype=jnp.bfloat16)
    else:
        config = RANDOM[name]
        model = LanguageModel(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    folder = scratch / Path(name).stem
    save(model, config, folder)
    return (folder if name in RANDOM else resolve(name)), folder


def measure_model(
    rows: Rows,
    name: str,
    scratch: Path,
    dtype: str,
    works: list[Work],
    ceilings: Ceilings,
) -> None:
    """Add the rows of one model."""
    path, folder = folder_of(name, scratch)
    rows.add(
        "load",
        model=name,
        form=_form(path),
        **measure_load_in_new_process(path, dtype, "tsi"),
    )
    if path != folder:
        row = measure_load_in_new_process(folder, dtype, "tsi")
        rows.add("load", model=name, form=_form(folder), **row)
    if has_torch():
        row = measure_load_in_new_process(folder, dtype, "transformers")
        rows.add("load", model=name, form=_form(folder), **row)
    if not works:
        return
    model, config = load(folder, dtype=dtype)
    assert isinstance(model, LanguageModel)

    def add(by: str, work: Work, speed: Speed) -> None:
        numbers = ceiling_fractions(model, work, speed, ceilings)
        row = work._asdict() | speed._asdict() | numbers
        rows.add("speed", model=name, by=by, dtype=dtype, **row)

    for work in works:
        add("tsi", work, measure_speed(model, work))
    if has_torch():
        torch_model = load_torch(folder, dtype)
        for work in works:
            add(
                "transformers",
                work,
                measure_torch(torch_model, prompts_of(config, work), work),
            )


def _form(path: Path) -> str:
    return "safetensors" if path.is_dir() else "GGUF"


def main(
    models: tuple[str, ...] = ("random-llama-135m",),
    load_only: tuple[str, ...] = ("random-qwen2-494m",),
    out: Path = Path("docs/results/models"),
    batches: tuple[int, ...] = (1, 16, 64),
    prompt: int = 128,
    new: int = 32,
    repeats: int = 3,
    dtype: Literal["float32", "bfloat16", "auto"] = "auto",
    matrix_sizes: tuple[int, ...] = (1024, 2048, 4096),
    array_bytes: int = 2**28,
) -> None:
    """Measure models and write the table.

    Args:
        models: names from `tsi models`, paths, or random-llama-135m and
            random-qwen2-494m; smollm2-135m is added if it has been downloaded.
        load_only: models that are loaded only. They should be large: with a small
            model, the bound's 1 GiB would hide a second copy of the weights.
        out: folder of rows.jsonl and table.md.
        batches: numbers of rows per batch.
        prompt: tokens of each prompt.
        new: tokens written after it; at least 2.
        repeats: number of timed runs; the median is reported.
        dtype: of weights; auto is float32 on a CPU and bfloat16 elsewhere.
        matrix_sizes: sizes of the products that measure the ceiling of arithmetic.
        array_bytes: size of the array that measures the ceiling of memory.
    """
    # The device is shared by two frameworks and the processes that load.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = jax.devices()[0]
    if dtype == "auto":
        dtype = "float32" if device.platform == "cpu" else "bfloat16"
    smollm_path = location("smollm2-135m")
    if (
        "smollm2-135m" not in models
        and smollm_path is not None
        and smollm_path.exists()
    ):
        models = (*models, "smollm2-135m")
    check_writable(out / "table.md")
    settings = {
        "run": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device.device_kind,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    with AppendOnlyFile(out / "rows.jsonl") as file:
        rows = Rows(file, settings)
        ceilings = measure_ceilings(dtype, list(matrix_sizes), array_bytes)
        rows.add("ceilings", dtype=dtype, **ceilings._asdict())
        works = [Work(batch, prompt, new, repeats) for batch in batches]
        for name in (*models, *load_only):
            with tempfile.TemporaryDirectory() as scratch:
                model_works = works if name in models else []
                measure_model(rows, name, Path(scratch), dtype, model_works, ceilings)
    text = table(rows.rows)
    write_text(out / "table.md", text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
