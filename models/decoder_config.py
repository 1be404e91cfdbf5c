"""What the shape of a model is, and what a token of it costs."""

import dataclasses
from typing import Any, NamedTuple

from tsi.models.rotary import LongRopeScaling, Rope

PLAIN = Rope()


class Local(NamedTuple):
    """Attention to a window, in some of the layers.

    Attributes:
        window: how many positions a query sees, its own included.
        layers: which of the L layers do so.
        rope: their rotary embedding.
    """

    window: int
    layers: tuple[bool, ...]
    rope: Rope


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a model, in this project's words; the defaults are Llama's.

    Attributes:
        family: whose checkpoints it is read from and written to.
        num_labels: outputs of the scalar or class head, for models that score.
        max_length: the context in tokens, positions beyond which are not to be read.
        attention_bias: whether queries, keys and values have a bias.
        output_bias: whether the projection of what attention mixed has one.
        mlp_bias: whether the three products of the feed-forward layer have one.
        query_key_norm: whether each head of queries and keys is normalised.
        post_norms: whether a branch is normalised before it is added, too.
        norm_offset: added to stored norm scales.
        embedding_scale: multiplies embedded tokens.
        query_scale: multiplies attention scores; None for h^-1/2.
        attention_softcap, logit_softcap: bounds by tanh; None for none.
        local: layers that attend to a window; None if there are none.
    """

    vocab_size: int
    width: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    max_length: int
    rope: Rope = PLAIN
    norm_epsilon: float = 1e-5
    tied: bool = True
    eos_ids: tuple[int, ...] = ()
    family: str = "llama"
    num_labels: int = 1
    activation: str = "silu"
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    query_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    local: Local | None = None

    def attended(self, begin: Any, count: Any) -> Any:
        """Positions that tokens following each other attend to, summed over them.

        Each attends to itself and to all before it, in layers of a window to no more
        than that; the sum is the mean over layers.

        Args:
            begin: the first token's position, counted from 0; a number or an array.
            count: how many tokens.
        """
        everywhere = count * (begin + (count + 1) / 2)
        if self.local is None:
            return everywhere

        def positive(x: Any) -> Any:
            return (x + abs(x)) / 2

        # Positions out of sight rise by one a token: from ``first`` on, or from zero.
        first = begin + 1 - self.local.window
        some = positive(count - positive(-first))
        hidden = some * (positive(first) + positive(first + count - 1)) / 2
        return everywhere - hidden * sum(self.local.layers) / self.num_layers

    @property
    def longest(self) -> int:
        """The longest context that the weights were trained for, in tokens."""
        scaling = self.rope.scaling
        if isinstance(scaling, LongRopeScaling):
            return scaling.stretched
        return self.max_length

    def flops_per_token(self, context: float, *, head: bool = True) -> float:
        """Forward FLOPs of one token that attends to ``context`` positions.

        Two per weight of every matrix product (the embedding's table look-up is none)
        and four per head width, query head and attended position.

        Args:
            context: how many positions are attended to; fewer in a window.
            head: whether the language-model head runs, as it does where a next token is
                drawn and not where a prompt or a solution is only read.
        """
        attention = self.head_width * (self.num_heads + self.num_kv_heads) * 2
        block = self.width * (attention + 3 * self.hidden)
        attended = self.num_layers * context
        if self.local is not None:
            hidden = max(context - self.local.window, 0.0)
            attended -= sum(self.local.layers) * hidden
        scores = 2 * self.num_heads * self.head_width * attended
        logits = self.width * self.vocab_size if head else 0
        return 2.0 * (self.num_layers * block + scores + logits)
