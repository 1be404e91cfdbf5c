"""Small reward models of every format, and what they say of a text read at once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tiny_language as tiny
import tokenizers
from flax import nnx
from small_checkpoints import SPECIALS, TEMPLATE, small_config
from tokenizers import AddedToken, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models

from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.heads import ProcessScorer, SequenceScorer, ValueScorer
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.rewards import formats
from tsi.rewards.formatted import FormattedReward
from tsi.rewards.likelihood_ratio import LikelihoodRatio

QUESTIONS = ("hello", "bad")
MAX_STEPS, STEP_TOKENS = 5, 4
MAX_TOKENS = MAX_STEPS * STEP_TOKENS


@functools.cache
def tokenizer() -> Tokenizer:
    """Byte pairs learnt without word boundaries, so that steps run into each other."""
    backend = tokenizers.Tokenizer(token_models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[
            AddedToken(name, special=True, normalized=False)
            for name in (*SPECIALS, "<extra_0>")
        ],
    )
    rng = np.random.default_rng(0)
    letters = ["".join(rng.choice(list(tiny.ALPHABET), 60)) for _ in range(20)]
    letters += [f"{text} ки\n{text} + -\n" for text in letters]
    backend.train_from_iterator(letters, trainer)
    return Tokenizer(backend, bos_id=0, eos_ids=[2], chat_template=TEMPLATE)


class Kind(NamedTuple):
    """A format, the kind of model that it reads, and a way to aggregate."""

    format: type
    model: type
    aggregation: str = "last"


KINDS = {
    "qwen": Kind(formats.QwenFormat, ProcessScorer, "product"),
    "qwen-model": Kind(formats.QwenFormat, ProcessScorer, "model"),
    "math-shepherd": Kind(formats.MathShepherdFormat, LanguageModel, "min"),
    "rlhflow": Kind(formats.RLHFlowFormat, LanguageModel, "mean"),
    "skywork": Kind(formats.SkyworkFormat, ValueScorer),
    "outcome": Kind(formats.OutcomeFormat, SequenceScorer),
    "likelihood": Kind(formats.ContinuationFormat, LanguageModel),
}
ROOM = 256


def reward_of(name: str, **changes):
    """The reward, with passes so narrow that a step takes several."""
    kind = KINDS[name]
    format = kind.format(tokenizer())
    arguments = {"max_steps": MAX_STEPS, "max_tokens": ROOM, "width": 8} | changes
    if name == "likelihood":
        return LikelihoodRatio(format, tiny.decode, beta=0.5, **arguments)
    how = {"aggregation": kind.aggregation}
    return FormattedReward(format, tiny.decode, **(how | arguments))


@functools.cache
def model_of(name: str):
    """A sharp random model, so that a wrong token shows."""
    kind = KINDS[name].model
    config = small_config(
        vocab_size=tokenizer().vocab_size,
        num_layers=2,
        max_length=ROOM,
        num_labels=2 if kind is ProcessScorer else 1,
    )
    model = kind(config, rngs=nnx.Rngs(3))
    embedding = model.trunk.embedding
    embedding[...] = embedding[...] * 4.0
    return model


@jax.jit
def _whole(model, tokens):
    if isinstance(model, RewardModel):
        return model(tokens)
    return jax.nn.log_softmax(model(tokens))


def at_once(name: str, rows: list[tuple[str, list[str], bool, float]]) -> np.ndarray:
    """Log-odds without a cache: question, steps, whether ended, the policy's log p."""
    reward, model = reward_of(name), model_of(name)
    if name == "qwen-model":
        rows = [(q, ["".join(steps)], *rest) for q, steps, *rest in rows]
    found = [reward.format.render(*row[:3]) for row in rows]
    tokens = np.zeros((len(rows), ROOM), np.int32)
    for row, rendering in zip(tokens, found, strict=True):
        row[: len(rendering.tokens)] = rendering.tokens
    said = np.asarray(_whole(model, jnp.asarray(tokens)), np.float64)
    values = []
    for row, rendering in enumerate(found):
        ids, marks = rendering
        if name == "likelihood":
            places = np.arange(marks[0], marks[1])
            log_p = said[row, places, np.asarray(ids)[places + 1]].sum()
            values.append(0.5 * (log_p - rows[row][3]))
            continue
        scores = said[row, marks]
        if reward.format.answers is not None:
            good, bad = reward.format.answers
            scores = scores[:, good] - scores[:, bad]
        values.append(by_hand(scores, reward.aggregation))
    return np.asarray(values)


def by_hand(log_odds: np.ndarray, how: str) -> float:
    """The textbook formula."""
    rewards = 1 / (1 + np.exp(-log_odds))
    ways = {"last": lambda r: r[-1], "min": min, "product": np.prod, "mean": np.mean}
    reward = ways[how](rewards)
    return float(np.log(reward) - np.log1p(-reward))
