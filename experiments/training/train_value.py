"""Train a value head on a policy's hidden states, from its own solutions.

The policy solves training problems, with several rollouts each. The label of every
prefix of a solution is whether the solution is right: a Monte Carlo return, whose mean
is the value, which is the probability that the policy gets the answer right from there.
A logistic regression on the hidden state at the last token of each step
(:mod:`tsi.experiments.training.logistic`) fits that probability. The policy is not
changed, so the head costs one token per step to read
(:class:`tsi.rewards.policy_value.PolicyValue`).

Claim and reference: a linear head on frozen states is the last layer of the value
models of TRL's PPO and of AlphaZero-like tree search (arXiv 2309.17179), which train it
together with the policy. Numbers for the embedded policy are in docs/rewards.md.

Cost: 2,000 problems of chain with 4 rollouts each take about a minute on one core.

    python -m tsi.experiments.training.train_value --out results/chain-value.safetensors
    tsi scale --reward value:results/chain-value.safetensors
"""

import functools
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from tsi.decoding.step_texts import text_so_far
from tsi.engine.engine import Engine
from tsi.errors import ConfigurationError
from tsi.experiments.command import exit_code
from tsi.experiments.tasks import GeneratedTask, get_generated_task
from tsi.experiments.training.logistic import fit_logistic, log_loss
from tsi.experiments.training.step_labels import roll_out
from tsi.experiments.training.train_reward import auc
from tsi.experiments.worlds.embedded_world import embedded_world
from tsi.models.decoder import LanguageModel
from tsi.models.files import check_writable
from tsi.models.heads import ValueHead
from tsi.models.loading.value_head import save_value_head
from tsi.problem import Problem
from tsi.rewards.reward import Prompts
from tsi.step_keys import AnyKey, single_key


class Prefixes(NamedTuple):
    """Prefixes of solutions that end with a step.

    Attributes:
        states: the policy's hidden state at the last token.
        labels: 1 if the prefix's solution is right, else 0.
        on_track: the exact truth: can the prefix still lead to a right answer? It is
            used only to measure, not to train.
        ended: whether the prefix is the whole solution.
        group: a number for the problem and number of steps; a sampler compares prefixes
            of the same group.
    """

    states: Float[np.ndarray, "n D"]
    labels: Float[np.ndarray, " n"]
    on_track: Bool[np.ndarray, " n"]
    ended: Bool[np.ndarray, " n"]
    group: Int[np.ndarray, " n"]


class ValueMetrics(NamedTuple):
    """How well a head predicts on held-out problems.

    Attributes:
        auc: probability that a prefix of a right solution scores above one of a wrong
            solution.
        auc_unfinished: the same without whole solutions.
        auc_within: the same between prefixes of one problem with equally many steps;
            one half for a head that only knows which problems are hard.
        auc_on_track: probability that a prefix that can still lead to a right answer
            scores above one that cannot; the task's solver decides which can.
        log_loss: in nats per prefix.
        constant_log_loss: of the training labels' mean, whose AUC is one half.
        num_prefixes: number of prefixes.
    """

    auc: float
    auc_unfinished: float
    auc_within: float
    auc_on_track: float
    log_loss: float
    constant_log_loss: float
    num_prefixes: int


