"""A world, a task with models by name, as `tsi scale` and `solve` use it."""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from tsi.decoding.truncation import Truncation
from tsi.errors import ConfigurationError
from tsi.experiments.tasks import Split, Task, get_task
from tsi.experiments.tasks.generated import GeneratedTask
from tsi.experiments.worlds.language_policy import (
    STEP_SLACK,
    Encoder,
    is_trained_on,
    prompt_encoder,
    rules_and_examples,
)
from tsi.experiments.worlds.provenance import sha256_of
from tsi.experiments.worlds.spelling import check_spelling
from tsi.experiments.worlds.step_ends import StepEnds
from tsi.experiments.worlds.task_problems import checks_of, resolve_problems
from tsi.experiments.worlds.world import World, task_limits, task_world
from tsi.loading.named_reward import load_reward, parse_reward
from tsi.loading.policy import load_policy
from tsi.models.loading.catalogue import MODELS
from tsi.models.partition import make_mesh
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.problem import Problem

ROOM = 16
"""Tokens by which a prompt may be longer than the longest that was measured."""


def embedded_world(
    task: str | Task,
    problems: int | Sequence[Problem] | None,
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
    offload_weights: bool = False,
    attention: Literal["plain", "kernel"] = "plain",
    template_switches: Mapping[str, Any] = MappingProxyType({}),
    shapes_only: bool = False,
    split: Split = "test",
    encoder: Encoder = prompt_encoder,
) -> World:
    """A task with its embedded models, or with others.

    Args:
        task: a task, or the name of one, see :mod:`tsi.experiments.tasks`.
        problems: number of held-out problems, or the problems themselves; None for all,
            or for the usual number of a generated task.
        policy: name, hub id or path of the policy; by default the task's own. The
            prompt of a policy that was not trained on a generated task begins with
            rules and examples.
        reward: parsed by `tsi.loading.named_reward.parse_reward`; by default the task's
            own reward model if it reads the policy's tokens, and otherwise the policy's
            judgement of its own text.
        aggregation: of the scores of steps, one of
            `tsi.rewards.formatted.FORMAT_AGGREGATIONS`.
        temperature: of the policy; 1 if None.
        truncation: tokens that the policy may write; all methods use the truncated
            policy for sampling and weights.
        repetition_penalty: of that policy; None for no penalty.
        model_sampling: whether the values that are None come from the policy's files.
        ends: of steps and solutions, in addition to those of the task and the policy.
        max_rows: rows that write tokens together on a device; planned from the free
            memory, if None.
        dtype: of the models' weights.
        cache_dtype: of keys and values; that of the weights, if None.
        weights: int8 or int4, to quantize the models' matrices; None to keep them in
            ``dtype``.
        model_parallel: number of devices that each model is divided over; the problems
            are divided over the groups of devices.
        offload_weights: load the models into the host's memory, and copy to the devices
            only the one that is in use.
        attention: what attends to caches while tokens are drawn, as for
            :class:`tsi.engine.engine.Engine`.
        template_switches: variables of the policy's chat template, of JSON types, such
            as ``enable_thinking``.
        shapes_only: do not load the weights; such a world can be used for plans, but
            not run.
        split: of the problems; choices are made on validation problems, so that test
            problems remain untouched.
        encoder: ``(task, tokenizer) -> encode``, how prompts become token ids.

    Raises:
        UnknownNameError: there is no such task, model or kind of reward.
        CheckpointError: a model cannot be read.
        DownloadError: a model cannot be fetched.
        ConfigurationError: a model is of the wrong kind or width, the reward model
            reads other tokens than the policy writes, weights are to be offloaded for a
            reward that does not read text, its scores do not support the aggregation,
            the devices cannot be divided in this way, or the chat template does not
            have a switch or cannot be used.
        PromptTooLongError: a prompt is longer than the models' context.
    """
    task = get_task(task) if isinstance(task, str) else task
    own_policy = own_reward = ""
    if isinstance(task, GeneratedTask):
        own_policy, own_reward = task.own_policy, task.own_reward
    if policy is None and own_policy not in MODELS:
        raise ConfigurationError(
            f"The task {task.name} has no models of its own; name a policy with "
            "--policy: a hub id, a folder or a GGUF file, or one that `tsi models` "
            "lists, such as smollm2-135m."
        )
    problems = resolve_problems(task, problems, split)
    reward_name = None if reward is None else parse_reward(reward, aggregation)
    mesh = device_mesh(model_parallel)
    load_options: dict[str, Any] = {
        "dtype": dtype,
        "weights": weights,
        "mesh": host_mesh() if offload_weights else mesh,
        "shapes_only": shapes_only,
    }
    loaded_policy = load_policy(
        policy or own_policy,
        temperature=temperature,
        truncation=truncation,
        repetition_penalty=repetition_penalty,
        model_sampling=model_sampling,
        template_switches=template_switches,
        **load_options,
    )
    tokenizer = loaded_policy.tokenizer
    is_trained = is_trained_on(task, tokenizer)
    if not is_trained:
        read = [problem.prompt for problem in problems]
        if isinstance(task, GeneratedTask):
            read.append(rules_and_examples(task).system or "")
        check_spelling(tokenizer, policy or own_policy, task.name, read)
    if reward_name is None:
        is_own = isinstance(task, GeneratedTask) and is_trained
        reward_name = parse_reward(own_reward if is_own else "judge", aggregation)
    limits = task_limits(task, 0 if is_trained else STEP_SLACK)
    example, prompt_tokens = prompt_room(task, problems, tokenizer)
    loaded_reward = load_reward(
        reward_name,
        loaded_policy,
        limits,
        checks=checks_of(reward_name.kind, task, problems),
        prompt_encoder=functools.partial(encoder, task),
        example_prompt=example,
        prompt_tokens=prompt_tokens,
        **load_options,
    )
    settings: dict[str, Any] = {
        "reward": str(reward_name),
        "reward_sha256": None
        if loaded_reward.path is None
        else sha256_of(loaded_reward.path),
        "aggregation": reward_name.aggregation,
        "dtype": dtype,
    }
    if split != "test":
        settings["split"] = split
    if weights is not None:
        settings["weights"] = weights
    if attention != "plain":
        settings["attention"] = attention
    if template_switches:
        settings["template_switches"] = dict(template_switches)
    return task_world(
        task,
        problems,
        loaded_policy,
        loaded_reward,
        limits,
        encode=encoder(task, tokenizer),
        ends=ends,
        cache_dtype=cache_dtype,
        max_rows=max_rows,
        mesh=mesh,
        offload_weights=offload_weights,
        attention=attention,
        settings=settings,
    )


