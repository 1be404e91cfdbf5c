"""Errors of log p with narrower weights and caches, on texts that the model writes.

``python -m tsi.experiments.benchmarks.number_formats`` prints a table. One text per row
is drawn with float32 weights and read by the same model in every format. Each format
also draws its own texts token by token and reads them again in one pass, with matrices
of other shapes.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int, Key

from tsi.decoding.categorical import categorical
from tsi.experiments.command import exit_code
from tsi.models.attention import Segment
from tsi.models.decoder import KeyValues, LanguageModel, with_cache_dtype
from tsi.models.loading.checkpoint import load
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.partition import memory


class Format(NamedTuple):
    """Number types of computation, weights and cache."""

    dtype: str = "float32"
    weights: str | None = None
    cache_dtype: str | None = None

    def __str__(self) -> str:
        parts = self.dtype, self.weights, self.cache_dtype
        names = "", "weights ", "cache "
        pairs = zip(names, parts, strict=True)
        return ", ".join(name + part for name, part in pairs if part)


FORMATS = (
    Format(),
    Format(cache_dtype="bfloat16"),
    Format(cache_dtype="float16"),
    Format(weights="int8"),
    Format(weights="int8", cache_dtype="bfloat16"),
    Format(weights="int4"),
    Format(dtype="bfloat16"),
    Format(dtype="bfloat16", weights="int8"),
)


HEAD = (
    "numbers",
    "weights MB",
    "cache kB per token",
    "log p of a token, mean",
    "largest",
    "of a text",
    "read again, mean",
    "largest",
)


class Texts(NamedTuple):
    """The model, the number of texts and their length."""

    model: str = "smollm2-135m"
    rows: int = 4
    tokens: int = 64
    prompt: str = "Explain how to find the sum of the first hundred numbers."


@partial(jax.jit, static_argnames=("rows", "count"))
def draw(
    policy: LanguageModel,
    prompt: Int[Array, " S"],
    key: Key[Array, ""],
    rows: int,
    count: int,
) -> tuple[Int[Array, "R T"], Float[Array, "R T"]]:
    """Texts that the model draws token by token, and log p of each token."""
    size, config = prompt.shape[0], policy.config
    places = jnp.arange(size)[None]
    mask = places < size - 1
    past = Segment(*policy.trunk(prompt[None], places, mask)[1], mask)
    shape, dtype = (config.num_layers, rows, config.num_kv_heads), past.keys.dtype
    new = KeyValues(
        jnp.zeros((*shape, config.head_width, count), dtype),
        jnp.zeros((*shape, count, config.head_width), dtype),
        jnp.zeros((rows, count), jnp.int32),
    )

    def write_token(
        carry: tuple[Int[Array, " R"], KeyValues], i: Int[Array, ""]
    ) -> tuple[
        tuple[Int[Array, " R"], KeyValues], tuple[Int[Array, " R"], Float[Array, " R"]]
    ]:
        token, new = carry
        mask = jnp.broadcast_to(jnp.arange(count) < i, (rows, count))
        at = jnp.full((rows, 1), size - 1 + i)
        context = (past, Segment(*new, mask))
        hidden, read = policy.trunk(token[:, None], at, None, context)
        write = jax.lax.dynamic_update_slice_in_dim
        new = KeyValues(
            write(new.keys, read.keys, i, axis=-1),
            write(new.values, read.values, i, axis=-2),
            write(new.positions, read.positions, i, axis=-1),
        )
        keys = jax.random.split(jax.random.fold_in(key, i), rows)
        token, log_p = categorical(
            keys, jax.nn.log_softmax(policy.logits(hidden[:, 0]))
        )
        return (token, new), (token, log_p)

    start = (jnp.broadcast_to(prompt[-1], (rows,)), new)
    _, (tokens, log_p) = jax.lax.scan(write_token, start, jnp.arange(count))
    return tokens.T, log_p.T


@jax.jit
def read(
    policy: LanguageModel, prompt: Int[Array, " S"], tokens: Int[Array, "R T"]
) -> Float[Array, "R T"]:
    """log p of each token of texts that are read in one pass."""
    rows, size = tokens.shape[0], prompt.shape[0]
    parts = [jnp.broadcast_to(prompt, (rows, size)), tokens]
    log_p = jax.nn.log_softmax(policy(jnp.concatenate(parts, axis=1)[:, :-1]))
    solution_log_p = log_p[:, size - 1 :]
    return jnp.take_along_axis(solution_log_p, tokens[..., None], axis=2)[..., 0]


def measure(path: Path, texts: Texts) -> Iterator[list[str]]:
    """One line of the table for each format."""
    tokenizer = load_tokenizer(path)
    prompt = jnp.asarray(tokenizer.encode_prompt(texts.prompt), jnp.int32)
    key, rows, count = jax.random.key(0), texts.rows, texts.tokens
    reference: Any = None
    for format in FORMATS:
        model, _ = load(path, dtype=format.dtype, weights=format.weights)
        if format.cache_dtype is not None:
            model = with_cache_dtype(model, format.cache_dtype)
        tokens, drawn_log_p = jax.device_get(draw(model, prompt, key, rows, count))
        reread_error = np.abs(drawn_log_p - read(model, prompt, tokens))
        if reference is None:
            reference = tokens, read(model, prompt, tokens)
        difference = np.asarray(read(model, prompt, reference[0]) - reference[1])
        config, error = model.config, np.abs(difference)
        position = 2 * config.num_layers * config.num_kv_heads * config.head_width
        text = np.sqrt(np.mean(difference.sum(axis=1) ** 2))
        numbers = (
            error.mean(),
            error.max(),
            text,
            reread_error.mean(),
            reread_error.max(),
        )
        yield [
            str(format),
            f"{memory(model).total / 1e6:.0f}",
            f"{position * model.trunk.cache_dtype.itemsize / 1e3:.0f}",
            *(f"{number:.2g}" for number in numbers),
        ]


def main(texts: tyro.conf.OmitArgPrefixes[Texts] = Texts()) -> None:  # noqa: B008
    """Print the table, line by line.

    Args:
        texts: what is written and read.
    """
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for line in measure(get(texts.model), texts):
        print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
