"""The policy's own judgement of a prefix, by one token, on the policy's own cache."""

import dataclasses

import jax.numpy as jnp

from tsi.errors import ConfigurationError
from tsi.models.decoder_config import DecoderConfig
from tsi.numeric_arguments import check_numbers
from tsi.rewards.reward import Models, Reading, State, Stateless, Step


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
        has_ended = step.stopped & (context.pending == question[0])
        length = jnp.where(has_ended, size, size + 1)
        places = jnp.arange(size + 1)
        # A row that ends with the question's first token continues with the second.
        question_tokens = question[
            jnp.minimum(places - 1 + has_ended[:, None], size - 1)
        ]
        tokens = jnp.where(places == 0, context.pending[:, None], question_tokens)
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
