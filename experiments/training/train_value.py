"""Train a value head on a policy's hidden states, from its own solutions.

The policy solves training problems, some rollouts each, and the label of every prefix
of a solution is whether that solution ended right: one Monte Carlo return, whose mean
is the value, the chance that the policy gets it right from here. A logistic regression
on the hidden state at the last token of each step
(:mod:`tsi.experiments.training.logistic`) fits that chance. The policy is left as it
is, so the head costs one token a step to read
(:class:`tsi.rewards.reward.PolicyValue`).

Claim and reference: a linear head on frozen states is the last layer of the value
models of TRL's PPO and of AlphaZero-like tree search (arXiv 2309.17179), trained there
together with the rest. Measured numbers of the embedded policy are in docs/rewards.md.

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
from tsi.experiments.tasks import Task, get_task
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
        labels: 1 if the solution that the prefix was taken of ended right, else 0.
        on_track: the exact truth: could the prefix still end right? Only measured on.
        ended: whether the prefix is the whole solution.
        group: one number for the prefixes of a problem with equally many steps, which
            are what a sampler compares with each other.
    """

    states: Float[np.ndarray, "n D"]
    labels: Float[np.ndarray, " n"]
    on_track: Bool[np.ndarray, " n"]
    ended: Bool[np.ndarray, " n"]
    group: Int[np.ndarray, " n"]


class ValueMetrics(NamedTuple):
    """How well a head predicts on problems it has not seen.

    Attributes:
        auc: chance that a prefix whose solution ended right scores above one whose
            solution did not.
        auc_unfinished: the same without whole solutions.
        auc_within: the same between prefixes of one problem with equally many steps: a
            head that only knows which problems are hard has one half.
        auc_on_track: chance that a prefix that can still end right scores above one
            that cannot, which the task's solver decides.
        log_loss: in nats a prefix.
        constant_log_loss: that of the training labels' mean, whose AUC is one half.
        num_prefixes: judged.
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
    """Hidden states at some places of texts, read without a cache.

    Args:
        policy: who reads.
        tokens: prompts and solutions, padded on the right, where nothing before can
            see it.
        places: to look at.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = policy.trunk(tokens, positions)
    return jnp.take_along_axis(hidden, places[:, :, None], axis=1)


def prefixes_of(
    engine: Engine,
    task: Task,
    problems: list[Problem],
    num_rollouts: int,
    key: AnyKey,
    *,
    progress: bool = False,
) -> Prefixes:
    """Solve problems and cut the solutions into prefixes, one a step.

    A solution that was cut at a token limit has no answer and did not end right.

    Args:
        engine: of a world without a reward: its policy, target and temperature.
        task: judges answers.
        problems: any number.
        num_rollouts: K, of each.
        key: problem i is solved under ``fold_in(key, i)``.
        progress: show a bar.
    """
    key = single_key(key)
    prompts = [engine.encode(problem.prompt) for problem in problems]
    width, target = max(map(len, prompts)), engine.target
    size = min(max(1, engine.max_rows // num_rollouts), len(problems))
    parts: list[Prefixes] = []
    for start in tqdm(range(0, len(problems), size), disable=not progress):
        # Every batch has the same shape; what fills the last one is dropped.
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
    task: Task,
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
    """Chance that a true case scores above a false one of its group, ties half.

    All such pairs count alike; NaN if there are none.
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
    """The value head whose log-odds are those of the logistic regression.

    Raises:
        ConfigurationError: all solutions are right, or all are wrong.
    """
    if data.labels.min() == data.labels.max():
        outcome = "right" if data.labels[0] else "wrong"
        raise ConfigurationError(
            f"All of the policy's solutions are {outcome}, which teaches nothing; take "
            "more problems or rollouts, or another policy or task."
        )
    weight, bias = fit_logistic(data.states.astype(np.float64), data.labels, ridge)
    head = ValueHead(len(weight), rngs=nnx.Rngs(0))
    assert head.summary.bias is not None
    head.summary.kernel[...] = jnp.asarray(weight[:, None], jnp.float32)
    head.summary.bias[...] = jnp.asarray([bias], jnp.float32)
    return head


def measure(head: ValueHead, data: Prefixes, base_rate: float) -> ValueMetrics:
    """Judge a head on prefixes; ``base_rate`` is the constant it is compared with."""
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
    """Train a value head of a policy on a task, and measure it on held-out problems.

    Args:
        out: the safetensors file to write.
        task: chain or countdown.
        policy: a name, a hub id, a folder or a GGUF file; the task's own by default.
        num_problems: to learn from.
        held_out: problems to measure on.
        num_rollouts: solutions of each problem.
        ridge: of the logistic regression.
        temperature: of the policy.
        dtype: of the policy's weights.
        seed: of the rollouts.
        progress: show a bar.
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
    task_definition = get_task(task)
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
    # Splits number their problems alike, and are run one after the other.
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
