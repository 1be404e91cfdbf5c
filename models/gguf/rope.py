"""The rotary embedding of a GGUF file, as ``rope_parameters`` of a ``config.json``.

Linear and YaRN scaling are metadata. Llama 3's scaling and LongRoPE are tensors with
one divisor per frequency. The converter drops the four constants from which Llama 3's
divisors are computed, and :func:`llama3_constants` recovers them.

Source: llama.cpp's converter (conversion/base.py, llama.py, phi.py) and, for YaRN's
factor on attention, src/llama-context.cpp.
"""

from typing import Any

import numpy as np

from tsi.errors import CheckpointError
from tsi.models.gguf.file import Header, read_tensor
from tsi.models.gguf.metadata import Metadata

LLAMA3_FACTORS = "rope_freqs.weight"
LONG_FACTORS = "rope_factors_long.weight"
SHORT_FACTORS = "rope_factors_short.weight"
FACTOR_TENSORS = (LLAMA3_FACTORS, LONG_FACTORS, SHORT_FACTORS)
WINDOW_BASE = 10_000.0
NO_SCALING = {"rope_type": "default"}
MAX_FACTOR, MAX_BASE = 1e6, 1e15


def rope_fields(metadata: Metadata) -> dict[str, Any]:
    """The ``rope_parameters`` of a model with one rotary embedding for all layers.

    Raises:
        CheckpointError: a kind of scaling that is not supported, or divisors that are
            not Llama 3's.
    """
    base = _base(metadata, "rope.freq_base", 10_000.0)
    fields = {"rope_theta": base} | _scaling_fields(metadata)
    head_width, rotated_width = _widths(metadata)
    if rotated_width != head_width:
        fields["partial_rotary_factor"] = _fraction(rotated_width, head_width)
    tensors = metadata.header.tensors
    if LLAMA3_FACTORS in tensors:
        divisors = _divisors(metadata.header, LLAMA3_FACTORS, rotated_width // 2)
        constants = llama3_constants(divisors, base)
        if constants is None or fields["rope_type"] != "default":
            raise CheckpointError(
                f"{metadata.header.path}: the tensor {LLAMA3_FACTORS} scales rotary "
                "frequencies in another way than Llama 3, which is not supported. "
                "Choose another model."
            )
        fields |= constants
    return fields


def gemma_rope(metadata: Metadata) -> dict[str, Any]:
    """The ``rope_parameters`` of Gemma 3, which has two rotary embeddings.

    Layers with a window have a different base and no scaling.
    """
    full = {"rope_theta": _base(metadata, "rope.freq_base")}
    # llama.cpp would apply YaRN's factor on attention to layers with a window too.
    if metadata.value("rope.scaling.type") == "yarn":
        metadata.refuse("rope.scaling.type", "yarn")
    base = _base(metadata, "rope.freq_base_swa", WINDOW_BASE)
    return {
        "full_attention": full | _scaling_fields(metadata),
        "sliding_attention": {"rope_type": "default", "rope_theta": base},
    }


def _base(metadata: Metadata, name: str, default: float | None = None) -> float:
    """The base of the wavelengths; :func:`llama3_constants` divides by its powers."""
    base = metadata.get(name, float, default)
    if not 1.0 < base <= MAX_BASE:
        metadata.refuse(name, base, f" (supported: 1 to {MAX_BASE:g})")
    return base


def _scaling_fields(metadata: Metadata) -> dict[str, Any]:
    # In llama.cpp a factor without a type is linear, and so is one of the old name.
    factor = metadata.get("rope.scale_linear", float, 1.0)
    factor = metadata.get("rope.scaling.factor", float, factor)
    if not 0.0 < factor <= MAX_FACTOR:
        metadata.refuse(
            "rope.scaling.factor",
            factor,
            f" (supported: positive factors up to {MAX_FACTOR:g})",
        )
    kind = metadata.value("rope.scaling.type", "linear" if factor != 1.0 else "none")
    if LONG_FACTORS in metadata.header.tensors:
        if metadata.architecture != "phi3":  # llama.cpp might ignore them
            metadata.refuse("rope.scaling.type", "longrope")
        return _longrope(metadata)
    metadata.require("rope.scaling.attn_factor", 1.0)
    if metadata.architecture == "phi3":
        # Written for every Phi-3; it has an effect with LongRoPE only.
        metadata.value("rope.scaling.original_context_length")
    if kind == "linear":
        return (
            {"rope_type": "linear", "factor": factor} if factor != 1.0 else NO_SCALING
        )
    if kind == "yarn":
        return _yarn(metadata, factor)
    if kind != "none":
        metadata.refuse("rope.scaling.type", kind)
    return NO_SCALING


def _yarn(metadata: Metadata, factor: float) -> dict[str, Any]:
    metadata.require("rope.scaling.yarn_ext_factor", 1.0)
    fields = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": metadata.get(
            "rope.scaling.original_context_length", int
        ),
        "beta_fast": metadata.get("rope.scaling.yarn_beta_fast", float, 32.0),
        "beta_slow": metadata.get("rope.scaling.yarn_beta_slow", float, 1.0),
    }
    scale = metadata.get("rope.scaling.yarn_log_multiplier", float, 0.0)
    attention = metadata.value("rope.scaling.yarn_attn_factor")
    if attention is not None:
        fields["attention_factor"] = attention
    elif scale:
        fields |= {"mscale": 1.0, "mscale_all_dim": scale}
    return fields


