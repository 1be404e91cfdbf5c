"""Load one model in a new process, and measure time and peak host memory.

``python -m tsi.experiments.benchmarks.loading PATH --dtype float32`` prints one line of
JSON. The peak is of the whole process, with mapped pages of files; ``base_bytes`` is
the peak before loading, after imports and the start of the device.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import tyro

from tsi.experiments.command import exit_code

By = Literal["tsi", "transformers"]


def peak_bytes() -> int:
    """The peak host memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux, ru_maxrss starts at the value of the parent process.
        lines = status.read_text().splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_load(path: Path, dtype: str, by: By) -> dict[str, Any]:
    """Load a model in this process, and return time and memory."""
    if by == "transformers":
        import torch
        import transformers

        base, start_time = peak_bytes(), time.perf_counter()
        make = transformers.AutoModelForCausalLM
        torch_model = make.from_pretrained(path, dtype=getattr(torch, dtype))
        seconds = time.perf_counter() - start_time
        num_bytes = sum(p.numel() * p.element_size() for p in torch_model.parameters())
    else:
        import jax
        from flax import nnx

        from tsi.models.loading.checkpoint import load

        jax.block_until_ready(jax.numpy.zeros(1) + 1)
        base, start_time = peak_bytes(), time.perf_counter()
        model, _ = load(path, dtype=dtype)
        weights = jax.block_until_ready(jax.tree.leaves(nnx.state(model, nnx.Param)))
        seconds = time.perf_counter() - start_time
        num_bytes = sum(leaf.nbytes for leaf in weights)
    return {
        "by": by,
        "dtype": dtype,
        "seconds": seconds,
        "weight_bytes": num_bytes,
        "base_bytes": base,
        "peak_bytes": peak_bytes(),
    }


def measure_load_in_new_process(path: Path, dtype: str, by: By) -> dict[str, Any]:
    """Load a model in a separate process, and return time and memory."""
    module = "tsi.experiments.benchmarks.loading"
    command = [sys.executable, "-m", module, str(path), "--dtype", dtype, "--by", by]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def main(
    path: tyro.conf.Positional[Path], dtype: str = "float32", by: By = "tsi"
) -> None:
    """Load a model and print time and memory.

    Args:
        path: a Hugging Face folder or a GGUF file.
        dtype: of the weights in memory.
        by: whose loader.
    """
    print(json.dumps(measure_load(path, dtype, by)))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
