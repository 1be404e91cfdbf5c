"""Tokens per second of a policy if every row is busy, an upper bound for any scheduler.

``python -m tsi.experiments.benchmarks.busy_rows --rows 64`` prints one line of JSON.
Rows have separate caches of one length and draw tokens in one compiled loop, without
resampling, rewards or waiting. ``ceiling`` is the rate at which the device would do
only the arithmetic, or only read weights and caches, whichever takes longer
(:mod:`tsi.experiments.benchmarks.ceilings`).
"""

import json
import sys
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jaxtyping import Array, Int, Key

from tsi.decoding.categorical import categorical
from tsi.experiments.benchmarks.ceilings import Ceilings, measure_ceilings
from tsi.experiments.benchmarks.loading import peak_bytes
from tsi.experiments.command import exit_code
from tsi.loading.model_checks import load_model
from tsi.models.attention import Segment
from tsi.models.decoder import KeyValues, LanguageModel
from tsi.models.loading.download import get


class BusyRows(NamedTuple):
    """Rows, filled positions of each row's cache, and tokens per loop."""

    model: str = "smollm2-135m"
    rows: int = 64
    cache: int = 256
    tokens: int = 16
    runs: int = 3


def make_context(policy: LanguageModel, busy: BusyRows) -> Segment:
    """A cache with arbitrary content."""
    keys, values, _ = empty_cache(policy, busy.rows, busy.cache)
    places = jnp.broadcast_to(jnp.arange(busy.cache), (busy.rows, busy.cache))
    return Segment(keys + 0.01, values + 0.01, places, jnp.ones(places.shape, bool))


def empty_cache(policy: LanguageModel, rows: int, width: int) -> KeyValues:
    """Zeros in the layout of keys and values."""
    config, dtype = policy.config, policy.trunk.cache_dtype
    shape = (config.num_layers, rows, config.num_kv_heads)
    return KeyValues(
        jnp.zeros((*shape, config.head_width, width), dtype),
        jnp.zeros((*shape, width, config.head_width), dtype),
        jnp.zeros((rows, width), jnp.int32),
    )


@partial(jax.jit, static_argnames="busy")
def draw(
    policy: LanguageModel, context: Segment, key: Key[Array, ""], busy: BusyRows
) -> Int[Array, " R"]:
    """The newest token of each row after a loop over ``busy.tokens``."""
    new = empty_cache(policy, busy.rows, busy.tokens)

    def write_token(
        i: Int[Array, ""], carry: tuple[Int[Array, " R"], KeyValues]
    ) -> tuple[Int[Array, " R"], KeyValues]:
        token, new = carry
        is_written = jnp.arange(busy.tokens) < i
        mask = jnp.broadcast_to(is_written, (busy.rows, busy.tokens))
        place = jnp.full((busy.rows, 1), busy.cache + i)
        hidden, read = policy.trunk(
            token[:, None], place, None, (context, Segment(*new, mask))
        )
        put = jax.lax.dynamic_update_slice_in_dim
        new = KeyValues(
            put(new.keys, read.keys, i, axis=-1),
            put(new.values, read.values, i, axis=-2),
            put(new.positions, read.positions, i, axis=-1),
        )
        keys = jax.random.split(jax.random.fold_in(key, i), busy.rows)
        return categorical(keys, policy.logits(hidden[:, 0]))[0], new

    start = (jnp.zeros(busy.rows, jnp.int32), new)
    return jax.lax.fori_loop(0, busy.tokens, write_token, start)[0]


def run(busy: BusyRows) -> dict[str, Any]:
    """Load the model and time the loop."""
    policy = load_model(get(busy.model), LanguageModel, "policy")
    assert isinstance(policy, LanguageModel)
    context, key = make_context(policy, busy), jax.random.key(0)
    jax.block_until_ready(draw(policy, context, key, busy))
    seconds = []
    for _ in range(busy.runs):
        start_time = time.perf_counter()
        jax.block_until_ready(draw(policy, context, key, busy))
        seconds.append(time.perf_counter() - start_time)
    peak = peak_bytes()
    ceilings = measure_ceilings(policy.trunk.cache_dtype, [1024, 2048], 2**29)
    return {
        "seconds": min(seconds),
        "generated_tokens": busy.rows * busy.tokens,
        "peak_bytes": peak,
        "ceiling": ceiling_of(policy, busy, ceilings),
    }


def ceiling_of(policy: LanguageModel, busy: BusyRows, ceilings: Ceilings) -> float:
    """The highest possible number of tokens per second."""
    config = policy.config
    context = busy.cache + busy.tokens / 2
    arithmetic = busy.rows * config.flops_per_token(context) / ceilings.flops
    weights = jax.tree.leaves(nnx.state(policy, nnx.Param))
    num_bytes = float(sum(leaf.nbytes for leaf in weights))
    if not config.tied:
        # Of an embedding that is no head, one row is read per token.
        num_bytes -= policy.trunk.embedding[...].nbytes
    per_position = 2 * config.num_layers * config.num_kv_heads * config.head_width
    num_bytes += busy.rows * context * per_position * policy.trunk.cache_dtype.itemsize
    return busy.rows / max(arithmetic, num_bytes / ceilings.bandwidth)


def main(busy: tyro.conf.OmitArgPrefixes[BusyRows] = BusyRows()) -> None:  # noqa: B008
    """Time the loop and print the time of the best of a few runs.

    Args:
        busy: model, rows and lengths.
    """
    print(json.dumps(run(busy)))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
