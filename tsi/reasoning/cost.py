"""The cost of rows in tokens, counted step by step."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.models.decoder_config import DecoderConfig
from tsi.rewards.reward import Reading


class Cost(NamedTuple):
    """The cost of each slot in tokens, ``[R]`` each; not moved when rows fork.

    ``generated`` tokens were drawn by the policy, ``repeated`` ones were read by it to
    compute their probability, and ``reward_read`` ones were read by the reward model.
    ``*_context`` is the sum of the positions that each token attended to, counted by
    :meth:`tsi.models.decoder_config.DecoderConfig.count_attended`.
    """

    generated: Int[Array, " R"]
    generated_context: Float[Array, " R"]
    reward_read: Int[Array, " R"]
    reward_context: Float[Array, " R"]
    repeated: Int[Array, " R"]
    repeated_context: Float[Array, " R"]


def zero_cost(rows: int) -> Cost:
    """The cost of new rows: zero."""
    zeros, floats = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.float32)
    return Cost(zeros, floats, zeros, floats, zeros, floats)


def add_cost(
    cost: Cost,
    counts: Int[Array, " R"],
    reading: Reading,
    before: Int[Array, " R"],
    policy: DecoderConfig,
    reader: Any,
    *,
    is_drawn: bool,
) -> Cost:
    """Add the cost of one step of each row.

    Args:
        cost: the cost so far.
        counts: number of tokens of the step; 0 in rows that take no step.
        reading: which tokens the reward has read.
        before: number of positions before the step, including the prompt.
        policy: configuration of the policy, which counts attended positions.
        reader: configuration of the reward's model, or None.
        is_drawn: True if the policy drew the step, False if it read a repeated step.
    """
    read = jnp.where(counts > 0, reading.tokens_read, 0).astype(jnp.int32)
    if reader is not None:
        begin = before if reading.begin is None else reading.begin
        cost = cost._replace(
            reward_read=cost.reward_read + read,
            reward_context=cost.reward_context + reader.count_attended(begin, read),
        )
    # To draw a token, the policy reads the previous token.
    context = policy.count_attended(before - 1, counts)
    if is_drawn:
        return cost._replace(
            generated=cost.generated + counts,
            generated_context=cost.generated_context + context,
        )
    return cost._replace(
        repeated=cost.repeated + counts,
        repeated_context=cost.repeated_context + context,
    )
