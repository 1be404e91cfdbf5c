"""Train a process reward model on Monte Carlo step labels.

The model has the policy's trunk with a scalar head and starts from a language model's
weights, since whoever can solve the next step can often judge it. The loss is the
binary cross-entropy against the soft label at the last token of each step, so that the
head's output is the log-odds that the policy gets it right from here.

References:
    Math-Shepherd, arXiv 2312.08935, equation 2 with soft labels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from scipy.stats import rankdata

from tsi.experiments.step_labels import LabelledSteps
from tsi.models.llama import Llama, RewardModel


class JudgeMetrics(NamedTuple):
    """How well a reward model judges steps of solutions it has not seen.

    Attributes:
        auc_on_track: area under the ROC curve of its reward for "this prefix can still
            end right", which a solver decides exactly; over all steps.
        auc_on_track_unfinished: the same without finished solutions.
        auc_finished: the same for finished solutions alone.
        auc_monte_carlo: for "more than half of the completions end right".
        cross_entropy: against the soft labels, in nats a step.
        num_steps: steps judged.
    """

    auc_on_track: float
    auc_on_track_unfinished: float
    auc_finished: float
    auc_monte_carlo: float
    cross_entropy: float
    num_steps: int


def reward_from(model: Llama, *, rngs: nnx.Rngs) -> RewardModel:
    """A reward model with a language model's trunk and a head that knows nothing."""
    reward = RewardModel(model.config, rngs=rngs)
    nnx.update(reward.trunk, nnx.state(model.trunk))
    # From zero the first predictions are even odds rather than noise.
    reward.score.kernel[...] = jnp.zeros_like(reward.score.kernel[...])
    return reward


def labelled_batch(
    data: LabelledSteps, size: int, seed: int, step: int
) -> tuple[Int[np.ndarray, "B T"], Float[np.ndarray, "B T"]]:
    """Rows of one step, a pure function of (data, seed, step): a shuffle an epoch."""
    count = len(data.tokens)
    epochs = np.arange(step * size, (step + 1) * size) // count
    offsets = np.arange(step * size, (step + 1) * size) % count
    rows = np.empty(size, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng((seed, int(epoch), 3)).permutation(count)
        rows[epochs == epoch] = order[offsets[epochs == epoch]]
    return data.tokens[rows], data.labels[rows]


def label_loss(
    model: RewardModel, batch: tuple[Int[Array, "B T"], Float[Array, "B T"]]
) -> Float[Array, ""]:
    """Mean binary cross-entropy over the labelled tokens."""
    tokens, labels = batch
    labelled = ~jnp.isnan(labels)
    losses = optax.sigmoid_binary_cross_entropy(
        model(tokens), jnp.where(labelled, labels, 0.0)
    )
    return (losses * labelled).sum() / labelled.sum()


def auc(scores: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """Chance that a true case scores above a false one, ties counting half.

    The Mann-Whitney form of the area under the ROC curve; NaN if either class is empty.
    """
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    above = rankdata(scores)[truth].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def judge(model: RewardModel, data: LabelledSteps, eos_id: int) -> JudgeMetrics:
    """Measure a reward model on labelled solutions."""
    forward = jax.jit(lambda model, tokens: model(tokens))
    log_odds = np.concatenate(
        [
            np.asarray(forward(model, data.tokens[start : start + 256]))
            for start in range(0, len(data.tokens), 256)
        ]
    )
    labelled = ~np.isnan(data.labels)
    scores, labels = log_odds[labelled], data.labels[labelled]
    truth = data.on_track[labelled]
    finished = data.tokens[labelled] == eos_id
    losses = np.logaddexp(0.0, scores) - labels * scores
    return JudgeMetrics(
        auc_on_track=auc(scores, truth),
        auc_on_track_unfinished=auc(scores[~finished], truth[~finished]),
        auc_finished=auc(scores[finished], truth[finished]),
        auc_monte_carlo=auc(scores, labels > 0.5),
        cross_entropy=float(losses.mean()),
        num_steps=int(labelled.sum()),
    )
