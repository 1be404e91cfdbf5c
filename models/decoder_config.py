"""The shape of a model, and the FLOPs of a token."""

import dataclasses
from typing import Any, NamedTuple

from tsi.models.rotary import LongRopeScaling, Rope

DEFAULT_ROPE = Rope()


class SlidingWindow(NamedTuple):
    """Sliding-window attention in some of the layers.

    Attributes:
        size: how many positions a query attends to, its own included.
        layers: for each of the L layers, whether it has the window.
        rope: the rotary embedding of these layers.
    """

    size: int
    layers: tuple[bool, ...]
    rope: Rope


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a model; the defaults are those of Llama.

    Attributes:
        family: a key of :data:`tsi.models.families.architectures.FAMILIES`.
        num_labels: outputs of the head of a reward model.
        max_length: the context in tokens, the maximum length of a text.
        attention_bias: whether queries, keys and values have a bias.
        output_bias: whether the output projection of attention has a bias.
        mlp_bias: whether the three projections of the feed-forward layer have biases.
        query_key_norm: whether each head of queries and keys is normalised.
        post_norms: whether the output of each branch is normalised too.
        norm_offset: added to the stored scales of norms.
        embedding_scale: multiplies embedded tokens.
        query_scale: multiplies attention scores; None for h^-1/2.
        attention_softcap, logit_softcap: c in c tanh(x / c); None for no cap.
        sliding_window: the window of some layers; None if no layer has one.
    """

    vocab_size: int
    width: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    max_length: int
    rope: Rope = DEFAULT_ROPE
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
    sliding_window: SlidingWindow | None = None

    def count_attended(self, begin: Any, count: Any) -> Any:
        """The number of positions that consecutive tokens attend to, in total.

        Each token attends to itself and to all tokens before it, or to a window of
        them. The total is the mean over layers of the sum over tokens.

        Args:
            begin: position of the first token, counted from 0; a number or an array.
            count: how many tokens.
        """
        total = count * (begin + (count + 1) / 2)
        if self.sliding_window is None:
            return total

        def relu(x: Any) -> Any:
            return (x + abs(x)) / 2

        # The positions outside the window increase by one per token: from ``first`` on,
        # or from zero.
        first = begin + 1 - self.sliding_window.size
        num_outside = relu(count - relu(-first))
        hidden = num_outside * (relu(first) + relu(first + count - 1)) / 2
        return total - hidden * sum(self.sliding_window.layers) / self.num_layers

    @property
    def trained_length(self) -> int:
        """The longest context that the weights were trained for, in tokens."""
        scaling = self.rope.scaling
        if isinstance(scaling, LongRopeScaling):
            return scaling.stretched
        return self.max_length

    def flops_per_token(self, context: float, *, head: bool = True) -> float:
        """Forward FLOPs of one token that attends to ``context`` positions.

        2 FLOPs per weight of every matrix product (the look-up in the embedding costs
        none), and 4 per head width, query head and attended position.

        Args:
            context: how many positions are attended to; fewer in layers with a window.
            head: whether the vocabulary head runs, as it does to draw a next token, and
                does not to read a prompt or a solution.
        """
        attention = self.head_width * (self.num_heads + self.num_kv_heads) * 2
        block = self.width * (attention + 3 * self.hidden)
        attended = self.num_layers * context
        if self.sliding_window is not None:
            num_outside = max(context - self.sliding_window.size, 0.0)
            attended -= sum(self.sliding_window.layers) * num_outside
        scores = 2 * self.num_heads * self.head_width * attended
        logits = self.width * self.vocab_size if head else 0
        return 2.0 * (self.num_layers * block + scores + logits)
