"""A value head on the policy's hidden states, on the policy's own cache."""

import jax.numpy as jnp

from tsi.models.decoder_config import DecoderConfig
from tsi.rewards.reward import Models, Reading, State, Stateless, Step, newest_hidden


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
