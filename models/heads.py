"""The heads of published reward models, on the trunk that all families share.

Each head gives log-odds at every token; the format of the reward model decides at which
tokens they are read (:mod:`tsi.rewards.formats`). A head with two classes gives the
difference of its logits, log p(good) − log p(bad). A head with one output gives that.

===================  ===========================  =================================
architecture         tensors                      as released in
===================  ===========================  =================================
TokenClassification  score.weight, score.bias     TRL's process reward models
ProcessRewardModel   score.0.*, score.2.*         Qwen2.5-Math-PRM (two classes)
RewardModel          score.0.*, score.2.*         Qwen2.5-Math-RM (one)
SequenceClassif.     score.weight                 outcome reward models
PrmModel             v_head.summary.*             Skywork-o1-Open-PRM (one)
===================  ===========================  =================================

References: modeling_qwen2_rm.py of Qwen/Qwen2.5-Math-PRM-7B (arXiv 2501.07301);
transformers' ForSequenceClassification; prm_model.py of
github.com/SkyworkAI/skywork-o1-prm-inference.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tsi.models.decoder import LanguageModel, RewardModel, Trunk
from tsi.models.decoder_config import DecoderConfig
from tsi.models.layers import Linear, product_in_float32


class SequenceScorer(RewardModel):
    """A linear head without a bias, to be read at the last token."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.trunk = Trunk(config, rngs=rngs, dtype=dtype)
        self.score = Linear(config.width, config.num_labels, rngs=rngs, dtype=dtype)
        self.config = config

    def labels(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b labels"]:
        """One output, or the logits of two classes."""
        return self.score.in_float32(hidden)


class OutcomeScorer(RewardModel):
    """Two layers with a ReLU between them, and one output per label."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        d = config.width
        self.trunk = Trunk(config, rngs=rngs, dtype=dtype)
        self.inner = Linear(d, d, rngs=rngs, dtype=dtype, bias=True)
        self.outer = Linear(d, config.num_labels, rngs=rngs, dtype=dtype, bias=True)
        self.config = config

    def labels(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b labels"]:
        """One output, or the logits of two classes."""
        return self.outer.in_float32(jax.nn.relu(self.inner(hidden)))


class ProcessScorer(OutcomeScorer):
    """An :class:`OutcomeScorer` with the classes bad and good, read at step ends."""


class ValueScorer(RewardModel):
    """A model with a value head, whose output is the logit of the reward."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.trunk = Trunk(config, rngs=rngs, dtype=dtype)
        self.value = ValueHead(config.width, rngs=rngs, dtype=dtype)
        self.config = config

    def labels(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b 1"]:
        """The logit."""
        return self.value.summary.in_float32(hidden)


class ValueHead(nnx.Module):
    """A value head alone, for the hidden states of another model."""

    def __init__(
        self, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        self.summary = Linear(width, 1, rngs=rngs, dtype=dtype, bias=True)

    def log_odds(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b"]:
        """The logit of the reward, float32."""
        return self.summary.in_float32(hidden)[..., 0]


def token_log_odds(
    model: LanguageModel, hidden: Float[Array, "*b D"], good_id: int, bad_id: int
) -> Float[Array, "*b"]:
    """log p(good) − log p(bad) of the next token; only these two logits are computed.

    Args:
        model: a language model, whose head is used.
        hidden: states of its trunk.
        good_id, bad_id: token ids.
    """
    ids = jnp.asarray([good_id, bad_id])
    head = model.head
    if head is None:
        logits = product_in_float32(hidden, model.trunk.embed(ids).T)
    else:
        scale = None if head.scale is None else head.scale[..., ids]
        logits = product_in_float32(hidden, head.kernel[:, ids], scale)
    cap = model.config.logit_softcap
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    return logits[..., 0] - logits[..., 1]
