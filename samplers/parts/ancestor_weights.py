r"""Weights of pasts for a given future, for ancestor and backward sampling.

Given the steps x'_{t:L} of a path and n prefixes x^i_{<t} with weights W^i, a past is
drawn with probability proportional to

    W^i  p(x'_{t:L} | x^i_{<t})  exp(s(x^i_{<t}, x'_{t:L}) - s(x^i_{<t})),

where s is the path weight of the target. If the target is not Markov, the whole future
counts [1, section 5]. So the prefixes repeat the steps of the future in scratch slots,
one step per turn, and the replies give its log probability and potentials. A prefix
that finishes before the future ends, or does not finish with it, has probability zero.

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
    """Candidates that repeat the future of a path.

    Attributes:
        joined: records of each past with the part of the future repeated so far.
        possible: candidates that may still have positive probability.
        step: the next step to repeat.
    """

    joined: PathRecord
    possible: Bool[Array, "n"]
    step: Int[Array, ""]


def start_scoring(
    pasts: PathRecord,
    ended: Bool[Array, "n"],
    length: Int[Array, ""],
    step: Int[Array, ""],
) -> Scoring:
    """Candidates before the first repeated step.

    Args:
        pasts: records of the candidates.
        ended: which of them are complete solutions.
        length: L of the path whose future is repeated.
        step: t; from L on the future is empty, and only complete solutions fit.
    """
    return Scoring(pasts, jnp.where(length > step, ~ended, ended), step)


def repeat_step(state: Scoring, reply: Reply, length: Int[Array, ""]) -> Scoring:
    """Update the candidates after a turn in which they repeated a step."""
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
    """Log weights of the candidates, -inf for impossible ones.

    Args:
        state: after the whole future has been repeated.
        pasts: as given to `start_scoring`.
        log_weights: W of the pasts.
        step: t.
        score: s.
    """
    future = state.joined.step_mask & (
        jnp.arange(state.joined.log_probs.shape[-1]) >= step
    )
    log_p = jnp.sum(jnp.where(future, state.joined.log_probs, 0.0), axis=-1)
    gain = log_density(state.joined, score) - log_density(pasts, score)
    alive = state.possible & (log_weights > -jnp.inf)
    gain, _ = centre(gain, where=alive)
    return jnp.where(alive, sanitise(log_weights + log_p + gain), -jnp.inf)