def _longrope(metadata: Metadata) -> dict[str, Any]:
    pairs = _widths(metadata)[1] // 2
    short, long = (
        _divisors(metadata.header, name, pairs).tolist()
        for name in (SHORT_FACTORS, LONG_FACTORS)
    )
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": metadata.get(
            "rope.scaling.original_context_length", int
        ),
        "attention_factor": metadata.get("rope.scaling.attn_factor", float, 1.0),
    }


def _widths(metadata: Metadata) -> tuple[int, int]:
    """The width of a head, and of the part of it that is rotated."""
    width = metadata.get("embedding_length", int)
    head = width // metadata.get("attention.head_count", int)
    head = metadata.get("attention.key_length", int, head)
    return head, metadata.get("rope.dimension_count", int, head)


def _fraction(rotated_width: int, head_width: int) -> float:
    """The fraction f with int(head_width * f) == rotated_width despite rounding."""
    fraction = rotated_width / max(head_width, 1)
    if int(head_width * fraction) < rotated_width:
        fraction = float(np.nextafter(fraction, 1.0))
    return fraction


def _divisors(header: Header, name: str, pairs: int) -> np.ndarray:
    tensor = header.tensors.get(name)
    if tensor is None or tensor.shape != (pairs,):
        state = "is missing" if tensor is None else f"has shape {list(tensor.shape)}"
        raise CheckpointError(
            f"{header.path}: the tensor {name} {state}; the model rotates {pairs} "
            "pairs of each head. Convert or download it again."
        )
    divisors = read_tensor(header, name)
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise CheckpointError(
            f"{header.path}: {name} has entries that are not positive finite numbers. "
            "Convert or download it again."
        )
    return divisors


def llama3_constants(divisors: np.ndarray, base: float) -> dict[str, Any] | None:
    """The ``rope_parameters`` from which Llama 3's divisors follow; None if none fit.

    A pair that makes x turns per position has the divisor 1 / (k + (1 - k) / F) with
    k = clip(a x - b, 0, 1). F is the largest divisor, and (a, b) is a line through the
    blended entries. ``low``, ``high`` and ``original`` determine only two ratios, so
    ``low`` is set to 1. If fewer than two entries are blended, ``high`` is set to 4, as
    in every release.

    Args:
        divisors: of the frequency of each pair.
        base: of the wavelengths.
    """
    pairs = len(divisors)
    turns = base ** (-np.arange(pairs) / pairs) / (2 * np.pi)
    factor = float(divisors.max())
    if factor <= 1.0:
        return {"rope_type": "default"} if np.allclose(divisors, 1.0) else None
    keep = (1 / divisors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    blended = (keep > 1e-5) & (keep < 1 - 1e-5)
    high = 4.0
    if blended.sum() >= 2:
        slope, intercept = np.polyfit(turns[blended], keep[blended], 1)
        if not (slope > 0 and intercept < 0):
            return None
        high = round(1 - 1 / intercept, 3)
    if blended.any():
        originals = (keep[blended] * (high - 1) + 1) / turns[blended]
        original = float(originals.mean())
    else:
        lower = high / turns[keep >= 0.5].min(initial=np.inf)
        upper = 1 / turns[keep < 0.5].max(initial=1e-9)
        original = float(np.sqrt(lower * upper))
    original = float(round(original))
    expected = np.clip((original * turns - 1) / max(high - 1, 1e-9), 0, 1)
    if not np.allclose(divisors, 1 / (expected + (1 - expected) / factor), rtol=1e-4):
        return None
    return {
        "rope_type": "llama3",
        "factor": round(factor, 4),
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
