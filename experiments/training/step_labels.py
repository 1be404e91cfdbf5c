"""Monte Carlo labels of reasoning steps: how often is a prefix completed correctly?

The policy writes one solution of each problem. From the end of each step it then writes
K completions, and the step's label is the fraction of right ones. The label of the last
step is whether the solution itself is right. Labels need no human and no solver, so
they can be made for any task whose answers can be checked.

The completions are solutions too, and are kept as further rows: the step at which they
start has the label above, and each later step has the outcome of this completion, an
unbiased estimate from a single sample. Math-Shepherd, in contrast, discards them.

References:
    Math-Shepherd, Wang et al. 2023, arXiv 2312.08935, section 3.2 (soft estimation;
    K = 8 there as well).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.step_texts import text_after
from tsi.decoding.vocabularies import boundary_of
from tsi.experiments.tasks import GeneratedTask, Split
from tsi.models.decoder import LanguageModel
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.problem import Problem
from tsi.reasoning.particles import Particles, ReasoningParams
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.reward import NoReward, Prompts
from tsi.step_keys import AnyKey, single_key, typed_key

ROWS_A_BATCH = 2048


class LabelledSteps(NamedTuple):
    """Solutions with labels at the last tokens of steps.

    Attributes:
        tokens: ``[B, T]``, prompt and solution, padded on the right.
        labels: ``[B, T]``, in [0, 1] at the end of a labelled step, NaN elsewhere.
        on_track: ``[B, T]``, the exact truth: can the prefix still lead to a right
            answer? It is used only to measure, not to train.
        completion: ``[B]``, False for the first solution of each problem.
    """

    tokens: Int[np.ndarray, "B T"]
    labels: Float[np.ndarray, "B T"]
    on_track: Bool[np.ndarray, "B T"]
    completion: Bool[np.ndarray, " B"]

    @property
    def solutions(self) -> "LabelledSteps":
        """Only the first solutions, whose steps have K completions each."""
        return LabelledSteps(*(field[~self.completion] for field in self))


class Rollouts(NamedTuple):
    """K solutions of each of P prefixes, ``[P, K, ...]``.

    ``step_ends`` are the lengths at the end of each step, and 0 after the last.
    """

    tokens: Int[Array, "P K T"]
    lengths: Int[Array, "P K"]
    truncated: Bool[Array, "P K"]
    step_ends: Int[Array, "P K M"]


def solving_target(task: GeneratedTask, tokenizer: Tokenizer) -> ReasoningTarget:
    """A target of the policy alone, without a reward."""
    return ReasoningTarget(
        boundary=boundary_of(
            tokenizer, tokenizer.num_ids, task.delimiter.encode(), tokenizer.eos_ids
        ),
        reward=NoReward(),
        max_step_tokens=task.max_step_tokens,
        max_tokens=task.max_steps * task.max_step_tokens,
        max_steps=task.max_steps,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def roll_out(
    target: ReasoningTarget,
    num_samples: int,
    keys: AnyKey,
    prefixes: Prompts,
    policy: LanguageModel,
    temperature: Float[Array, ""],
) -> Rollouts:
    """Sample complete solutions of P prefixes.

    Args:
        target: see :func:`solving_target`.
        num_samples: K.
        keys: one per prefix.
        prefixes: prompts, or prompts with the first steps of a solution.
        policy: writes the rest.
        temperature: of the policy.
    """
    keys = typed_key(keys)
    params = ReasoningParams(policy, None, prefixes, temperature)

    def write_step(
        carry: tuple[Int[Array, ""], Particles],
    ) -> tuple[Int[Array, ""], Particles]:
        t, particles = carry
        at_step = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        particles, _ = target.propose(at_step, t, particles, params)
        return t + 1, particles

    def is_unfinished(carry: tuple[Int[Array, ""], Particles]) -> Bool[Array, ""]:
        t, particles = carry
        return (t < target.max_steps) & ~jnp.all(particles.finished)

    start = target.init(keys[0], num_samples, params)
    _, end = jax.lax.while_loop(is_unfinished, write_step, (jnp.int32(0), start))
    shape = (keys.shape[0], num_samples)
    return Rollouts(
        end.tokens.reshape(*shape, -1),
        end.lengths.reshape(shape),
        end.truncated.reshape(shape),
        end.step_ends.reshape(*shape, -1),
    )


def sample_texts(
    target: ReasoningTarget,
    policy: LanguageModel,
    tokenizer: Tokenizer,
    key: AnyKey,
    prefixes: list[str],
    num_samples: int,
    width: int,
    temperature: float = 1.0,
) -> list[list[str | None]]:
    """K continuations of each prefix, as texts; None if the token limit cut it.

    Args:
        target: see :func:`solving_target`.
        policy, tokenizer: write the texts.
        key: prefix i uses the key ``fold_in(key, i)``.
        prefixes: prompts, or prompts and complete steps.
        num_samples: K.
        width: largest number of tokens of a prefix.
        temperature: of the policy; at 0 it writes its most likely tokens.
    """
    key = single_key(key)
    size = min(max(1, ROWS_A_BATCH // num_samples), len(prefixes))
    texts: list[list[str | None]] = []
    for start in range(0, len(prefixes), max(1, size)):
        part = prefixes[start : start + size]
        # Every batch has the same shape, so that only one program is compiled.
        tokens = np.zeros((size, width), np.int32)
        lengths = np.ones(size, np.int32)
        starts = [tokenizer.encode_prompt(prefix) for prefix in part]
        for row, ids in enumerate(starts):
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
        indices = jnp.arange(start, start + size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
        rollouts = roll_out(
            target,
            num_samples,
            keys,
            Prompts(jnp.asarray(tokens), jnp.asarray(lengths)),
            policy,
            jnp.float32(temperature),
        )
        rows = jax.device_get(rollouts)
        texts += [
            [
                None
                if cut
                else text_after(tokenizer.decode, before, ids[:length].tolist())
                for ids, length, cut in zip(*prefix_rows, strict=True)
            ]
            for before, *prefix_rows in zip(
                starts, rows.tokens, rows.lengths, rows.truncated, strict=False
            )
        ]
    return texts


def label_steps(
    target: ReasoningTarget,
    policy: LanguageModel,
    tokenizer: Tokenizer,
    task: GeneratedTask,
    key: AnyKey,
    problems: list[Problem],
    num_completions: int,
    width: int,
) -> LabelledSteps:
    """Write one solution of each problem and label its steps by K completions each.

    Solutions that the token limit cut are left out, because they have no answer.

    Args:
        target: see :func:`solving_target`.
        policy, tokenizer: write the solutions.
        task: grades answers.
        key: of all random numbers.
        problems: to solve, once each.
        num_completions: K.
        width: T, number of tokens of the longest text.
    """
    key_solve, key_complete = jax.random.split(single_key(key))
    prompts = [problem.prompt for problem in problems]
    texts = sample_texts(target, policy, tokenizer, key_solve, prompts, 1, width)
    solutions_of_problems = [
        (problem, text)
        for problem, (text,) in zip(problems, texts, strict=True)
        if text is not None
    ]
    # Prefixes that end a step, without the finished solution.
    prefixes = [
        (row, text[: end + 1])
        for row, (_, text) in enumerate(solutions_of_problems)
        for end in range(len(text))
        if text[end] == task.delimiter
    ]
    # Prefixes with equally many steps finish together, so that few tokens are wasted.
    prefixes.sort(key=lambda item: item[1].count(task.delimiter))
    completions = sample_texts(
        target,
        policy,
        tokenizer,
        key_complete,
        [solutions_of_problems[row][0].prompt + prefix for row, prefix in prefixes],
        num_completions,
        width,
    )
    # Texts with the labels of their steps by length. The end token adds one to the
    # length, because a text may end in an empty step.
    rows = [
        (problem, text, {len(text) + 1: float(task.verify(problem, text))})
        for problem, text in solutions_of_problems
    ]
    for (row, prefix), ends in zip(prefixes, completions, strict=True):
        problem, _, labels_of_solution = rows[row]
        is_right = [
            end is not None and task.verify(problem, prefix + end) for end in ends
        ]
        label = float(np.mean(is_right))
        labels_of_solution[len(prefix)] = label
        for end, outcome in zip(ends, is_right, strict=True):
            # A completion may have more steps than a whole solution.
            if end is not None and len(problem.prompt + prefix + end) < width:
                text = prefix + end
                later_ends = _step_ends(text, len(prefix), task.delimiter)
                outcomes = dict.fromkeys(later_ends, float(outcome))
                rows.append((problem, text, {len(prefix): label} | outcomes))
    return _as_arrays(task, tokenizer, rows, len(solutions_of_problems), width)


def _step_ends(text: str, start: int, delimiter: str) -> list[int]:
    """Lengths, beyond ``start``, at which steps of a finished text end."""
    ends = [i + 1 for i in range(start, len(text)) if text[i] == delimiter]
    return [*ends, len(text) + 1]


def _as_arrays(
    task: GeneratedTask,
    tokenizer: Tokenizer,
    rows: list[tuple[Problem, str, dict[int, float]]],
    num_solutions: int,
    width: int,
) -> LabelledSteps:
    """Arrays of labelled texts; the first ``num_solutions`` are not completions."""
    eos = tokenizer.eos_ids[0]
    tokens = np.full((len(rows), width), tokenizer.pad_id, np.uint8)
    labels = np.full(tokens.shape, np.nan, np.float16)
    on_track = np.zeros(tokens.shape, bool)
    for row, (problem, text, labels_of_text) in enumerate(rows):
        prompt = tokenizer.encode_prompt(problem.prompt)
        # Tokens are characters, so lengths of texts are lengths in tokens.
        ids = [*prompt, *tokenizer.encode(text), eos]
        tokens[row, : len(ids)] = ids
        for length, label in labels_of_text.items():
            last = len(prompt) + length - 1
            labels[row, last] = label
            on_track[row, last] = (
                task.verify(problem, text)
                if length > len(text)
                else task.is_on_track(problem, text[:length])
            )
    completion = np.arange(len(rows)) >= num_solutions
    return LabelledSteps(tokens, labels, on_track, completion)


def label_chunk(
    target: ReasoningTarget,
    policy: LanguageModel,
    tokenizer: Tokenizer,
    task: GeneratedTask,
    split: Split,
    size: int,
    num_completions: int,
    width: int,
    seed: int,
    chunk: int,
) -> LabelledSteps:
    """Labels of a chunk of problems; they depend only on weights, seed and chunk."""
    problems = task.problems(split, size, (seed, chunk, 2))
    key = jax.random.fold_in(jax.random.key(seed), chunk)
    return label_steps(
        target, policy, tokenizer, task, key, problems, num_completions, width
    )
