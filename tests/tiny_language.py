"""A language model small enough to enumerate: letters, random weights, short texts."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsi.decoding.boundary import step_boundary
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.decoder_config import DecoderConfig
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.process_reward import ProcessReward
from tsi.rewards.reward import Prompts

ALPHABET = "abcdefghijklmnopqrs"


def encode(text: str) -> list[int]:
    return [ALPHABET.index(letter) + 1 for letter in text]


def decode(tokens: list[int]) -> str:
    return "".join(ALPHABET[token - 1] for token in tokens if token)


def config(vocab_size: int = len(ALPHABET) + 1, **changes) -> DecoderConfig:
    shape = {
        "vocab_size": vocab_size,
        "width": 32,
        "hidden": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_width": 8,
        "max_length": 96,
    }
    return DecoderConfig(**(shape | changes))


def models(vocab_size: int = len(ALPHABET) + 1, sharpness: float = 1.0):
    """A policy and a reward model with random weights; 0 is the end token."""
    policy = LanguageModel(config(vocab_size), rngs=nnx.Rngs(0))
    # Above 4 every particle writes the same: what is sharp can hide what is wrong.
    embedding = policy.trunk.embedding
    embedding[...] = embedding[...] * sharpness
    reward = RewardModel(config(vocab_size), rngs=nnx.Rngs(1))
    reward.score.kernel[...] = reward.score.kernel[...] * 2.0
    return policy, reward


def boundary(vocab_size: int = len(ALPHABET) + 1, delimiter: bytes = b"c"):
    texts = [b"", *(letter.encode() for letter in ALPHABET[: vocab_size - 1])]
    return step_boundary(texts, delimiter, [0])


def target(**changes) -> ReasoningTarget:
    arguments = {
        "boundary": boundary(),
        "reward": ProcessReward(),
        "max_step_tokens": 6,
        "max_tokens": 24,
        "max_steps": 8,
    }
    return ReasoningTarget(**(arguments | changes))


def prompts(*texts: str, width: int = 16) -> Prompts:
    rows = [encode(text) + [0] * (width - len(text)) for text in texts]
    return Prompts(jnp.asarray(rows), jnp.asarray([len(text) for text in texts]))


def params(
    *texts: str, temperature: float = 1.0, sharpness: float = 1.0
) -> ReasoningParams:
    policy, reward = models(sharpness=sharpness)
    return ReasoningParams(policy, reward, prompts(*texts), jnp.float32(temperature))


@jax.jit
def _whole(p: ReasoningParams, sequences):
    return jax.nn.log_softmax(p.policy(sequences)), p.reward_model(sequences)


def uncached(p: ReasoningParams, rows: list[tuple[str, list[int]]], width: int = 40):
    """log p(tokens | prompt) and the reward's log-odds, [R] each, without any cache.

    Rows are padded on the right, where a causal model cannot see the padding.
    """
    starts = [encode(prompt) for prompt, _ in rows]
    sequences = np.zeros((len(rows), width), np.int32)
    for sequence, start, (_, tokens) in zip(sequences, starts, rows, strict=True):
        sequence[: len(start) + len(tokens)] = [*start, *tokens]
    log_p, log_odds = jax.device_get(_whole(p, sequences))
    totals, last = [], []
    for row, (start, (_, tokens)) in enumerate(zip(starts, rows, strict=True)):
        places = np.arange(len(tokens)) + len(start)
        totals.append(log_p[row, places - 1, tokens].sum())
        last.append(log_odds[row, len(start) + len(tokens) - 1])
    return np.asarray(totals), np.asarray(last)
