"""Train the embedded models from random weights.

Claim: a Llama of 0.22 million weights whose training is stopped early solves about half
of the held-out problems in a single sample, and a reward model that is trained only on
checked answers (Math-Shepherd, arXiv 2312.08935) distinguishes its right steps from its
wrong ones. The measured numbers are in ``metrics.json`` in the folder of each model.

Expected: single-sample accuracy at temperature 1 of 40 to 55 % on chain and 30 to 50 %
on countdown (standard error 1 point); step AUC above 0.85 on both.

Cost: see ``seconds`` in ``metrics.json``; under two hours on one core.

    python -m tsi.experiments.training.train_tiny

Stages keep their results under ``--work``, and a second run continues from there, also
after a kill. Without ``--work`` everything starts from random weights of the same seed.
"""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from tqdm import tqdm

from tsi.errors import UnknownNameError
from tsi.experiments.command import exit_code, exit_resumably
from tsi.experiments.tasks import GeneratedTask, Split, get_generated_task
from tsi.experiments.training.fit import Schedule, fit
from tsi.experiments.training.step_labels import (
    LabelledSteps,
    label_chunk,
    sample_texts,
    solving_target,
)
from tsi.experiments.training.train_policy import (
    draw_solutions,
    max_length,
    solution_loss,
    task_tokenizer,
    tiny_config,
)
from tsi.experiments.training.train_reward import (
    Marks,
    corrupt,
    draw_labels,
    extend_model,
    freeze,
    judge,
    label_loss,
    mark_likely_tokens,
)
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.files import check_writable, write_text
from tsi.models.loading.checkpoint import load, save
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.reasoning.target import ReasoningTarget


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All settings on which the models of one task depend.

    Attributes:
        task: its name.
        width, hidden, num_layers: the shape of the language model.
        new_blocks: number of blocks that the reward model has in addition.
        freeze: whether the language model's blocks are frozen in the reward model.
        language: schedule of the language model.
        policy_step: the step at which training is stopped for the policy.
        judge_step: the step of the language model from which the reward model starts.
            It is later, because a reward model must know more than the policy.
        warm_up, reward: schedules of the reward model's two stages; `warm_up` is None
            if the labels alone suffice.
        label_chunks, chunk_size: number of chunks of labels, and problems per chunk.
        num_completions: K of the Monte Carlo labels. At the same cost, two completions
            on four times as many problems gave a better reward model than eight: it
            memorises few problems.
        held_out_completions: K of the labels on which metrics are measured.
        held_out: number of problems on which accuracies are measured.
        seed: of all random numbers.
    """

    task: str
    policy_step: int
    judge_step: int
    language: Schedule
    reward: Schedule
    label_chunks: int
    chunk_size: int = 1024
    num_completions: int = 2
    held_out_completions: int = 8
    width: int = 80
    hidden: int = 224
    num_layers: int = 3
    new_blocks: int = 1
    freeze: bool = False
    warm_up: Schedule | None = None
    held_out: int = 512
    seed: int = 0


RECIPES = {
    "chain": Recipe(
        task="chain",
        policy_step=450,
        judge_step=1000,
        language=Schedule(steps=1500, peak=3e-3, batch=128),
        warm_up=Schedule(steps=2400, peak=4e-3, batch=64, weight_decay=0.0),
        reward=Schedule(steps=600, peak=1e-3, batch=128, weight_decay=0.0),
        label_chunks=24,
        new_blocks=2,
        freeze=True,
    ),
    "countdown": Recipe(
        task="countdown",
        policy_step=2500,
        judge_step=4000,
        language=Schedule(steps=4000, peak=3e-3, batch=128),
        reward=Schedule(steps=1200, peak=1e-3, batch=128),
        label_chunks=48,
    ),
}


class TaskSetup(NamedTuple):
    """One task's recipe, tokenizer, target and folder of intermediate results."""

    recipe: Recipe
    task: GeneratedTask
    tokenizer: Tokenizer
    target: ReasoningTarget
    folder: Path


