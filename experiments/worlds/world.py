"""A world: a task with its problems, engine, extractor, grader and settings."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from tsi.engine.assembly import reasoning_engine
from tsi.engine.base import BaseEngine
from tsi.experiments.grading.grade import Grade
from tsi.experiments.tasks.generated import GeneratedTask
from tsi.experiments.tasks.task import Task
from tsi.experiments.worlds.answer_grading import AnswerGrading
from tsi.experiments.worlds.forced_text import forced_end_of, forced_settings
from tsi.experiments.worlds.language_policy import prompt_encoder, prompt_format
from tsi.experiments.worlds.provenance import sha256_of, versions
from tsi.experiments.worlds.step_ends import StepEnds
from tsi.loading.named_reward import LoadedReward
from tsi.loading.policy import Policy
from tsi.models.tokens.spelling import Spelling
from tsi.problem import Problem
from tsi.reasoning.limits import SolutionLimits

PROBLEM_SEED = 0
NUM_SOLUTIONS = 32
"""Number of problems whose worked solutions give the typical length of a solution."""


class World(NamedTuple):
    """A task with its problems, an engine, an extractor, a grader and settings.

    Args:
        engine: runs samplers on problems.
        problems: in order, each with its own id.
        extract: ``(text) -> answer``, the answer of a generated text by which particles
            vote, canonical or as written, or None.
        grade: ``(pairs of problem and answer) -> grades``, one for each pair.
        max_steps: the target's step limit.
        settings: everything that affects a row except method, budget, seed and problem:
            task, models with their hashes, temperature, limits, versions.
        notes: sentences for the user about how the policy is used.
        ungraded: ``() -> str | None``, a sentence that counts and names the answers
            that could not be graded; None if every answer can be.
        tokenizer: of the policy; None if it is not known.
        typical_tokens: ``() -> number``, the typical length of a solution; None if it
            is not known.
        is_served: whether the policy is behind a server, so that this machine has
            neither its weights nor its caches.
        num_islands: islands among which the particles of a problem are divided.
    """

    engine: BaseEngine
    problems: list[Problem]
    extract: Callable[[str], str | None]
    grade: Callable[[Sequence[tuple[Problem, str | None]]], list[Grade]]
    max_steps: int
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    typical_tokens: Callable[[], float] | None = None
    ungraded: Callable[[], str | None] | None = None
    is_served: bool = False
    tokenizer: Spelling | None = None
    num_islands: int = 1

    def with_islands(self, num_islands: int) -> "World":
        """The same world, in which particles are divided among islands."""
        if num_islands == 1:
            return self
        settings = self.settings | {"islands": num_islands}
        return self._replace(num_islands=num_islands, settings=settings)

    def ungraded_notes(self) -> list[str]:
        """A sentence about answers that could not be graded, if there are any."""
        sentence = None if self.ungraded is None else self.ungraded()
        return [] if sentence is None else [sentence]

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        """Whether an answer is right; one that cannot be graded is not."""
        return self.grade([(problem, answer)])[0].correct


def task_world(
    task: Task,
    problems: Sequence[Problem],
    policy: Policy,
    reward: LoadedReward,
    limits: SolutionLimits,
    *,
    encode: Callable[[str], list[int]] | None = None,
    ends: StepEnds = StepEnds(),  # noqa: B008
    cache_dtype: str | None = None,
    max_rows: int | None = None,
    max_stored: int | None = None,
    mesh: Mesh | None = None,
    offload_weights: bool = False,
    attention: Literal["plain", "kernel"] = "plain",
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> World:
    """The world of a task, a policy and a reward.

    Args:
        task: has the extractor and the grader.
        problems: of the task.
        policy, reward: from `load_policy` and `load_reward`.
        limits: of a solution.
        encode: a prompt to the policy's token ids; by default
            :func:`tsi.experiments.worlds.language_policy.prompt_encoder`.
        ends: of steps and solutions, in addition to those of the task and the policy.
        cache_dtype: of keys and values; that of the weights, if None.
        max_rows, max_stored, mesh, offload_weights, attention: see
            :func:`tsi.engine.assembly.reasoning_engine`.
        settings: further settings that rows record, such as the reward and the type of
            the weights.

    Raises:
        ConfigurationError: the parts do not fit together.
        PromptTooLongError: a prompt is longer than the models' context.
    """
    tokenizer, sampling = policy.tokenizer, policy.drawing
    encode = encode or prompt_encoder(task, tokenizer)
    forced = None
    if ends.forced is not None:
        forced = forced_end_of(
            ends.forced, tokenizer.encode, limits.max_step_tokens, limits.max_tokens
        )
    engine = reasoning_engine(
        policy,
        reward,
        limits,
        delimiters=ends.delimiters or task.delimiters,
        stop_strings=ends.stop_strings or task.stop_strings,
        min_step_tokens=ends.min_tokens,
        forced_end=forced,
        encode=encode,
        longest_prompt=max((p.prompt for p in problems), key=len, default=""),
        cache_dtype=cache_dtype,
        max_rows=max_rows,
        max_stored=max_stored,
        mesh=mesh,
        offload_weights=offload_weights,
        attention=attention,
    )
    drawing: dict[str, Any] = {"temperature": sampling.temperature}
    parts = sampling.truncation._asdict().items()
    drawing |= {name: part for name, part in parts if part is not None}
    if sampling.repetition_penalty is not None:
        drawing["repetition_penalty"] = sampling.repetition_penalty
    if cache_dtype is not None:
        drawing["cache_dtype"] = cache_dtype
    if ends.forced is not None and forced is not None:
        drawing |= forced_settings(ends.forced, forced)
    return assemble_world(
        task,
        problems,
        engine,
        limits,
        tokenizer,
        ends,
        {"policy": policy.name, "policy_sha256": sha256_of(policy.path)},
        {**settings, **drawing},
        sampling.notes,
    )


def assemble_world(
    task: Task,
    problems: Sequence[Problem],
    engine: BaseEngine,
    limits: SolutionLimits,
    tokenizer: Spelling,
    ends: StepEnds,
    policy: Mapping[str, Any],
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
    *,
    is_served: bool = False,
) -> World:
    """The world of a task and an engine.

    Args:
        task: has the extractor and the grader.
        problems: of the task.
        engine: runs samplers on the problems.
        limits: of a solution.
        tokenizer: of the policy.
        ends: of steps and solutions.
        policy: settings that identify the policy.
        settings: further settings that rows record.
        notes: sentences for the user about how the policy is used.
        is_served: whether the policy is behind a server.

    Raises:
        ConfigurationError: a problem cannot be run.
        PromptTooLongError: a prompt is longer than the context.
    """
    engine.check(problems)
    grading = AnswerGrading(task)
    typical_tokens = None
    if isinstance(task, GeneratedTask):
        typical_tokens = functools.partial(
            mean_solution_tokens, task, tokenizer, problems
        )
    return World(
        engine,
        list(problems),
        task.extract,
        grading,
        limits.max_steps,
        {
            "task": task.name,
            "problem_seed": PROBLEM_SEED,
            **policy,
            **task_settings(task, tokenizer),
            **settings,
            **limits._asdict(),
            **versions(),
            **ends.settings(),
        },
        tuple(notes),
        typical_tokens,
        grading.summary,
        is_served=is_served,
        tokenizer=tokenizer,
    )


def task_settings(task: Task, tokenizer: Spelling) -> dict[str, Any]:
    """What rows record of a task: its file or generator, its prompt and its grader.

    The rules and examples of a generated task are a part of this package.
    """
    settings: dict[str, Any] = dict(task.settings)
    if task.grader is not None:
        settings["grader"] = task.grader
    if task.prompts is not None:
        format = prompt_format(task, tokenizer)
        settings["prompts"] = None if format is None else format.settings()
    if not isinstance(task, GeneratedTask):
        settings["task_delimiters"] = list(task.delimiters)
        if task.stop_strings:
            settings["task_stop_strings"] = list(task.stop_strings)
    return settings


def task_limits(task: Task, slack: int = 0) -> SolutionLimits:
    """Limits of a task's solutions.

    Args:
        task: defines the limits.
        slack: tokens that a step may have beyond its characters; ignored if the task's
            limits are in tokens.
    """
    if task.max_tokens is not None:
        return SolutionLimits(task.max_steps, task.max_step_tokens, task.max_tokens)
    step_tokens = task.max_step_tokens + slack
    return SolutionLimits(task.max_steps, step_tokens, task.max_steps * step_tokens)


def mean_solution_tokens(
    task: GeneratedTask, tokenizer: Spelling, problems: Sequence[Problem]
) -> float:
    """Mean number of tokens of worked solutions of the first problems."""
    rng = np.random.default_rng(PROBLEM_SEED)
    texts = [task.solution(problem, rng) for problem in problems[:NUM_SOLUTIONS]]
    return float(np.mean([len(tokenizer.encode(text)) + 1 for text in texts]))
