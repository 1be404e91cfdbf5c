"""The same measurements with transformers on torch, on the same machine."""

import importlib.util
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from tsi.experiments.benchmarks.ceilings import seconds_of
from tsi.experiments.benchmarks.throughput import Speed, Work


def has_torch() -> bool:
    """Whether the extra ``parity`` is installed."""
    return importlib.util.find_spec("torch") is not None


def load_torch(folder: Path, dtype: str) -> Any:
    """A causal language model on torch's accelerator, if it has one."""
    import torch
    import transformers

    make: Any = transformers.AutoModelForCausalLM
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return make.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()


def measure_torch(model: Any, prompts: np.ndarray, work: Work) -> Speed:
    """Time the reading of prompts and the drawing of tokens one by one after them."""
    import torch

    start = torch.tensor(prompts, dtype=torch.long, device=model.device)

    def read(tokens: Any, cache: Any = None) -> Any:
        return model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def wait() -> None:
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    def prefill() -> None:
        read(start)
        wait()

    def prefill_and_decode() -> None:
        out = read(start)
        for i in range(work.new):
            p = torch.softmax(out.logits[:, -1].float(), -1)
            token = torch.multinomial(p, 1)
            if i + 1 < work.new:
                out = read(token, out.past_key_values)
        wait()

    with torch.inference_mode():
        read_seconds = statistics.median(seconds_of(prefill, work.repeats))
        total_seconds = statistics.median(seconds_of(prefill_and_decode, work.repeats))
    # The first token comes with the prompt; tsi draws it with the others.
    write_seconds = (total_seconds - read_seconds) * work.new / (work.new - 1)
    return Speed(read_seconds, write_seconds)