def set_up(recipe: Recipe, work: Path) -> TaskSetup:
    """Set up what all stages of a task share."""
    task = get_generated_task(recipe.task)
    tokenizer = task_tokenizer(task)
    target = solving_target(task, tokenizer)
    return TaskSetup(recipe, task, tokenizer, target, work / recipe.task)


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Build a folder unless it exists; it gets its name only when it is complete."""
    if not folder.exists():
        partial_folder = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir(parents=True)
        start_time = time.perf_counter()
        build(partial_folder)
        seconds = time.perf_counter() - start_time
        (partial_folder / "seconds.json").write_text(json.dumps(round(seconds, 1)))
        partial_folder.rename(folder)
    return folder


def language_model(setup: TaskSetup, until: int, name: str) -> LanguageModel:
    """The language model after ``until`` steps; training continues from checkpoints."""
    recipe, task, tokenizer = setup.recipe, setup.task, setup.tokenizer
    config = tiny_config(
        task,
        tokenizer,
        width=recipe.width,
        hidden=recipe.hidden,
        num_layers=recipe.num_layers,
    )

    def build(folder: Path) -> None:
        model = fit(
            LanguageModel(config, rngs=nnx.Rngs(recipe.seed)),
            solution_loss,
            lambda step: draw_solutions(
                task, tokenizer, recipe.language.batch, recipe.seed, step
            ),
            recipe.language,
            setup.folder / "checkpoints-language",
            until=until,
            label=f"{task.name}: {name}",
        )
        save(model, config, folder, tokenizer=tokenizer)

    model, _ = load(build_once(setup.folder / name, build))
    assert isinstance(model, LanguageModel)
    return model


def labels(
    setup: TaskSetup,
    policy: LanguageModel,
    split: Split,
    chunks: int,
    num_completions: int,
) -> LabelledSteps:
    """Monte Carlo labels of the policy's solutions, stored chunk by chunk."""
    recipe = setup.recipe
    parts = []
    for chunk in tqdm(range(chunks), f"{setup.task.name}: {split} labels"):

        def build(folder: Path, chunk: int = chunk) -> None:
            steps = label_chunk(
                setup.target,
                policy,
                setup.tokenizer,
                setup.task,
                split,
                recipe.chunk_size,
                num_completions,
                max_length(setup.task),
                recipe.seed,
                chunk,
            )
            np.savez_compressed(folder / "steps.npz", **steps._asdict())

        folder = build_once(setup.folder / f"labels-{split}-{chunk:03}", build)
        with np.load(folder / "steps.npz") as arrays:
            parts.append(LabelledSteps(**arrays))
    return LabelledSteps(*map(np.concatenate, zip(*parts, strict=True)))


def reward_model(
    setup: TaskSetup, start: LanguageModel, data: LabelledSteps
) -> RewardModel:
    """Train the reward model: language model, new blocks, warm-up, step labels."""
    recipe = setup.recipe
    initial_model = extend_model(start, recipe.new_blocks, rngs=nnx.Rngs(recipe.seed))
    mark_likely = jax.jit(mark_likely_tokens, static_argnums=2)
    (colon,), (delimiter,) = map(setup.tokenizer.encode, (":", setup.task.delimiter))
    # The prompts of all tasks end with a colon, and their tokenizers have a padding id.
    assert setup.tokenizer.pad_id is not None
    marks = Marks(colon, (delimiter, *setup.tokenizer.eos_ids), setup.tokenizer.pad_id)

    def loss(model: RewardModel, batch: Any) -> jax.Array:
        if recipe.freeze:
            model = freeze(model, recipe.num_layers)
        return label_loss(model, batch)

    def warm_up(model: RewardModel, schedule: Schedule) -> RewardModel:
        def batch_at(step: int) -> Any:
            tokens, _ = draw_labels(data, schedule.batch, recipe.seed + 1, step)
            tokens = corrupt(tokens, marks, recipe.seed, step)
            return tokens, mark_likely(start, tokens, marks)

        folder = setup.folder / "checkpoints-warm-up"
        label = f"{setup.task.name}: warm-up"
        model = fit(model, loss, batch_at, schedule, folder, label=label)
        for weight in (model.score.kernel, model.bias):
            weight[...] = jnp.zeros_like(weight[...])
        return model

    def build(folder: Path) -> None:
        model = (
            warm_up(initial_model, recipe.warm_up) if recipe.warm_up else initial_model
        )
        model = fit(
            model,
            loss,
            lambda step: draw_labels(data, recipe.reward.batch, recipe.seed, step),
            recipe.reward,
            setup.folder / "checkpoints-reward",
            label=f"{setup.task.name}: reward model",
        )
        save(model, model.config, folder, tokenizer=setup.tokenizer)

    model, _ = load(build_once(setup.folder / "reward", build))
    assert isinstance(model, RewardModel)
    return model


