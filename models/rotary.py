"""Rotary position embeddings, and the published ways of stretching their wavelengths.

Frequencies are computed once, in float32 on the host, from constants in the
configuration. Each kind of scaling is a NamedTuple of its constants.

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
    """All positions are divided by ``factor``."""

    factor: float


class Llama3Scaling(NamedTuple):
    """Long wavelengths are stretched and short ones kept (Llama 3.1).

    Wavelengths longer than ``original / low`` are stretched by ``factor``, and those
    shorter than ``original / high`` are kept. Between the two, frequencies are blended
    linearly in ``original / wavelength``.
    """

    factor: float
    low: float
    high: float
    original: float


class YarnScaling(NamedTuple):
    """NTK-by-parts with a temperature on attention (arXiv 2309.00071)."""

    factor: float
    original: float
    beta_fast: float
    beta_slow: float
    attention: float
    truncate: bool


class LongRopeScaling(NamedTuple):
    """One divisor per frequency, and a temperature on attention (arXiv 2402.13753).

    The context for which a model is loaded decides which divisors apply, not the length
    of a text: cached keys cannot be rotated again when a text grows beyond the original
    length. llama.cpp does the same. transformers goes by the length of the text, and
    does not change cached keys while it generates.

    Attributes:
        short, long: divisors for contexts up to the original length, and beyond it.
        original, stretched: the longest context before and after stretching.
        attention: multiplies rotated queries and keys, in short contexts too.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    stretched: int
    attention: float


class DynamicScaling(NamedTuple):
    """The base grows with texts longer than the model's context.

    Texts end at the context here, and within it wavelengths are not scaled. Beyond it
    all cached keys would have to be rotated again with each token. The factor is kept
    for saving the configuration.
    """

    factor: float


Scaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling | DynamicScaling


class Rope(NamedTuple):
    """A rotary embedding: how positions rotate queries and keys.

    Attributes:
        theta: the base of the wavelengths.
        fraction: the leading part of each head that is rotated.
        scaling: of the wavelengths; None for no scaling.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: Scaling | None = None

    @property
    def attention(self) -> float:
        """The factor of rotated queries, and of rotated keys."""
        return getattr(self.scaling, "attention", 1.0)


def inverse_frequencies(
    rope: Rope, head_width: int, context: int = 0
) -> Float[np.ndarray, " half"]:
    """The angle by which one position rotates each pair, float32.

    Args:
        rope: the base and its scaling.
        head_width: h; the number of pairs is half of ``fraction`` of it.
        context: in tokens, for which the model is loaded; LongRoPE has other divisors
            beyond its original context.
    """
    width = int(head_width * rope.fraction)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies: np.ndarray = 1.0 / np.float32(rope.theta) ** exponents
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        frequencies = frequencies / scaling.factor
    elif isinstance(scaling, Llama3Scaling):
        turns = scaling.original * frequencies / (2 * math.pi)
        keep = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        frequencies = frequencies * (keep + (1 - keep) / scaling.factor)
    elif isinstance(scaling, YarnScaling):
        keep = 1 - _yarn_ramp(scaling, rope.theta, width)
        frequencies = frequencies * (keep + (1 - keep) / scaling.factor)
    elif isinstance(scaling, LongRopeScaling):
        divisors = scaling.long if context > scaling.original else scaling.short
        frequencies = frequencies / np.asarray(divisors, np.float32)
    return frequencies.astype(np.float32)


def check_length(rope: Rope, length: int, max_length: int) -> None:
    """Refuse texts that need other angles than those the model was loaded with.

    Args:
        rope: with LongRoPE and dynamic scaling, longer texts need other angles.
        length: of the text, in tokens.
        max_length: the context for which the model was loaded, in tokens.

    Raises:
        PromptTooLongError: the text is longer and needs other angles.
    """
    depends_on_length = isinstance(rope.scaling, DynamicScaling | LongRopeScaling)
    if depends_on_length and length > max_length:
        raise PromptTooLongError(
            f"The text has {length} tokens. The model is loaded for {max_length}, and "
            "its rotary scaling needs other angles for longer texts. Shorten the text, "
            "or load the model with "
            f"max_length={length} if its configuration has such a context."
        )


def _yarn_ramp(scaling: YarnScaling, theta: float, width: int) -> np.ndarray:
    """For each pair, how much it is stretched, from 0 to 1.

    It is 0 for pairs that turn more than beta_fast times within the original context,
    and 1 for those that turn less than beta_slow times.
    """

    def pair_that_turns(times: float) -> float:
        ratio = math.log(scaling.original / (times * 2 * math.pi))
        return width * ratio / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    # The published code avoids a division by zero in the same way.
    span = high - low or 0.001
    return np.clip((np.arange(width // 2) - low) / span, 0, 1)


def rotate(
    x: Float[Array, "R Q H h"],
    positions: Int[Array, "R Q"],
    frequencies: Float[Array, " half"],
    attention: Float[Array, ""] | None = None,
) -> Float[Array, "R Q H h"]:
    """Rotate the leading ``2 half`` entries of each head, in the half-split layout.

    Pairs are (i, i + half), as in the Hugging Face checkpoints; llama.cpp pairs
    (2i, 2i + 1) for some families and permutes their query and key rows to match.

    Args:
        x: queries or keys.
        positions: of each, counted from the start of the prompt.
        frequencies: see :func:`inverse_frequencies`.
        attention: multiplies rotated entries (see :attr:`Rope.attention`); None for 1.
    """
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    if attention is not None:
        cos, sin = cos * attention, sin * attention
    half = frequencies.shape[-1]
    first, second = jnp.split(x[..., : 2 * half].astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    rest = (x[..., 2 * half :],) if 2 * half < x.shape[-1] else ()
    return jnp.concatenate([*(t.astype(x.dtype) for t in rotated), *rest], axis=-1)
