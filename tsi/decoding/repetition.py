"""The repetition penalty: tokens that occurred before become less likely.

Before temperature and truncation, the logit of every token in the prompt or the
solution so far is divided by the penalty if the logit is positive, and multiplied by it
if the logit is negative. arXiv 1909.05858, section 4.1, always divides; the two cases
follow transformers' generation. The penalty is part of the policy: the penalised
distribution is the p of the target, in draws, repeated steps and proposals.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tsi.errors import ConfigurationError


def check_penalty(penalty: Any) -> None:
    """Refuse a penalty that is not a positive number.

    Raises:
        ConfigurationError: see above.
    """
    number = np.ndim(penalty) == 0 and np.asarray(penalty).dtype.kind in "fiu"
    if not number or not 0.0 < penalty < math.inf:
        raise ConfigurationError(
            f"repetition_penalty is {penalty!r}. Give a finite number above 0, where 1 "
            "changes nothing, or None."
        )


def penalise(
    logits: Float[Array, "*b V"], seen: Bool[Array, "*b V"], penalty: Float[Array, ""]
) -> Float[Array, "*b V"]:
    """Lower the logits of tokens that have been seen."""
    penalised_logits = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, penalised_logits, logits)


def mark_seen(
    prompts: Int[Array, "P W"],
    prompt_lengths: Int[Array, " P"],
    tokens: Int[Array, "R T"],
    lengths: Int[Array, " R"],
    vocab_size: int,
) -> Bool[Array, "R V"]:
    """Mark the tokens in the prompt and the solution of each row, R = P n."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    each = tokens.shape[0] // prompts.shape[0]
    prompts, prompt_lengths = (
        jnp.repeat(x, each, axis=0) for x in (prompts, prompt_lengths)
    )
    seen = jnp.zeros((tokens.shape[0], vocab_size), bool)
    for ids, count in ((prompts, prompt_lengths), (tokens, lengths)):
        valid = jnp.arange(ids.shape[1]) < count[:, None]
        # Padding is written out of range and dropped.
        seen = seen.at[rows, jnp.where(valid, ids, vocab_size)].set(True, mode="drop")
    return seen


def mark_seen_within(
    seen: Bool[Array, "R V"], tokens: Int[Array, "R C"], counts: Int[Array, " R"]
) -> Bool[Array, "R C V"]:
    """Mark the tokens before each token of a step that is read in one pass."""
    places = jnp.arange(tokens.shape[1])
    rows = jnp.arange(tokens.shape[0])[:, None]
    first = jnp.where(seen, -1, tokens.shape[1])
    at = jnp.where(places < counts[:, None], tokens, seen.shape[1])
    first = first.at[rows, at].min(
        jnp.broadcast_to(places, tokens.shape).astype(first.dtype), mode="drop"
    )
    return first[:, None, :] < places[:, None]