def accuracy(
    setup: TaskSetup, policy: LanguageModel, temperature: float, num_samples: int
) -> dict[str, float]:
    """Single-sample accuracy on held-out problems, and its standard error."""
    problems = setup.task.problems("validation", setup.recipe.held_out, 0)
    texts = sample_texts(
        setup.target,
        policy,
        setup.tokenizer,
        jax.random.key(setup.recipe.seed),
        [problem.prompt for problem in problems],
        num_samples,
        max_length(setup.task),
        temperature,
    )
    by_problem = [
        np.mean([text is not None and setup.task.verify(problem, text) for text in row])
        for problem, row in zip(problems, texts, strict=True)
    ]
    error = np.std(by_problem, ddof=1) / len(by_problem) ** 0.5
    return {
        "accuracy": round(float(np.mean(by_problem)), 4),
        "standard_error": round(float(error), 4),
        "problems": len(problems),
        "samples_a_problem": num_samples,
    }


def train_task(recipe: Recipe, work: Path, out: Path) -> None:
    """Train policy and reward model of one task and write them to ``out``.

    Args:
        recipe: settings of the task.
        work: folder of intermediate results, kept between runs.
        out: folder for ``<task>-policy`` and ``<task>-reward``.
    """
    setup = set_up(recipe, work)
    policy = language_model(setup, recipe.policy_step, "policy")
    start = language_model(setup, recipe.judge_step, "language-model")
    data = labels(setup, policy, "train", recipe.label_chunks, recipe.num_completions)
    held_out = labels(setup, policy, "validation", 1, recipe.held_out_completions)
    reward = reward_model(setup, start, data)

    facts: dict[str, Any] = {
        "recipe": dataclasses.asdict(recipe),
        "weights": sum(x.size for x in jax.tree.leaves(nnx.state(policy))),
        "jax": jax.__version__,
        "seconds": {
            path.parent.name: json.loads(path.read_text())
            for path in sorted(setup.folder.glob("*/seconds.json"))
        },
    }
    metrics_by_role = {
        "policy": {
            "temperature 1": accuracy(setup, policy, 1.0, 4),
            "temperature 0": accuracy(setup, policy, 0.0, 1),
        },
        "reward": judge(reward, held_out, setup.tokenizer.eos_ids[0])._asdict(),
    }
    for role, metrics in metrics_by_role.items():
        folder = out / f"{recipe.task}-{role}"
        shutil.copytree(
            setup.folder / role,
            folder,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("seconds.json"),
        )
        text = json.dumps({"measured": metrics, **facts}, indent=2) + "\n"
        write_text(folder / "metrics.json", text)
        print(f"{folder}: {json.dumps(metrics)}")


@exit_resumably()
def main(
    tasks: tuple[str, ...] = tuple(RECIPES),
    work: Path = Path("results/train_tiny"),
    out: Path = Path("models/tiny"),
) -> None:
    """Train the embedded models of some tasks from random weights.

    Args:
        tasks: names of tasks.
        work: folder of checkpoints, labels and finished stages; remove it to start from
            the beginning.
        out: folder for the finished models.
    """
    unknown_tasks = [name for name in tasks if name not in RECIPES]
    if unknown_tasks:
        raise UnknownNameError("task", unknown_tasks[0], RECIPES)
    for name in tasks:
        for role in ("policy", "reward"):
            check_writable(out / f"{name}-{role}" / "metrics.json")
    for name in tasks:
        train_task(RECIPES[name], work, out)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
