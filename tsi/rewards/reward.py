"""Rewards: numbers in (0, 1) for prefixes, read incrementally and given as log-odds.

A reward has its own state, which is forked along with the particles, and reads only the
new tokens of each step. The kinds are:

- :class:`ProcessReward`: a token-scoring model that reads the policy's own token ids,
- :class:`SelfJudge`: the policy's one-token judgement, on the policy's own cache,
- :class:`PolicyValue`: a value head on the policy's hidden states, on its cache,
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

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.cache import Suffix, append, cut, empty_suffix, fork, keep, take
from tsi.decoding.token_confidence import TokenConfidence
from tsi.errors import ConfigurationError
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.decoder_config import DecoderConfig
from tsi.models.layers import Segment
from tsi.models.prefill import read_prompts
from tsi.numeric_arguments import check_numbers
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


class ProcessRewardState(NamedTuple):
    """Shared prompt, forked suffix, and prompt length of each row."""

    prompt: Segment
    suffix: Suffix
    prompt_lengths: Int[Array, " R"]


class PolicyTokens:
    """A reward that reads the policy's tokens instead of the question's text."""

    reads_ids = False

    @property
    def token_confidence(self) -> TokenConfidence | None:
        return None

    def prepare(self, questions: Sequence[str]) -> Any:
        return None


class ProcessReward(PolicyTokens):
    """A reward model with a token head.

    ``params.reward_model`` is a :class:`RewardModel` with the policy's tokenizer. Its
    output at the last token of the newest step is the reward of the whole prefix.
    """

    reads_ids = True

    def init(
        self, prompts: Prompts, rows: int, capacity: int, params: Models
    ) -> ProcessRewardState:
        model: RewardModel = params.reward_model
        key_values = read_prompts(model.trunk, prompts.tokens, prompts.mask)
        return ProcessRewardState(
            Segment(*key_values, prompts.mask),
            empty_suffix(model.config, rows, capacity, key_values.keys.dtype),
            jnp.repeat(prompts.lengths, rows // prompts.lengths.shape[0]),
        )

    def read(
        self, state: ProcessRewardState, step: Step, params: Models
    ) -> tuple[ProcessRewardState, Reading]:
        model: RewardModel = params.reward_model
        offsets = jnp.arange(step.tokens.shape[1])
        positions = (state.prompt_lengths + step.start)[:, None] + offsets
        hidden, key_values = model.trunk(
            step.tokens,
            positions,
            offsets < step.counts[:, None],
            (state.prompt, state.suffix.segment),
        )
        last = jnp.maximum(step.counts - 1, 0)
        hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        suffix = append(state.suffix, key_values, step.counts, step.max_steps)
        return state._replace(suffix=suffix), Reading(
            model.log_odds(hidden), step.counts
        )

    def fork(
        self, state: ProcessRewardState, ancestors: Int[Array, " R"]
    ) -> ProcessRewardState:
        return state._replace(suffix=fork(state.suffix, ancestors))

    def take(
        self, state: ProcessRewardState, rows: Int[Array, " W"]
    ) -> ProcessRewardState:
        return state._replace(
            suffix=take(state.suffix, rows),
            prompt_lengths=state.prompt_lengths[rows],
        )

    def keep(
        self,
        stored: ProcessRewardState,
        slots: Int[Array, " W"],
        rows: ProcessRewardState,
    ) -> ProcessRewardState:
        return stored._replace(suffix=keep(stored.suffix, slots, rows.suffix))

    def cut(
        self, state: ProcessRewardState, lengths: Int[Array, " R"]
    ) -> ProcessRewardState:
        return state._replace(suffix=cut(state.suffix, lengths))

    def reader(self, params: Models) -> DecoderConfig:
        return params.reward_model.config

    reads_prompts = True


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


@dataclasses.dataclass(frozen=True)
class SelfJudge(Stateless):
    """The policy's own one-token judgement of a prefix (arXiv 2410.02725).

    The policy reads a question after the prefix, on its own cache. The log-odds are
    log p(yes) − log p(no) of the next token. Only the prefix's last token and the
    question's tokens are read, and nothing is stored.

    Attributes:
        question: token ids of the question, at least one. The first may be the token
            that ends the policy's turn; it is omitted after a solution that already
            ends with this token.
        yes, no: ids of the two answers.

    Raises:
        ConfigurationError: the question is empty, or an answer is not a number.
    """

    question: tuple[int, ...]
    yes: int
    no: int

    def __post_init__(self) -> None:
        check_numbers("A SelfJudge", yes=self.yes, no=self.no)
        if not self.question:
            raise ConfigurationError(
                "The question of a SelfJudge has no tokens. Give the token ids of the "
                "question that the policy answers about its own text."
            )

    @property
    def positions_beyond(self) -> int:
        """Number of further positions that are read after the longest solution."""
        return len(self.question)

    def read(self, state: State, step: Step, params: Models) -> tuple[State, Reading]:
        policy = params.policy
        context = step.policy
        question = jnp.asarray(self.question, jnp.int32)
        size = len(self.question)
        ended = step.stopped & (context.pending == question[0])
        length = jnp.where(ended, size, size + 1)
        places = jnp.arange(size + 1)
        # A row that ends with the question's first token continues with the second.
        asked = question[jnp.minimum(places - 1 + ended[:, None], size - 1)]
        tokens = jnp.where(places == 0, context.pending[:, None], asked)
        # In those rows the last place is padding; no earlier token attends to it.
        hidden, _ = policy.trunk(
            tokens,
            context.position[:, None] + places,
            None,
            context.segments,
        )
        last = (length - 1)[:, None, None]
        logits = policy.logits(jnp.take_along_axis(hidden, last, axis=1)[:, 0])
        return state, Reading(
            logits[:, self.yes] - logits[:, self.no],
            jnp.where(step.counts > 0, length, 0),
            context.position,
        )

    def reader(self, params: Models) -> DecoderConfig:
        return params.policy.config


class PolicyValue(Stateless):
    """A value head on the policy's hidden state at the newest step's last token.

    ``params.reward_model`` is a :class:`tsi.models.heads.ValueHead`. The policy has not
    read this token yet, so it is read here, with the policy's cache.
    """

    def read(self, state: State, step: Step, params: Models) -> tuple[State, Reading]:
        hidden = newest_hidden(params.policy, step.policy)
        return state, Reading(
            params.reward_model.log_odds(hidden),
            jnp.where(step.counts > 0, 1, 0),
            step.policy.position,
        )

    def reader(self, params: Models) -> DecoderConfig:
        return params.policy.config


class NoReward(Stateless):
    """Log-odds 0 (reward 0.5) for every prefix; no model is used."""

    def read(self, state: State, step: Step, params: Any) -> tuple[State, Reading]:
        zeros = jnp.zeros_like(step.counts)
        return state, Reading(zeros.astype(weight_dtype()), zeros)

    def reader(self, params: Any) -> None:
        return None
