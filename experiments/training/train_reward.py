"""Train a process reward model on Monte Carlo step labels.

The model starts from a language model's weights, because a model that can solve the
next step can often judge it. The language model's prediction of a token is known only
after its last block, so a few new blocks follow, which can compare it with the token
that was written. The old blocks may be frozen: if they are trained too, they lose their
arithmetic faster than the new blocks learn to use it.

With step labels only, that comparison is learned slowly, because a solution gives only
a few noisy bits. So the new blocks are first trained without labels (warm-up): for
every token of the policy's solutions, does the language model find it likely, and at
the end of a step, were all tokens so far likely? In half of the texts some tokens are
replaced, because the policy alone makes too few errors. Then the loss is the binary
cross-entropy against the soft label at the last token of each step, so that the head's
output is the log-odds that the policy gets the answer right from there.

References:
    Math-Shepherd, arXiv 2312.08935, equation 2 with soft labels; it has no warm-up, no
    frozen blocks and no new ones. Pretraining by judging each token of a text with
    replaced tokens: ELECTRA, arXiv 2003.10555.
"""

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from scipy.stats import rankdata

from tsi.experiments.training.step_labels import LabelledSteps
from tsi.models.decoder import LanguageModel, RewardModel


class JudgeMetrics(NamedTuple):
    """Metrics of a reward model on the steps of held-out solutions.

    Attributes:
        auc_on_track: area under the ROC curve of its reward for "this prefix can still
            lead to a right answer", which a solver decides exactly; over all steps.
        auc_on_track_unfinished: the same without finished solutions.
        auc_finished: the same for finished solutions only.
        auc_monte_carlo: for "more than half of the completions are right".
        cross_entropy: against the soft labels, in nats per step.
        num_steps: number of steps.
    """

    auc_on_track: float
    auc_on_track_unfinished: float
    auc_finished: float
    auc_monte_carlo: float
    cross_entropy: float
    num_steps: int


def extend_model(
    model: LanguageModel, num_new_blocks: int, *, rngs: nnx.Rngs
) -> RewardModel:
    """A reward model with a language model's blocks, some new ones, and a new head.

    The head starts at log-odds 0, so that the first loss is not random.
    """
    num_layers = model.config.num_layers + num_new_blocks
    config = dataclasses.replace(model.config, num_layers=num_layers)
    reward = RewardModel(config, rngs=rngs)
    reward.score.kernel[...] = jnp.zeros_like(reward.score.kernel[...])
    trunk_weights = nnx.state(model.trunk)
    trunk_weights["blocks"] = jax.tree.map(
        lambda old, new: jnp.concatenate([old, new[len(old) :]]),
        trunk_weights["blocks"],
        nnx.state(reward.trunk.blocks),
    )
    nnx.update(reward.trunk, trunk_weights)
    return reward


def freeze(reward: RewardModel, num_blocks: int) -> RewardModel:
    """The model without gradients for the embedding and the first blocks."""
    graph, weights = nnx.split(reward)
    trunk = weights["trunk"]
    trunk["embedding"] = jax.tree.map(jax.lax.stop_gradient, trunk["embedding"])
    trunk["blocks"] = jax.tree.map(
        lambda x: jnp.concatenate(
            [jax.lax.stop_gradient(x[:num_blocks]), x[num_blocks:]]
        ),
        trunk["blocks"],
    )
    return nnx.merge(graph, weights)


class Marks(NamedTuple):
    """Tokens that mark the parts of a text.

    Attributes:
        prompt_end: ends every prompt and does not occur elsewhere.
        step_ends: the tokens that end steps.
        pad_id: padding.
    """

    prompt_end: int
    step_ends: tuple[int, ...]
    pad_id: int


def is_in_solution(tokens: Any, marks: Marks) -> Any:
    """Which tokens belong to solutions, ``[B, T]``, of numpy or JAX like `tokens`."""
    ends = tokens == marks.prompt_end
    return (ends.cumsum(1) > 0) & ~ends & (tokens != marks.pad_id)


def is_step_end(tokens: Any, marks: Marks) -> Any:
    """Which tokens end a step."""
    return functools.reduce(operator.or_, (tokens == end for end in marks.step_ends))


