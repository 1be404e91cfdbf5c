"""A task with its models, ready to run: what `tsi scale` and `tsi solve` start from."""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tsi.decoding.truncation import Truncation
from tsi.decoding.vocabularies import boundary_of
from tsi.engine.engine import Engine
from tsi.engine.sizing.memory import free_bytes
from tsi.engine.sizing.planning import device_limits
from tsi.errors import ConfigurationError
from tsi.experiments.tasks import Task, get_task
from tsi.experiments.worlds.forced_text import forced_end_of, forced_settings
from tsi.experiments.worlds.language_policy import STEP_SLACK
from tsi.experiments.worlds.model_checks import (
    check_has_rows,
    load_model,
    prompt_encoder,
    trained_on,
)
from tsi.experiments.worlds.model_sampling import drawing_of
from tsi.experiments.worlds.named_reward import Writer, load_reward, parse_reward
from tsi.experiments.worlds.provenance import sha256_of, versions
from tsi.experiments.worlds.step_ends import StepEnds
from tsi.experiments.worlds.world import World
from tsi.models.decoder import LanguageModel
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.partition import make_mesh
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.problem import Problem
from tsi.reasoning.target import ReasoningTarget

PROBLEM_SEED = 0
PROBLEM_BYTES = 550
"""What a problem takes in memory, of the shorter of the two tasks' questions."""
WORKED = 32
"""Problems whose worked solutions say how long a solution may well be."""


def embedded_world(
    task_name: str,
    problems: int | Sequence[Problem],
    *,
    policy: str | None = None,
    reward: str | None = None,
    aggregation: str = "last",
    temperature: float | None = None,
    truncation: Truncation = Truncation(),  # noqa: B008
    repetition_penalty: float | None = None,
    model_sampling: bool = False,
    ends: StepEnds = StepEnds(),  # noqa: B008
    max_rows: int | None = None,
    dtype: str = "float32",
    cache_dtype: str | None = None,
    weights: str | None = None,
    model_parallel: int = 1,
    template_switches: Mapping[str, Any] = MappingProxyType({}),
    shapes_only: bool = False,
) -> World:
    """A generated task with the tiny models that ship for it, or with others.

    Args:
        task_name: of a task in `experiments/tasks`.
        problems: how many held-out problems, or the problems themselves.
        policy: name, hub id or path of the policy; the task's own by default. One that
            was not trained on the task is shown examples.
        reward: as `tsi.experiments.worlds.named_reward.parse_reward` reads it. By
            default the task's own reward model where it reads the policy's tokens, and
            the policy's own judgement where it does not.
        aggregation: of the scores of steps, one of
            `tsi.rewards.formatted.FORMAT_AGGREGATIONS`.
        temperature: of the policy; 1 if None.
        truncation: tokens that the policy may write; the truncated policy is what all
            methods sample from and weigh by.
        repetition_penalty: of that policy; None for none.
        model_sampling: whether the policy's own files say what of these is None.
        ends: of steps and solutions, beside those of the task and the policy.
        max_rows: rows that write tokens together on a device; what suits the models
            and the device, if None.
        dtype: of the models' weights.
        cache_dtype: of their keys and values; that of the weights, if None.
        weights: int8 or int4, to keep their matrices so; None to keep them in
            ``dtype``.
        model_parallel: over how many devices each model is divided; rows are spread
            over what that leaves of all devices.
        template_switches: variables of the policy's chat template, of JSON types, such
            as ``enable_thinking``.
        shapes_only: leave the weights on disk: a world to plan with, not to run.

    Raises:
        UnknownNameError: there is no such task, model or kind of reward.
        CheckpointError: a model cannot be read.
        DownloadError: a model cannot be fetched.
        ConfigurationError: a model is of the wrong kind or width, the reward model
            reads other tokens than the policy writes, its scores cannot be
            aggregated so, the devices cannot be divided so, or the chat template
            reads no switch of a name or cannot be used.
        PromptTooLongError: a problem does not fit the models' context.
    """
    task = get_task(task_name)
    if isinstance(problems, int):
        check_number(problems)
    truncation.check()
    named = None if reward is None else parse_reward(reward, aggregation)
    policy = policy or f"{task_name}-policy"
    policy_path = get(policy)
    drawing = drawing_of(
        policy_path,
        temperature,
        truncation,
        repetition_penalty,
        as_the_model_says=model_sampling,
    )
    tokenizer = load_tokenizer(policy_path, switches=template_switches)
    trained = trained_on(task, tokenizer)
    if named is None:
        own = f"{task_name}-reward" if trained else "judge"
        named = parse_reward(own, aggregation)
    mesh = all_devices(model_parallel)
    policy_model = load_model(
        policy_path, LanguageModel, "policy", dtype, mesh, weights, shapes_only
    )
    config = policy_model.config
    check_has_rows(tokenizer, config)
    step_tokens = task.max_step_tokens + (0 if trained else STEP_SLACK)
    max_tokens = task.max_steps * step_tokens
    chosen = load_reward(
        named,
        task,
        Writer(policy, tokenizer, config.width),
        max_tokens=max_tokens,
        dtype=dtype,
        weights=weights,
        mesh=mesh,
        shapes_only=shapes_only,
    )
    eos_ids = tuple(dict.fromkeys((*tokenizer.eos_ids, *config.eos_ids)))
    delimiters = ends.delimiters or (task.delimiter,)
    forced = None
    if ends.forced is not None:
        forced = forced_end_of(ends.forced, tokenizer.encode, step_tokens, max_tokens)
    target = ReasoningTarget(
        boundary_of(
            tokenizer,
            config.vocab_size,
            [delimiter.encode() for delimiter in delimiters],
            eos_ids,
            stop_strings=[string.encode() for string in ends.stop_strings],
            min_step_tokens=ends.min_tokens,
        ),
        chosen.reward,
        max_step_tokens=step_tokens,
        max_tokens=max_tokens,
        max_steps=task.max_steps,
        forced_end=forced,
    )
    if isinstance(problems, int):
        problems = task.problems("test", problems, PROBLEM_SEED)
    encode = prompt_encoder(task, tokenizer)
    longest = max((p.prompt for p in problems), key=len, default="")
    limits = device_limits(
        target, policy_model, chosen.model, len(encode(longest)), mesh, cache_dtype
    )
    rows = limits.rows if max_rows is None else max_rows
    engine = Engine(
        target,
        policy_model,
        chosen.model,
        encode=encode,
        decode=tokenizer.decode,
        temperature=drawing.temperature,
        truncation=drawing.truncation,
        repetition_penalty=drawing.repetition_penalty,
        cache_dtype=cache_dtype,
        max_rows=rows,
        max_stored=max(limits.stored, rows),
        mesh=mesh,
    )
    engine.check(problems)
    settings = {
        "task": task_name,
        "problem_seed": PROBLEM_SEED,
        "policy": policy,
        "policy_sha256": sha256_of(policy_path),
        "reward": str(named),
        "reward_sha256": None if chosen.path is None else sha256_of(chosen.path),
        "aggregation": named.aggregation,
        "dtype": dtype,
        "temperature": drawing.temperature,
        "max_steps": target.max_steps,
        "max_step_tokens": target.max_step_tokens,
        "max_tokens": target.max_tokens,
        **versions(),
    }
    parts = drawing.truncation._asdict().items()
    settings |= {name: part for name, part in parts if part is not None}
    if drawing.repetition_penalty is not None:
        settings["repetition_penalty"] = drawing.repetition_penalty
    if cache_dtype is not None:
        settings["cache_dtype"] = cache_dtype
    if weights is not None:
        settings["weights"] = weights
    settings |= ends.settings()
    if ends.forced is not None and forced is not None:
        settings |= forced_settings(ends.forced, forced)
    if template_switches:
        settings["template_switches"] = dict(template_switches)
    return World(
        engine,
        list(problems),
        task.extract,
        task.correct,
        task.max_steps,
        settings,
        drawing.notes,
        functools.partial(worked_tokens, task, tokenizer, problems),
    )


