"""One small configuration of every family, with its features turned on."""

from small_checkpoints import small_config

from tsi.models.decoder_config import DecoderConfig, SlidingWindow
from tsi.models.rotary import Llama3Scaling, Rope


def family_configs() -> dict[str, DecoderConfig]:
    """By name; four devices divide the heads of some and not of others."""
    plain = Rope(10_000.0)
    return {
        "llama": small_config(
            num_kv_heads=4,
            tied=False,
            attention_bias=True,
            output_bias=True,
            mlp_bias=True,
            rope=Rope(scaling=Llama3Scaling(8.0, 1.0, 4.0, 32.0)),
        ),
        "mistral": small_config(
            family="mistral",
            sliding_window=SlidingWindow(5, (True, True, True), plain),
            rope=plain,
        ),
        "qwen2": small_config(family="qwen2", num_kv_heads=4, attention_bias=True),
        "qwen3": small_config(family="qwen3", query_key_norm=True, vocab_size=42),
        "gemma3": small_config(
            family="gemma3",
            num_heads=8,
            num_kv_heads=4,
            activation="gelu_pytorch_tanh",
            query_key_norm=True,
            post_norms=True,
            norm_offset=1.0,
            embedding_scale=32**0.5,
            query_scale=0.25,
            attention_softcap=20.0,
            logit_softcap=10.0,
            rope=Rope(1_000_000.0),
            sliding_window=SlidingWindow(4, (True, True, False), plain),
        ),
        "phi3": small_config(
            family="phi3",
            num_heads=6,
            num_kv_heads=6,
            hidden=50,
            tied=False,
            rope=Rope(10_000.0, 0.5),
        ),
    }