@jax.jit
def states_at(
    policy: LanguageModel, tokens: Int[Array, "R L"], places: Int[Array, "R M"]
) -> Float[Array, "R M D"]:
    """Hidden states at some positions of texts, read without a cache.

    Args:
        policy: reads the texts.
        tokens: prompts and solutions, padded on the right; attention is causal, so that
            the padding has no effect.
        places: positions of the states.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = policy.trunk(tokens, positions)
    return jnp.take_along_axis(hidden, places[:, :, None], axis=1)


def prefixes_of(
    engine: Engine,
    task: GeneratedTask,
    problems: list[Problem],
    num_rollouts: int,
    key: AnyKey,
    *,
    progress: bool = False,
) -> Prefixes:
    """Solve problems and divide the solutions into prefixes, one per step.

    A solution that a token limit cut has no answer, and counts as wrong.

    Args:
        engine: of a world without a reward; its policy, target and temperature are
            used.
        task: grades answers.
        problems: any number of problems.
        num_rollouts: K, solutions per problem.
        key: problem i uses the key ``fold_in(key, i)``.
        progress: show a progress bar.
    """
    key = single_key(key)
    prompts = [engine.encode(problem.prompt) for problem in problems]
    width, target = max(map(len, prompts)), engine.target
    size = min(max(1, engine.max_rows // num_rollouts), len(problems))
    parts: list[Prefixes] = []
    for start in tqdm(range(0, len(problems), size), disable=not progress):
        # Every batch has the same shape; the last one is filled up with copies.
        indices = [min(start + i, len(problems) - 1) for i in range(size)]
        lengths = np.asarray([len(prompts[i]) for i in indices], np.int32)
        prompt_tokens = np.zeros((size, width), np.int32)
        for row, i in zip(prompt_tokens, indices, strict=True):
            row[: len(prompts[i])] = prompts[i]
        rollouts = jax.device_get(
            roll_out(
                target,
                num_rollouts,
                jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(indices)),
                Prompts(jnp.asarray(prompt_tokens), jnp.asarray(lengths)),
                engine.policy,
                jnp.float32(engine.temperature),
            )
        )
        texts = np.zeros((size, num_rollouts, width + target.max_tokens), np.int32)
        for p, length in enumerate(lengths):
            texts[p, :, :length] = prompt_tokens[p, :length]
            texts[p, :, length : length + target.max_tokens] = rollouts.tokens[p]
        places = np.maximum(lengths[:, None, None] + rollouts.step_ends - 1, 0)
        flat_shapes = (-1, texts.shape[-1]), (-1, places.shape[-1])
        states = states_at(
            engine.policy, texts.reshape(flat_shapes[0]), places.reshape(flat_shapes[1])
        )
        states = np.asarray(states, np.float32).reshape(*places.shape, -1)
        for p, i in enumerate(indices[: len(problems) - start]):
            rows = zip(*(leaf[p] for leaf in rollouts), states[p], strict=True)
            group = i * target.max_steps
            parts += [_prefixes(engine, task, problems[i], group, *row) for row in rows]
    return Prefixes(*map(np.concatenate, zip(*parts, strict=True)))


def _prefixes(
    engine: Engine,
    task: GeneratedTask,
    problem: Problem,
    group: int,
    tokens: Int[np.ndarray, " T"],
    length: np.integer,
    truncated: np.bool_,
    step_ends: Int[np.ndarray, " M"],
    states: Float[np.ndarray, "M D"],
) -> Prefixes:
    ends = step_ends[step_ends > 0]
    is_last = ends == length
    texts = [
        text_so_far(engine.decode, tokens[:end].tolist(), finished=bool(is_end))
        for end, is_end in zip(ends, is_last, strict=True)
    ]
    is_right = not truncated and task.verify(problem, texts[-1])
    is_ended = is_last & ~truncated
    on_track = [
        task.verify(problem, text) if is_end else task.is_on_track(problem, text)
        for text, is_end in zip(texts, is_ended, strict=True)
    ]
    return Prefixes(
        states[: len(ends)],
        np.full(len(ends), float(is_right)),
        np.asarray(on_track, bool),
        np.asarray(is_ended, bool),
        group + np.arange(len(ends)),
    )


def auc_within(
    scores: Float[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
) -> float:
    """Probability that a true case scores above a false one of its group; ties half.

    All such pairs have equal weight; NaN if there are none.
    """
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order])) + 1
    num_above = num_pairs = 0.0
    for rows in np.split(order, starts):
        count = truth[rows].sum() * (~truth[rows]).sum()
        if count:
            num_above += count * auc(scores[rows], truth[rows])
            num_pairs += count
    return num_above / num_pairs if num_pairs else float("nan")


def fit_head(data: Prefixes, ridge: float) -> ValueHead:
    """A value head with the log-odds of the logistic regression.

    Raises:
        ConfigurationError: all solutions are right, or all are wrong.
    """
    if data.labels.min() == data.labels.max():
        outcome = "right" if data.labels[0] else "wrong"
        raise ConfigurationError(
            f"All of the policy's solutions are {outcome}, so that no value can be "
            "fitted; take more problems or rollouts, or another policy or task."
        )
    weight, bias = fit_logistic(data.states.astype(np.float64), data.labels, ridge)
    head = ValueHead(len(weight), rngs=nnx.Rngs(0))
    assert head.summary.bias is not None
    head.summary.kernel[...] = jnp.asarray(weight[:, None], jnp.float32)
    head.summary.bias[...] = jnp.asarray([bias], jnp.float32)
    return head


def measure(head: ValueHead, data: Prefixes, base_rate: float) -> ValueMetrics:
    """Measure a head on prefixes, and compare it with the constant ``base_rate``."""
    scores = np.asarray(head.log_odds(jnp.asarray(data.states)), np.float64)
    is_right, is_unfinished = data.labels > 0.5, ~data.ended
    constant = np.full(len(scores), np.log(base_rate / (1.0 - base_rate)))
    return ValueMetrics(
        auc=auc(scores, is_right),
        auc_unfinished=auc(scores[is_unfinished], is_right[is_unfinished]),
        auc_within=auc_within(scores, is_right, data.group),
        auc_on_track=auc(scores, data.on_track),
        log_loss=log_loss(scores, data.labels),
        constant_log_loss=log_loss(constant, data.labels),
        num_prefixes=len(scores),
    )


def train_value(
    out: Path,
    task: str = "chain",
    policy: str | None = None,
    num_problems: int = 2000,
    held_out: int = 500,
    num_rollouts: int = 4,
    ridge: float = 10.0,
    temperature: float = 1.0,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: int = 0,
    progress: bool = True,
) -> ValueMetrics:
    """Train a value head for a policy and a task; measure it on held-out problems.

    Args:
        out: the safetensors file to write.
        task: chain or countdown.
        policy: a name, a hub id, a folder or a GGUF file; the task's own by default.
        num_problems: number of training problems.
        held_out: number of problems on which metrics are measured.
        num_rollouts: solutions per problem.
        ridge: of the logistic regression.
        temperature: of the policy.
        dtype: of the policy's weights.
        seed: of the rollouts.
        progress: show a progress bar.
    """
    numbers = {
        "num_problems": num_problems,
        "held_out": held_out,
        "num_rollouts": num_rollouts,
        "ridge": ridge,
    }
    for name, value in numbers.items():
        if value <= 0:
            raise ConfigurationError(f"{name} must be above 0, not {value}.")
    task_definition = get_generated_task(task)
    check_writable(out)
    train_problems = task_definition.problems("train", num_problems, seed)
    held_out_problems = task_definition.problems("validation", held_out, seed)
    engine = embedded_world(
        task,
        train_problems,
        policy=policy,
        reward="none",
        temperature=temperature,
        dtype=dtype,
    ).engine
    # Both splits number their problems from 0, but they are run one after the other.
    engine.check(held_out_problems)
    assert isinstance(engine, Engine)
    draw_prefixes = functools.partial(
        prefixes_of,
        engine,
        task_definition,
        num_rollouts=num_rollouts,
        progress=progress,
    )
    keys = jax.random.split(jax.random.key(seed))
    data = draw_prefixes(problems=train_problems, key=keys[0])
    head, base_rate = fit_head(data, ridge), float(data.labels.mean())
    save_value_head(head, out)
    metrics = measure(
        head, draw_prefixes(problems=held_out_problems, key=keys[1]), base_rate
    )
    print(
        f"{out}: trained on {len(data.labels)} prefixes, {base_rate:.3f} of them of "
        "right solutions."
    )
    for name, value in metrics._asdict().items():
        print(f"  {name:18} {value:.5g}")
    return metrics


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(train_value)))
