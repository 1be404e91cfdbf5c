"""The rotary embedding that a GGUF file describes, as ``rope_parameters``.

Linear and YaRN scaling are metadata; Llama 3's and LongRoPE's are tensors of one
divisor a frequency. The converter drops the four constants that Llama 3's divisors came
from; :func:`llama3_constants` finds them again.

Source: llama.cpp's converter (conversion/base.py, llama.py, phi.py) and, for what YaRN
multiplies attention by, src/llama-context.cpp.
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
LOCAL_BASE = 10_000.0
PLAIN = {"rope_type": "default"}
LARGEST_FACTOR, LARGEST_BASE = 1e6, 1e15


def rope_fields(metadata: Metadata) -> dict[str, Any]:
    """The ``rope_parameters`` of a model whose layers share them.

    Raises:
        CheckpointError: a kind of scaling that nobody does, or divisors that are not
            Llama 3's.
    """
    base = _base(metadata, "rope.freq_base", 10_000.0)
    fields = {"rope_theta": base} | _scaling(metadata)
    head_width, turned = _widths(metadata)
    if turned != head_width:
        fields["partial_rotary_factor"] = _fraction(turned, head_width)
    tensors = metadata.header.tensors
    if LLAMA3_FACTORS in tensors:
        divisors = _divisors(metadata.header, LLAMA3_FACTORS, turned // 2)
        constants = llama3_constants(divisors, base)
        if constants is None or fields["rope_type"] != "default":
            raise CheckpointError(
                f"{metadata.header.path}: the tensor {LLAMA3_FACTORS} scales rotary "
                "frequencies in a way that is not Llama 3's, which the ports do not do."
            )
        fields |= constants
    return fields


def gemma_rope(metadata: Metadata) -> dict[str, Any]:
    """The ``rope_parameters`` of Gemma 3, which has two of them.

    Layers with a window have a base of their own and are never scaled.
    """
    everywhere = {"rope_theta": _base(metadata, "rope.freq_base")}
    # llama.cpp would multiply attention in the layers with a window too.
    if metadata.value("rope.scaling.type") == "yarn":
        metadata.refuse("rope.scaling.type", "yarn")
    base = _base(metadata, "rope.freq_base_swa", LOCAL_BASE)
    return {
        "full_attention": everywhere | _scaling(metadata),
        "sliding_attention": {"rope_type": "default", "rope_theta": base},
    }


def _base(metadata: Metadata, name: str, default: float | None = None) -> float:
    """The base of wavelengths, which the search for Llama 3's constants divides by."""
    base = metadata.get(name, float, default)
    if not 1.0 < base <= LARGEST_BASE:
        metadata.refuse(name, base, f" (a base is from 1 to {LARGEST_BASE:g})")
    return base


def _scaling(metadata: Metadata) -> dict[str, Any]:
    # llama.cpp takes a factor without a type, and one of the old name, as linear.
    factor = metadata.get("rope.scale_linear", float, 1.0)
    factor = metadata.get("rope.scaling.factor", float, factor)
    if not 0.0 < factor <= LARGEST_FACTOR:
        metadata.refuse("rope.scaling.factor", factor, " (it divides positions)")
    kind = metadata.value("rope.scaling.type", "linear" if factor != 1.0 else "none")
    if LONG_FACTORS in metadata.header.tensors:
        if metadata.architecture != "phi3":  # where llama.cpp may leave them unread
            metadata.refuse("rope.scaling.type", "longrope")
        return _longrope(metadata)
    metadata.must_be("rope.scaling.attn_factor", 1.0)
    if metadata.architecture == "phi3":
        # Written for every Phi-3; of use with the divisors of LongRoPE alone.
        metadata.value("rope.scaling.original_context_length")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else PLAIN
    if kind == "yarn":
        return _yarn(metadata, factor)
    if kind != "none":
        metadata.refuse("rope.scaling.type", kind)
    return PLAIN


def _yarn(metadata: Metadata, factor: float) -> dict[str, Any]:
    metadata.must_be("rope.scaling.yarn_ext_factor", 1.0)
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
    """Of a head, and of the part of it that is turned."""
    width = metadata.get("embedding_length", int)
    head = width // metadata.get("attention.head_count", int)
    head = metadata.get("attention.key_length", int, head)
    return head, metadata.get("rope.dimension_count", int, head)


def _fraction(turned: int, head_width: int) -> float:
    """The fraction whose product with the head's width is whole, rounding and all."""
    fraction = turned / max(head_width, 1)
    if int(head_width * fraction) < turned:
        fraction = float(np.nextafter(fraction, 1.0))
    return fraction


def _divisors(header: Header, name: str, pairs: int) -> np.ndarray:
    stored = header.tensors.get(name)
    if stored is None or stored.shape != (pairs,):
        found = "is missing" if stored is None else f"has shape {list(stored.shape)}"
        raise CheckpointError(
            f"{header.path}: the tensor {name} {found}; the model turns {pairs} pairs "
            "of each head."
        )
    divisors = read_tensor(header, name)
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise CheckpointError(
            f"{header.path}: {name} has entries that are not divisors."
        )
    return divisors


def llama3_constants(divisors: np.ndarray, base: float) -> dict[str, Any] | None:
    """The ``rope_parameters`` that give Llama 3's divisors, or None.

    With x turns a position, the divisor is 1 / (k + (1 - k) / F) for k = clip(a x - b,
    0, 1): F is the largest, and (a, b) a line through the blended entries. ``low``,
    ``high`` and ``original`` enter as two ratios only, so ``low`` is taken as 1, and
    ``high`` as 4, as in every release, where fewer than two entries are blended.

    Args:
        divisors: of each pair's frequency.
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
        least = high / turns[keep >= 0.5].min(initial=np.inf)
        most = 1 / turns[keep < 0.5].max(initial=1e-9)
        original = float(np.sqrt(least * most))
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
