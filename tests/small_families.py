"""A small configuration of every family, with all that the family does turned on."""

import dataclasses

from small_checkpoints import small_config

from tsi.models.decoder_config import DecoderConfig, SlidingWindow
from tsi.models.rotary import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    YarnScaling,
)

# Stretched over contexts short enough that stretched pairs turn within a test's text.
LLAMA3 = Rope(100.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, 16.0))
YARN = Rope(1000.0, scaling=YarnScaling(4.0, 16.0, 4.0, 0.5, 1.14, True))
UNROUNDED = Rope(1000.0, scaling=YarnScaling(4.0, 16.0, 4.0, 0.5, 1.14, False))
LINEAR = Rope(1000.0, scaling=LinearScaling(3.0))

WRITTEN: dict[str, DecoderConfig] = {
    "llama": small_config(
        rope=LLAMA3,
        tied=False,
        eos_ids=(1, 3),
        norm_epsilon=1e-3,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
    ),
    "mistral": small_config(
        family="mistral",
        head_width=12,
        num_kv_heads=1,
        rope=YARN,
        sliding_window=SlidingWindow(5, (True, True, True), YARN),
    ),
    "qwen2": small_config(
        family="qwen2",
        activation="gelu",
        attention_bias=True,
        rope=UNROUNDED,
        sliding_window=SlidingWindow(4, (False, True, True), UNROUNDED),
    ),
    "qwen3": small_config(
        family="qwen3",
        attention_bias=True,
        output_bias=True,
        head_width=16,
        query_key_norm=True,
        rope=LINEAR,
        sliding_window=SlidingWindow(6, (True, False, True), LINEAR),
    ),
    "gemma3": small_config(
        family="gemma3",
        attention_bias=True,
        output_bias=True,
        head_width=6,
        activation="gelu_pytorch_tanh",
        query_key_norm=True,
        post_norms=True,
        norm_offset=1.0,
        embedding_scale=32**0.5,
        query_scale=5**-0.5,
        attention_softcap=2.0,
        logit_softcap=1.5,
        rope=YARN,
        sliding_window=SlidingWindow(4, (True, False, True), Rope(50.0)),
    ),
    "phi3": small_config(
        family="phi3",
        activation="relu",
        tied=False,
        rope=Rope(100.0, fraction=0.5),
        sliding_window=SlidingWindow(7, (True, True, True), Rope(100.0, fraction=0.5)),
    ),
}
"""By family, of what the saver writes."""

LONG = Rope(100.0, 0.5, LongRopeScaling((1.5, 3.0), (2.5, 9.0), 24, 64, 1.2))
STRETCHED = small_config(
    family="phi3",
    max_length=64,
    rope=LONG,
    sliding_window=SlidingWindow(7, (True, True, True), LONG),
)
READ: dict[str, DecoderConfig] = WRITTEN | {
    "phi3 with LongRoPE": dataclasses.replace(STRETCHED, max_length=24),
    "phi3 beyond its original length": STRETCHED,
}
"""All of these, and two ways to use a model with LongRoPE."""
