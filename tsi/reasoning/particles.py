"""The particles of reasoning: solutions so far, and what models need to extend them."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.cache import Suffix
from tsi.decoding.decode_step import Temperatures
from tsi.decoding.repetition import mark_seen
from tsi.decoding.truncation import Truncation
from tsi.models.decoder import LanguageModel
from tsi.models.layers import Segment
from tsi.rewards.reward import Prompts

StepIndex = Int[Array, ""] | Int[Array, " R"] | int
"""The index t of a step, one number or each row's own."""


class ReasoningParams(NamedTuple):
    """Everything that is an argument of the compiled programs.

    Attributes:
        policy: the language model that writes steps.
        reward_model: its weights, or None.
        prompts: the problems' prompts.
        temperature: of the policy's tokens; 0 means the most likely token. The policy
            *at this temperature* is the p of the target.
        proposal_temperature: tokens are drawn at this temperature instead, and log p -
            log q is reported; None draws from the policy itself.
        truncation: tokens that the policy may write; it is this policy that p means.
        repetition_penalty: the price of tokens that were read before, which belongs to
            that policy as well (:mod:`tsi.decoding.repetition`).
    """

    policy: LanguageModel
    reward_model: Any
    prompts: Prompts
    temperature: Float[Array, ""]
    proposal_temperature: Float[Array, ""] | None = None
    truncation: Truncation | None = None
    repetition_penalty: Float[Array, ""] | None = None

    @property
    def temperatures(self) -> Temperatures:
        """What tokens are drawn by."""
        return Temperatures(
            self.temperature,
            self.proposal_temperature,
            self.truncation,
            self.repetition_penalty,
        )

    def mark_seen(
        self, tokens: Int[Array, "R T"], lengths: Int[Array, " R"]
    ) -> Bool[Array, "R V"] | None:
        """Mark tokens of each row's prompt and solution; None without a penalty."""
        if self.repetition_penalty is None:
            return None
        prompts, size = self.prompts, self.policy.config.vocab_size
        return mark_seen(prompts.tokens, prompts.lengths, tokens, lengths, size)


class Cost(NamedTuple):
    """What each slot has spent, ``[R]`` each; stays with the slot when rows fork.

    ``repeated`` tokens were read by the policy to be scored, not drawn. ``*_context``
    sums the positions that each token attended to, as
    :meth:`tsi.models.decoder_config.DecoderConfig.attended` counts them.
    """

    generated: Int[Array, " R"]
    generated_context: Float[Array, " R"]
    reward_read: Int[Array, " R"]
    reward_context: Float[Array, " R"]
    repeated: Int[Array, " R"]
    repeated_context: Float[Array, " R"]


def no_cost(rows: int) -> Cost:
    """Of rows that have spent nothing."""
    zeros, floats = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.float32)
    return Cost(zeros, floats, zeros, floats, zeros, floats)


class History(NamedTuple):
    """What cannot be recomputed when a row is cut back: ``[R, M]``, after each step."""

    boundary_state: Int[Array, "R M"]
    log_prob: Float[Array, "R M"]
    log_proposal: Float[Array, "R M"]
    log_odds: Float[Array, "R M"]


class Particles(NamedTuple):
    """R solutions so far.

    Attributes:
        tokens: ``[R, T]`` generated ids; ``lengths`` of them are real.
        step_ends: ``[R, M]``, length after each step.
        pending: ``[R]``, the newest token, not yet in the policy's cache.
        boundary_state: ``[R]``, of the boundary's automaton after that token; a
            delimiter may lie across the cut of a step that grew too long.
        finished: ``[R]``, ended by itself or at the token limit.
        truncated: ``[R]``, ended at the token limit.
        log_prob: ``[R]``, log p(steps | prompt) at the policy's temperature.
        log_proposal: ``[R]``, log q of the same; what p cannot write counts as 0.
        log_odds: ``[R]``, the reward of the prefix.
        history: the numbers above after each step, to cut back to.
        prompt, suffix: the policy's two cache segments.
        reward_state: the reward's own.
        cost: see :class:`Cost`.
    """

    tokens: Int[Array, "R T"]
    lengths: Int[Array, " R"]
    step_ends: Int[Array, "R M"]
    pending: Int[Array, " R"]
    boundary_state: Int[Array, " R"]
    finished: Bool[Array, " R"]
    truncated: Bool[Array, " R"]
    log_prob: Float[Array, " R"]
    log_proposal: Float[Array, " R"]
    log_odds: Float[Array, " R"]
    history: History
    prompt: Segment
    suffix: Suffix
    reward_state: Any
    cost: Cost
