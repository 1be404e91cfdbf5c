"""Tokens per second of llama.cpp in one batch of rows, the peer of ``busy_rows``.

Run by an interpreter with llama-cpp-python (see ``peer_its_hub``), with
``{"path": ..., "rows": ..., "cache": ..., "tokens": ..., "runs": ...}`` on standard
input. Each row is a separate sequence, whose cache is a copy of the first row's. Each
call decodes one token per row and computes its logits. The next token does not depend
on them, so that the time of drawing is not included.
"""

import json
import os
import sys
import time
from typing import Any


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Fill the caches and time the decoding, the best of a few runs."""
    import llama_cpp as api

    threads = request.get("threads") or os.cpu_count()
    rows, cache, tokens = request["rows"], request["cache"], request["tokens"]
    room = -(-(cache + tokens) // 256) * 256
    api.llama_backend_init()
    model = api.llama_model_load_from_file(
        request["path"].encode(), api.llama_model_default_params()
    )
    options = api.llama_context_default_params()
    options.n_ctx, options.n_seq_max = room * rows, rows
    options.n_batch = options.n_ubatch = max(rows, 256)
    options.n_threads = options.n_threads_batch = threads
    options.kv_unified = False
    context = api.llama_init_from_model(model, options)
    memory = api.llama_get_memory(context)
    batch = api.llama_batch_init(max(rows, cache), 0, 1)

    def decode(places: list[tuple[int, int]], *, logits: bool) -> None:
        """Read one token at each (sequence, position)."""
        batch.n_tokens = len(places)
        for i, (sequence, position) in enumerate(places):
            batch.token[i], batch.pos[i] = 100 + position % 1000, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = logits
        code = api.llama_decode(context, batch)
        if code:
            raise RuntimeError(f"llama_decode answered {code}")
        api.llama_synchronize(context)

    decode([(0, position) for position in range(cache)], logits=False)
    for row in range(1, rows):
        api.llama_memory_seq_cp(memory, 0, row, -1, -1)
    seconds = []
    for _ in range(request["runs"] + 1):
        start_time = time.perf_counter()
        for i in range(tokens):
            decode([(row, cache + i) for row in range(rows)], logits=True)
        seconds.append(time.perf_counter() - start_time)
        for row in range(rows):
            api.llama_memory_seq_rm(memory, row, cache, -1)
    return {
        "seconds": min(seconds[1:]),
        "generated_tokens": rows * tokens,
        "versions": {"llama_cpp_python": api.__version__},
    }


if __name__ == "__main__":
    # As a script, this file can import its neighbour, but not the package.
    from peer_its_hub import peak_bytes

    found = run(json.load(sys.stdin))
    print(json.dumps({**found, "peak_bytes": peak_bytes()}))
