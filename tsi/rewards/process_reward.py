"""A reward model with a token head that reads the policy's own token ids."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from tsi.decoding.cache import Suffix, append, cut, empty_suffix, fork, keep, take
from tsi.models.attention import Segment
from tsi.models.decoder import RewardModel
from tsi.models.decoder_config import DecoderConfig
from tsi.models.prefill import read_prompts
from tsi.rewards.reward import Models, PolicyTokens, Prompts, Reading, Step


class ProcessRewardState(NamedTuple):
    """Shared prompt, forked suffix, and prompt length of each row."""

    prompt: Segment
    suffix: Suffix
    prompt_lengths: Int[Array, " R"]


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