def prompt_room(
    task: Task, problems: Sequence[Problem], tokenizer: Tokenizer
) -> tuple[str, int]:
    """An example of a problem, and by how many tokens others may be longer."""
    if isinstance(task, GeneratedTask):
        (example,) = task.problems("train", 1, 0)
        # Prompts differ by at most as many tokens as the longest has characters.
        return example.prompt, task.max_prompt_tokens
    lengths = {p.prompt: len(tokenizer.encode(p.prompt)) for p in problems}
    longest = max(lengths, key=lambda prompt: lengths[prompt])
    # Another tokenizer may need more tokens.
    return longest, lengths[longest] + lengths[longest] // 4 + ROOM


def device_mesh(model_parallel: int = 1) -> Mesh | None:
    """A mesh of all devices of this process, or None for a single device.

    If a model needs more devices, the mesh has those of several consecutive processes.

    Args:
        model_parallel: number of devices along the ``model`` axis.

    Raises:
        ConfigurationError: the number of devices, or of processes, is not a multiple of
            it.
    """
    devices = jax.local_devices()
    number = len(devices)
    if model_parallel > number and jax.process_count() > 1:
        return _mesh_of_processes(model_parallel)
    if model_parallel < 1 or number % model_parallel:
        raise ConfigurationError(
            f"{number} devices cannot be divided into groups of {model_parallel} "
            f"(--model-parallel); choose a divisor of {number}."
        )
    if number == 1:
        return None
    return make_mesh(number // model_parallel, model_parallel, devices=devices)


def _mesh_of_processes(model_parallel: int) -> Mesh:
    """The devices of the processes that hold one model together with this one."""
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    numbers = {len(devices) for devices in by_process.values()}
    number = max(numbers)
    if len(numbers) > 1 or model_parallel % number:
        raise ConfigurationError(
            f"--model-parallel is {model_parallel}, and the processes have "
            f"{', '.join(map(str, sorted(numbers)))} devices each. A model is divided "
            "over all devices of several processes, which must have equally many; "
            "choose a multiple of that number."
        )
    size, count = model_parallel // number, len(by_process)
    if count % size:
        raise ConfigurationError(
            f"--model-parallel {model_parallel} needs {size} processes with {number} "
            f"devices each per model, and there are {count} processes; start a "
            f"multiple of {size}."
        )
    first = jax.process_index() // size * size
    devices = [x for i in range(first, first + size) for x in by_process[i]]
    return make_mesh(1, model_parallel, devices=devices)


def host_mesh() -> Mesh:
    """The host's memory, as a mesh of one device on which models can be loaded.

    Raises:
        ConfigurationError: JAX may not use the CPU.
    """
    try:
        devices = jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise ConfigurationError(
            "Offloaded models are kept in the host's memory, and JAX may not use "
            f"the CPU ({error}). Unset JAX_PLATFORMS, or add cpu to it after a comma."
        ) from error
    return make_mesh(1, 1, devices=devices[:1])
