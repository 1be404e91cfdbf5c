"""Rewards: numbers in (0, 1) for prefixes, read incrementally and given as log-odds.

A reward has its own state, which is forked along with the particles, and reads only the
new tokens of each step. The kinds are:

- :class:`tsi.rewards.process_reward.ProcessReward`: a token-scoring model that reads
  the policy's own token ids,
- :class:`tsi.rewards.self_judge.SelfJudge`: the policy's one-token judgement, on the
  policy's own cache,
- :class:`tsi.rewards.policy_value.PolicyValue`: a value head on the policy's hidden
  states, on its cache,
- :class:`tsi.rewards.policy_confidence.PolicyConfidence`: numbers that the policy's
  decoder records for each token,
- :class:`tsi.rewards.text_reward.TextReward`: a Python function of the text,
- :class:`tsi.rewards.verifier.Verifier`: a Python function of question and text,
- :class:`NoReward`: log-odds 0, for methods that use no reward,
- :class:`tsi.rewards.formatted.FormattedReward`: a published reward model, with its own
  tokenizer and prompt format,
- :class:`tsi.rewards.likelihood_ratio.LikelihoodRatio`: the likelihood of a larger
  model over that of the policy.

:class:`tsi.rewards.aggregation.Aggregated` combines the scores of all steps into one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.token_confidence import TokenConfidence
from tsi.models.attention import Segment
from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import DecoderConfig
from tsi.weights import weight_dtype

State = TypeVar("State")


class Prompts(NamedTuple):
    """P prompts, padded on the right.

    Attributes:
        tokens: ``[P, S]`` ids.
        lengths: ``[P]``, at least 1 each.
        questions: the result of the reward's ``prepare`` for the problems' questions.
    """

    tokens: Int[Array, "P S"]
    lengths: Int[Array, " P"]
    questions: Any = None

    @property
    def mask(self) -> Bool[Array, "P S"]:
        """True at tokens, False at padding."""
        return jnp.arange(self.tokens.shape[1]) < self.lengths[:, None]


def as_int32(prompts: Prompts) -> Prompts:
    """Prompts whose numbers are int32; a list makes an int64 array under x64."""
    tokens, lengths = prompts.tokens, prompts.lengths
    return prompts._replace(
        tokens=tokens.astype(jnp.int32), lengths=lengths.astype(jnp.int32)
    )


class Step(NamedTuple):
    """The input of a reward after all rows have ended a step.

    Attributes:
        tokens: ``[R, C]``, the step's new tokens: the first ``counts`` of each row.
        counts: ``[R]``, zero for rows that had finished before this step.
        start: ``[R]``, number of generated tokens before this step.
        solution: ``[R, T]``, all generated tokens, including those of this step.
        stopped: ``[R]``, whether the step's last token ends the solution.
        finished: ``[R]``, whether the row takes no further step: the solution has
            ended or reached a limit.
        log_prob: ``[R]``, the policy's log p of the solution, at its temperature.
        policy: the policy's caches, including this step.
        max_steps: the step limit of the run; static.
        confidences: ``[R, C]``, the policy's confidence at each of the step's tokens;
            None if the reward has no `token_confidence`.
    """

    tokens: Int[Array, "R C"]
    counts: Int[Array, " R"]
    start: Int[Array, " R"]
    solution: Int[Array, "R T"]
    stopped: Bool[Array, " R"]
    finished: Bool[Array, " R"]
    log_prob: Float[Array, " R"]
    policy: "PolicyContext"
    max_steps: int
    confidences: Float[Array, "R C"] | None = None


class PolicyContext(NamedTuple):
    """The policy's caches after a step: all tokens but the last one, ``pending``."""

    segments: tuple[Segment, ...]
    pending: Int[Array, " R"]
    position: Int[Array, " R"]


def newest_hidden(policy: LanguageModel, context: PolicyContext) -> Float[Array, "R D"]:
    """The policy's hidden state at each row's newest token, read with its caches."""
    hidden, _ = policy.trunk(
        context.pending[:, None],
        context.position[:, None],
        None,
        context.segments,
    )
    return hidden[:, 0]