def worked_tokens(
    task: Task, tokenizer: Tokenizer, problems: Sequence[Problem]
) -> float:
    """Tokens of a worked solution, in the mean over the first problems."""
    rng = np.random.default_rng(PROBLEM_SEED)
    texts = [task.solution(problem, rng) for problem in problems[:WORKED]]
    return float(np.mean([len(tokenizer.encode(text)) + 1 for text in texts]))


def check_number(problems: int) -> None:
    """Refuse more problems than memory can hold, before the first is made.

    Raises:
        ConfigurationError: see above.
    """
    needed, free = problems * PROBLEM_BYTES, free_bytes()
    if needed > free:
        raise ConfigurationError(
            f"{problems:,} problems take {needed / 1e9:,.0f} GB or more, and "
            f"{free / 1e9:,.0f} GB are free: no more than about "
            f"{free // PROBLEM_BYTES:,} fit. Ask for fewer."
        )


def all_devices(model_parallel: int = 1) -> Mesh | None:
    """A mesh of every device of this process; None where there is one.

    Args:
        model_parallel: how many lie along its ``model`` axis.

    Raises:
        ConfigurationError: the number of devices is no multiple of it.
    """
    devices = jax.local_devices()
    number = len(devices)
    if model_parallel > number and jax.process_count() > 1:
        raise ConfigurationError(
            f"A model cannot be divided over the devices of several processes yet: "
            f"--model-parallel is {model_parallel}, and each process has {number}. "
            "Start fewer processes with more devices each, or lower it."
        )
    if model_parallel < 1 or number % model_parallel:
        raise ConfigurationError(
            f"{model_parallel} devices were asked for along the axis model, and of "
            f"{number} they leave a part; choose a divisor of {number}."
        )
    if number == 1:
        return None
    return make_mesh(number // model_parallel, model_parallel, devices=devices)
