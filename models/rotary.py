"""Rotary position embeddings, and the published ways of stretching their wavelengths.

Frequencies are computed once, in float32 on the host, from numbers in the
configuration; a kind of scaling is a NamedTuple of the constants that it needs.

References:
    Su et al. 2021, arXiv 2104.09864; YaRN, arXiv 2309.00071; LongRoPE, arXiv
    2402.13753; Llama 3, arXiv 2407.21783.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tsi.errors import PromptTooLongError


class LinearScaling(NamedTuple):
    """All positions divided by ``factor``."""

    factor: float


class Llama3Scaling(NamedTuple):
    """Long wavelengths stretched, short ones kept, blended between (Llama 3.1).

    Wavelengths longer than ``original / low`` are stretched by ``factor``, those
    shorter than ``original / high`` are kept, and those between are blended linearly in
    ``original / wavelength``.
    """

    factor: float
    low: float
    high: float
    original: float


class YarnScaling(NamedTuple):
    """NTK by parts with a temperature on attention (arXiv 2309.00071)."""

    factor: float
    original: float
    beta_fast: float
    beta_slow: float
    attention: float
    truncate: bool


class LongRopeScaling(NamedTuple):
    """One divisor a frequency, and a temperature on attention (arXiv 2402.13753).

    Which divisors apply is a matter of the context that a model is used at, and not of
    the text at hand: keys that are cached already cannot be turned anew once a text
    grows beyond the original length. llama.cpp chooses so too; transformers goes by the
    text, and while it generates leaves cached keys as they were.

    Attributes:
        short, long: divisors of contexts up to the original length, and beyond it.
        original, stretched: the longest context before and after the stretching.
        attention: multiplies turned queries and keys, in short contexts too.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    stretched: int
    attention: float


class DynamicScaling(NamedTuple):
    """The base grows with the text, once that is longer than the model's context.

    Within the context, where a model stops here, wavelengths are the plain ones. Beyond
    it every cached key would have to be turned anew with each token; the factor is kept
    for the configuration that is saved.
    """

    factor: float


Scaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling | DynamicScaling


class Rope(NamedTuple):
    """How positions turn queries and keys.

    Attributes:
        theta: the base of the wavelengths.
        fraction: the leading part of each head that is turned; the rest is left.
        scaling: how wavelengths are stretched; None for not at all.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: Scaling | None = None

    @property
    def attention(self) -> float:
        """What turned queries and keys are multiplied by, each."""
        return getattr(self.scaling, "attention", 1.0)


def inverse_frequencies(
    rope: Rope, head_width: int, context: int = 0
) -> Float[np.ndarray, " half"]:
    """The angle by which one position turns each pair, float32.

    Args:
        rope: the base and its scaling.
        head_width: h; the number of pairs is half of ``fraction`` of it.
        context: the length, in tokens, that the model is used at; LongRoPE has other
            divisors beyond its original one.
    """
    turned = int(head_width * rope.fraction)
    exponents = np.arange(0, turned, 2, dtype=np.float32) / np.float32(turned)
    plain: np.ndarray = 1.0 / np.float32(rope.theta) ** exponents
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        plain = plain / scaling.factor
    elif isinstance(scaling, Llama3Scaling):
        turns = scaling.original * plain / (2 * math.pi)
        keep = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        plain = plain * (keep + (1 - keep) / scaling.factor)
    elif isinstance(scaling, YarnScaling):
        keep = 1 - _yarn_ramp(scaling, rope.theta, turned)
        plain = plain * (keep + (1 - keep) / scaling.factor)
    elif isinstance(scaling, LongRopeScaling):
        beyond = context > scaling.original
        divisors = scaling.long if beyond else scaling.short
        plain = plain / np.asarray(divisors, np.float32)
    return plain.astype(np.float32)


def check_length(rope: Rope, length: int, max_length: int) -> None:
    """Refuse texts that would be turned by other angles than the model was loaded with.

    Args:
        rope: with LongRoPE and dynamic scaling, longer texts have other angles.
        length: of the text, in tokens.
        max_length: at which the model is used, in tokens.

    Raises:
        PromptTooLongError: the text is longer, and its angles would be others.
    """
    changes = isinstance(rope.scaling, DynamicScaling | LongRopeScaling)
    if changes and length > max_length:
        raise PromptTooLongError(
            f"The text has {length} tokens, and the model is used at {max_length}, "
            "beyond which its rotary scaling has other angles. Shorten the text, or, "
            "where the configuration has a longer context, load the model with "
            f"max_length={length}."
        )


def _yarn_ramp(scaling: YarnScaling, theta: float, turned: int) -> np.ndarray:
    """0 for pairs that turn more than beta_fast times in the original context, to 1."""

    def pair_that_turns(times: float) -> float:
        ratio = math.log(scaling.original / (times * 2 * math.pi))
        return turned * ratio / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, turned - 1)
    # Equal ends would divide by zero; the published code parts them by this much.
    span = high - low or 0.001
    return np.clip((np.arange(turned // 2) - low) / span, 0, 1)


def rotate(
    x: Float[Array, "R Q H h"],
    positions: Int[Array, "R Q"],
    frequencies: Float[Array, " half"],
    attention: Float[Array, ""] | None = None,
) -> Float[Array, "R Q H h"]:
    """Turn each head's leading ``2 half`` entries in the half-split layout.

    Pairs are (i, i + half), as in the Hugging Face checkpoints; llama.cpp pairs
    (2i, 2i + 1) for some families and permutes their query and key rows to match.

    Args:
        x: queries or keys.
        positions: of each, counted from the start of the prompt.
        frequencies: see :func:`inverse_frequencies`.
        attention: multiplies what is turned (see :attr:`Rope.attention`); None for 1.
    """
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    if attention is not None:
        cos, sin = cos * attention, sin * attention
    half = frequencies.shape[-1]
    first, second = jnp.split(x[..., : 2 * half].astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    rest = (x[..., 2 * half :],) if 2 * half < x.shape[-1] else ()
    return jnp.concatenate([*(t.astype(x.dtype) for t in turned), *rest], axis=-1)
