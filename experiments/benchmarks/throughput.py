"""The speed of reading prompts and writing tokens with a policy.

Every row of a batch has its own prompt. Reading is the target's ``init``; writing is
one step of ``propose`` that no boundary ends. The last token of a prompt is read with
the first token that is written.
"""

import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsi.decoding.boundary import Boundary
from tsi.experiments.benchmarks.ceilings import Ceilings, seconds_of
from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import DecoderConfig
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.reward import NoReward, Prompts


class Work(NamedTuple):
    """Rows per batch, tokens per prompt, tokens written, and timed runs."""

    batch: int
    prompt: int
    new: int
    repeats: int


class Speed(NamedTuple):
    """Median seconds to read all prompts and to write all tokens."""

    prefill: float
    decode: float


def prompts_of(config: DecoderConfig, work: Work) -> np.ndarray:
    """Random prompts ``[batch, prompt]``, the same for every implementation."""
    shape = (work.batch, work.prompt)
    return np.random.default_rng(0).integers(0, config.vocab_size, shape, np.int32)


def measure_speed(model: LanguageModel, work: Work) -> Speed:
    """Time the policy on the default device."""
    config = model.config
    no_ends = jnp.zeros((1, config.vocab_size), bool)
    target = ReasoningTarget(
        Boundary(no_ends.astype(jnp.int32), no_ends, no_ends[0]),
        NoReward(),
        max_step_tokens=work.new,
        max_tokens=work.new + 1,
        max_steps=1,
    )
    lengths = jnp.full(work.batch, work.prompt)
    prompts = Prompts(jnp.asarray(prompts_of(config, work)), lengths)
    params = ReasoningParams(model, None, prompts, jnp.float32(1.0))
    keys = jax.random.split(jax.random.key(0), work.batch)
    read = jax.jit(lambda params: target.init(None, 1, params))
    write = jax.jit(lambda keys, rows, params: target.propose(keys, 0, rows, params)[0])
    rows = read(params)
    written = int(jnp.sum(write(keys, rows, params).lengths))
    if written != work.batch * work.new:
        raise AssertionError(f"{written} tokens were written, not all of {work}")
    return Speed(
        _median(lambda: jax.block_until_ready(read(params)), work),
        _median(lambda: jax.block_until_ready(write(keys, rows, params)), work),
    )


def _median(call: Any, work: Work) -> float:
    return statistics.median(seconds_of(call, work.repeats))


def ceiling_fractions(
    model: LanguageModel, work: Work, speed: Speed, ceilings: Ceilings
) -> dict[str, float]:
    """Tokens per second, and fractions of the ceilings.

    Writing a token reads each weight once for the whole batch, and each row's keys and
    values. Of an embedding that is not the head, only the tokens' rows are read, which
    is neglected.
    """
    config = model.config
    read, written = work.batch * work.prompt, work.batch * work.new
    context = work.prompt + work.new / 2
    flops_read = read * config.flops_per_token(work.prompt / 2, head=False)
    flops_written = written * config.flops_per_token(context)
    weights = jax.tree.leaves(nnx.state(model, nnx.Param))
    num_bytes = sum(leaf.nbytes for leaf in weights)
    embedding = model.trunk.embedding[...]
    if not config.tied:
        num_bytes -= embedding.nbytes
    per_position = 2 * config.num_layers * config.num_kv_heads * config.head_width
    cache = work.batch * context * per_position * model.trunk.cache_dtype.itemsize
    bytes_moved = work.new * (num_bytes + cache)
    return {
        "prefill_tokens_per_s": read / speed.prefill,
        "decode_tokens_per_s": written / speed.decode,
        "prefill_of_flops": flops_read / speed.prefill / ceilings.flops,
        "decode_of_flops": flops_written / speed.decode / ceilings.flops,
        "decode_of_bandwidth": bytes_moved / speed.decode / ceilings.bandwidth,
    }
