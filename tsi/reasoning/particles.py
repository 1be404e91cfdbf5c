"""The particles of reasoning: solutions so far, with the caches of the models."""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.cache import Suffix
from tsi.decoding.repetition import mark_seen
from tsi.decoding.token_draws import Temperatures
from tsi.decoding.truncation import Truncation
from tsi.models.attention import Segment
from tsi.models.decoder import LanguageModel
from tsi.reasoning.cost import Cost
from tsi.rewards.reward import Prompts

StepIndex = Int[Array, ""] | Int[Array, " R"] | int
"""The index t of a step: one number, or one per row."""


class ReasoningParams(NamedTuple):
    """The arguments of the compiled programs.

    Attributes:
        policy: the language model that generates steps.
        reward_model: the reward model's weights, or None.
        prompts: the problems' prompts.
        temperature: of the policy's tokens; 0 means the most likely token. The policy
            *at this temperature* is the p of the target.
        proposal_temperature: temperature of the proposal q; log p - log q is reported.
            None draws from the policy.
        truncation: restricts the tokens of the policy; p is the truncated policy.
        repetition_penalty: penalty on tokens that occurred before; p is the penalised
            policy (:mod:`tsi.decoding.repetition`).
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
        """The parameters for drawing a token."""
        return Temperatures(
            self.temperature,
            self.proposal_temperature,
            self.truncation,
            self.repetition_penalty,
        )

    def mark_seen(
        self, tokens: Int[Array, "R T"], lengths: Int[Array, " R"]
    ) -> Bool[Array, "R V"] | None:
        """Mark the tokens in each row's prompt and solution; None without a penalty."""
        if self.repetition_penalty is None:
            return None
        prompts, size = self.prompts, self.policy.config.vocab_size
        return mark_seen(prompts.tokens, prompts.lengths, tokens, lengths, size)


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
        boundary_state: ``[R]``, state of the boundary's automaton after that token; a
            delimiter may continue across the end of a step that was cut at its token
            limit.
        finished: ``[R]``, whether it has ended, by itself or at the token limit.
        truncated: ``[R]``, whether it has ended at the token limit.
        log_prob: ``[R]``, log p(steps | prompt) at the policy's temperature.
        log_proposal: ``[R]``, log q of the same; a step with p = 0 counts as 0.
        log_odds: ``[R]``, the reward of the prefix.
        history: the values above after each step.
        prompt, suffix: the policy's two cache segments.
        reward_state: state of the reward.
        cost: see :class:`tsi.reasoning.cost.Cost`.
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


def without_caches(particles: Particles) -> Particles:
    """Particles without caches and costs: only leaves whose first axis is that of rows.

    The reward's state and the policy's caches have other axes, and costs do not move
    when rows move.
    """
    absent: dict[str, Any] = dict.fromkeys(("prompt", "suffix", "reward_state", "cost"))
    return particles._replace(**absent)