def corrupt(
    tokens: Int[np.ndarray, "B T"], marks: Marks, seed: int, step: int
) -> Int[np.ndarray, "B T"]:
    """Replace 15 % of the solution's tokens in half of the texts by random tokens.

    New tokens are drawn from those of all solutions, and ends of steps are not
    replaced. The result is a pure function of (tokens, seed, step).
    """
    rng = np.random.default_rng((seed, step, 4))
    is_replaceable = is_in_solution(tokens, marks) & ~is_step_end(tokens, marks)
    is_replaced = rng.random(tokens.shape) < 0.15
    is_replaced &= is_replaceable & (rng.random((len(tokens), 1)) < 0.5)
    return np.where(
        is_replaced, rng.choice(tokens[is_replaceable], tokens.shape), tokens
    )


def mark_likely_tokens(
    model: LanguageModel, tokens: Int[Array, "B T"], marks: Marks
) -> Float[Array, "B T"]:
    """1 where a token's probability under a language model exceeds one half, else 0.

    At the end of a step, 1 if that holds for every token of the solution so far.

    Args:
        model: the language model.
        tokens: prompts and solutions, padded on the right.
        marks: tokens that mark the parts.

    Returns:
        NaN outside the solutions.
    """
    log_p = jax.nn.log_softmax(model(tokens)[:, :-1])
    token_log_p = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
    is_likely = jnp.pad(token_log_p, ((0, 0), (1, 0))) > jnp.log(0.5)
    is_inside = is_in_solution(tokens, marks)
    is_likely_so_far = jnp.cumprod(is_likely | ~is_inside, axis=1).astype(bool)
    is_likely = jnp.where(is_step_end(tokens, marks), is_likely_so_far, is_likely)
    return jnp.where(is_inside, is_likely, jnp.nan)


def draw_labels(
    data: LabelledSteps, size: int, seed: int, step: int
) -> tuple[Int[np.ndarray, "B T"], Float[np.ndarray, "B T"]]:
    """Rows of a training step, shuffled per epoch; a function of (data, seed, step)."""
    count = len(data.tokens)
    epochs = np.arange(step * size, (step + 1) * size) // count
    offsets = np.arange(step * size, (step + 1) * size) % count
    rows = np.empty(size, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng((seed, int(epoch), 3)).permutation(count)
        rows[epochs == epoch] = order[offsets[epochs == epoch]]
    return data.tokens[rows].astype(np.int32), data.labels[rows].astype(np.float32)


def label_loss(
    model: RewardModel, batch: tuple[Int[Array, "B T"], Float[Array, "B T"]]
) -> Float[Array, ""]:
    """Mean binary cross-entropy over the labelled tokens."""
    tokens, labels = batch
    is_labelled = ~jnp.isnan(labels)
    losses = optax.sigmoid_binary_cross_entropy(
        model(tokens), jnp.where(is_labelled, labels, 0.0)
    )
    return (losses * is_labelled).sum() / is_labelled.sum()


def auc(scores: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """Probability that a true case scores above a false one, ties counting half.

    The Mann-Whitney form of the area under the ROC curve; NaN if a class is empty.
    """
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    num_above = rankdata(scores)[truth].sum() - positives * (positives + 1) / 2
    return float(num_above / (positives * negatives))


def judge(model: RewardModel, data: LabelledSteps, eos_id: int) -> JudgeMetrics:
    """Measure a reward model on the steps of labelled solutions."""
    data = data.solutions
    forward = jax.jit(lambda model, tokens: model(tokens))
    log_odds = np.concatenate(
        [
            np.asarray(
                forward(model, data.tokens[start : start + 256].astype(np.int32))
            )
            for start in range(0, len(data.tokens), 256)
        ]
    )
    is_labelled = ~np.isnan(data.labels)
    scores, labels = log_odds[is_labelled], data.labels[is_labelled].astype(np.float32)
    truth = data.on_track[is_labelled]
    is_finished = data.tokens[is_labelled] == eos_id
    losses = np.logaddexp(0.0, scores) - labels * scores
    return JudgeMetrics(
        auc_on_track=auc(scores, truth),
        auc_on_track_unfinished=auc(scores[~is_finished], truth[~is_finished]),
        auc_finished=auc(scores[is_finished], truth[is_finished]),
        auc_monte_carlo=auc(scores, labels > 0.5),
        cross_entropy=float(losses.mean()),
        num_steps=int(is_labelled.sum()),
    )