class Reading(NamedTuple):
    """Log-odds of prefixes, and the tokens that were read to compute them.

    Attributes:
        log_odds: ``[R]``.
        tokens_read: ``[R]``, number of consecutive tokens that were read.
        begin: ``[R]``, position of the first of these tokens. Each token attends to all
            positions before it and to itself. None if they are the step's own tokens.
    """

    log_odds: Float[Array, " R"]
    tokens_read: Int[Array, " R"]
    begin: Int[Array, " R"] | None = None


@runtime_checkable
class Models(Protocol):
    """The weights that a reward uses.

    :class:`tsi.reasoning.particles.ReasoningParams` has these fields.
    """

    @property
    def policy(self) -> LanguageModel:
        """The language model that writes the steps."""

    @property
    def reward_model(self) -> Any:
        """The reward model's weights, or None."""


@runtime_checkable
class Reward(Protocol):
    """The interface of a reward for :class:`tsi.reasoning.target.ReasoningTarget`."""

    def prepare(self, questions: Sequence[str]) -> Any:
        """Encode the texts of P questions for ``init``, as arrays ``[P, ...]``.

        None if the reward does not read the questions. If the prompts that are read are
        not the policy's own, the result has an attribute ``lengths [P]``, their numbers
        of tokens.
        """

    def init(self, prompts: Prompts, rows: int, capacity: int, params: Any) -> Any:
        """State of R rows before the first step, with ``capacity`` cache slots each."""

    def read(self, state: Any, step: Step, params: Any) -> tuple[Any, Reading]:
        """Read the new tokens of a step and score each row's prefix."""

    def fork(self, state: Any, ancestors: Int[Array, " R"]) -> Any:
        """Give each row its ancestor's state."""

    def take(self, state: Any, rows: Int[Array, " W"]) -> Any:
        """Take the states of W rows out of a store, with caches without gaps."""

    def keep(self, stored: Any, slots: Int[Array, " W"], rows: Any) -> Any:
        """Overwrite the stored rows at ``slots`` with the state of W rows."""

    def cut(self, state: Any, lengths: Int[Array, " R"]) -> Any:
        """Forget all but the first ``lengths`` tokens of each row."""

    def reader(self, params: Any) -> DecoderConfig | None:
        """The model that reads tokens, for the cost ledger; None if no model does."""

    @property
    def reads_prompts(self) -> bool:
        """Whether prompts are read by a model other than the policy."""

    @property
    def reads_ids(self) -> bool:
        """Whether another model reads the policy's token ids and needs their rows."""

    @property
    def token_confidence(self) -> TokenConfidence | None:
        """The confidence that is recorded at each token; None for no confidence."""


class PolicyTokens:
    """A reward that reads the policy's tokens instead of the question's text."""

    reads_ids = False

    @property
    def token_confidence(self) -> TokenConfidence | None:
        return None

    def prepare(self, questions: Sequence[str]) -> Any:
        return None


class Stateless(PolicyTokens):
    """A reward that keeps no state and reads no prompt."""

    def init(
        self, prompts: Prompts, rows: int, capacity: int, params: Any
    ) -> tuple[Any, ...]:
        return ()

    def fork(self, state: State, ancestors: Int[Array, " R"]) -> State:
        return state

    def take(self, state: State, rows: Int[Array, " W"]) -> State:
        return state

    def keep(self, stored: State, slots: Int[Array, " W"], rows: State) -> State:
        return stored

    def cut(self, state: State, lengths: Int[Array, " R"]) -> State:
        return state

    reads_prompts = False


class NoReward(Stateless):
    """Log-odds 0 (reward 0.5) for every prefix; no model is used."""

    def read(self, state: State, step: Step, params: Any) -> tuple[State, Reading]:
        zeros = jnp.zeros_like(step.counts)
        return state, Reading(zeros.astype(weight_dtype()), zeros)

    def reader(self, params: Any) -> None:
        return None
