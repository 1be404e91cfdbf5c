"""transformers' ``generate`` on torch: only rollouts, without steps and judgements.

Run by an interpreter with both (``pip install torch transformers``), with a request of
:func:`tsi.experiments.benchmarks.filter_run.request` on standard input, whose ``path``
is a folder. The rollouts of a problem are one batch, which runs until the longest
rollout has ended or reached the limit.
"""

import json
import sys
import time
from importlib.metadata import version
from typing import Any


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Rollouts of every problem, one problem after the other."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    make: Any = AutoModelForCausalLM
    model = make.from_pretrained(request["path"], dtype=torch.float32).eval()
    generated = 0
    start_time, cpu_start_time = time.perf_counter(), time.process_time()
    for prompt in request["prompt_ids"]:
        start = torch.tensor([prompt] * request["particles"])
        with torch.inference_mode():
            output = model.generate(
                start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                temperature=request["temperature"],
                top_k=0,
                top_p=1.0,
                max_new_tokens=request["max_tokens"],
                eos_token_id=request["eos_ids"],
                pad_token_id=request["eos_ids"][0],
            )
        rows = output[:, len(prompt) :].tolist()
        generated += sum(num_written(row, request["eos_ids"]) for row in rows)
    return {
        "seconds": time.perf_counter() - start_time,
        "cpu_seconds": time.process_time() - cpu_start_time,
        "generated_tokens": generated,
        "reward_tokens": 0,
        "versions": {p: version(p) for p in ("torch", "transformers")},
    }


def num_written(row: list[int], eos_ids: list[int]) -> int:
    """Number of tokens up to and including the first end token."""
    ends = [i + 1 for i, token in enumerate(row) if token in eos_ids]
    return ends[0] if ends else len(row)


if __name__ == "__main__":
    # As a script, this file can import its neighbour, but not the package.
    from peer_its_hub import peak_bytes

    found = run(json.load(sys.stdin))
    print(json.dumps({**found, "peak_bytes": peak_bytes()}))
