r"""Which past would go with a given future: weights for ancestor and backward sampling.

Given the steps x'_{t:L} of a path and n prefixes x^i_{<t} with weights W^i, a past is
drawn with probability proportional to

    W^i  p(x'_{t:L} | x^i_{<t})  exp(s(x^i_{<t}, x'_{t:L}) - s(x^i_{<t})),

s being the target's path weight. Where the target is not Markov the whole future counts
[1, section 5], so the prefixes repeat its steps in scratch slots, one a turn, and its
log-probability and potentials are told. A prefix whose solution ends before the future
does, or has not ended with it, is no past of it.

References:
    [1] Lindsten, Jordan and Schoen 2014, arXiv 1401.0604 (ancestor sampling).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.explorer import Reply
from tsi.samplers.parts.path_record import PathRecord, extend_record, log_density
from tsi.weights import centre, sanitise


class Scoring(NamedTuple):
    """Candidates that repeat a path's future.

    Attributes:
        joined: the numbers of each past and as much of the future as it has repeated.
        possible: candidates that are not known to be impossible.
        step: the step repeated next.
    """

    joined: PathRecord
    possible: Bool[Array, "n"]
    step: Int[Array, ""]


def scoring(
    pasts: PathRecord,
    ended: Bool[Array, "n"],
    length: Int[Array, ""],
    step: Int[Array, ""],
) -> Scoring:
    """Candidates before the first repeated step.

    Args:
        pasts: their numbers.
        ended: which of them are whole solutions.
        length: L of the path whose future is repeated.
        step: t; the future is empty from L on, and then only whole solutions fit.
    """
    return Scoring(pasts, jnp.where(length > step, ~ended, ended), step)


def repeat_step(state: Scoring, reply: Reply, length: Int[Array, ""]) -> Scoring:
    """Candidates after a turn in which those possible took one more step."""
    joined = extend_record(state.joined, reply, state.possible)
    step = state.step + 1
    fits = reply.finished == (step >= length)
    return Scoring(joined, state.possible & fits, step)


def log_past_weights(
    state: Scoring,
    pasts: PathRecord,
    log_weights: Float[Array, "n"],
    step: Int[Array, ""],
    score: Callable[..., Array],
) -> Float[Array, "n"]:
    """Log weights of the candidates, -inf for those that do not fit.

    Args:
        state: when the whole future has been repeated.
        pasts: as given to `scoring`.
        log_weights: W of the pasts.
        step: t.
        score: s.
    """
    future = state.joined.live & (jnp.arange(state.joined.log_probs.shape[-1]) >= step)
    log_p = jnp.sum(jnp.where(future, state.joined.log_probs, 0.0), axis=-1)
    gain = log_density(state.joined, score) - log_density(pasts, score)
    alive = state.possible & (log_weights > -jnp.inf)
    gain, _ = centre(gain, where=alive)
    return jnp.where(alive, sanitise(log_weights + log_p + gain), -jnp.inf)
