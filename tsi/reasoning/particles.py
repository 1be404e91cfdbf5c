"""The particles of reasoning: solutions so far, with the caches that models need."""

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
"""The index t of a step: one number, or one per row."""


class ReasoningParams(NamedTuple):
    """The arguments of the compiled programs.

    Attributes:
        policy: the language model that generates steps.
        reward_model: its weights, or None.
        prompts: the problems' prompts.
        temperature: of the policy's tokens; 0 means the most likely token. The policy
            *at this temperature* is the p of the target.
        proposal_temperature: of the proposal q, for which log p - log q is reported;
            None draws from the policy.
        truncation: restricts the tokens of the policy; p is the truncated policy.
        repetition_penalty: of tokens that occurred before; p is the penalised policy
            (:mod:`tsi.decoding.repetition`).
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
        """The parameters of drawing a token."""
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
    """The tokens that each slot has cost, ``[R]`` each; not moved when rows fork.

    ``generated`` tokens were drawn by the policy, ``repeated`` ones were read by it to
    compute their probability, and ``reward_read`` ones were read by the reward model.
    ``*_context`` is the sum of the positions that each token attended to, counted by
    :meth:`tsi.models.decoder_config.DecoderConfig.attended`.
    """

    generated: Int[Array, " R"]
    generated_context: Float[Array, " R"]
    reward_read: Int[Array, " R"]
    reward_context: Float[Array, " R"]
    repeated: Int[Array, " R"]
    repeated_context: Float[Array, " R"]


def no_cost(rows: int) -> Cost:
    """The cost of new rows: zero."""
    zeros, floats = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.float32)
    return Cost(zeros, floats, zeros, floats, zeros, floats)


class History(NamedTuple):
    """Values after each step, ``[R, M]``, to which a row that is cut back returns."""

    boundary_state: Int[Array, "R M"]
    log_prob: Float[Array, "R M"]
    log_proposal: Float[Array, "R M"]
    log_odds: Float[Array, "R M"]


class Particles(NamedTuple):
    """R solutions so far.

    Attributes:
        tokens: ``[R, T]`` generated ids, the first ``lengths`` of each row.
        step_ends: ``[R, M]``, length after each step.
        pending: ``[R]``, the newest token, not yet in the policy's cache.
        boundary_state: ``[R]``, of the boundary's automaton after that token; a
            delimiter may span the end of a step that was cut at its token limit.
        finished: ``[R]``, ended by itself or at the token limit.
        truncated: ``[R]``, ended at the token limit.
        log_prob: ``[R]``, log p(steps | prompt) at the policy's temperature.
        log_proposal: ``[R]``, log q of the same; a step with p = 0 counts as 0.
        log_odds: ``[R]``, the reward of the prefix.
        history: the values above after each step.
        prompt, suffix: the policy's two cache segments.
        reward_state: of the reward.
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
