"""Every reward by a name, as `--reward` takes it: ``KIND``, ``KIND:MODEL`` or a model.

    chain-reward              a token head that reads the policy's own tokens
    qwen:MODEL                a published reward model in its format, of any tokenizer
    likelihood:MODEL          a larger language model against the policy
    value:FILE                a value head on the policy's hidden states
    judge                     the policy's own judgement
    verifier, outcome-verifier   the task's exact check, of prefixes or of answers
    none                      nothing

A bare model is short for ``head:MODEL``; the name of a published reward model that
`tsi models` lists, for its format and it. A folder that is called as a kind is written
with its path, ``./judge``.
"""

from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.tasks import TASKS, Task
from tsi.experiments.tasks.task_verifier import outcome_check, prefix_check
from tsi.experiments.worlds.language_policy import self_judge
from tsi.experiments.worlds.language_reward import formatted_reward, likelihood_reward
from tsi.experiments.worlds.model_checks import (
    check_has_rows,
    check_same_tokens,
    load_model,
    prompt_encoder,
)
from tsi.models.decoder import RewardModel
from tsi.models.loading.catalogue import MODELS
from tsi.models.loading.checkpoint import load
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.loading.value_head import load_value_head
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.rewards.aggregation import AGGREGATIONS, Aggregated, check_aggregation
from tsi.rewards.formats import FORMATS
from tsi.rewards.formatted import FORMAT_AGGREGATIONS
from tsi.rewards.reward import NoReward, PolicyValue, ProcessReward, Reward
from tsi.rewards.verifier import Verifier

WHOLE = ("last",)
"""The one way of a reward that scores whole prefixes and no steps."""


class Kind(NamedTuple):
    """What stands behind a kind's colon, if anything, and its ways to aggregate."""

    argument: str
    ways: tuple[str, ...]


KINDS: dict[str, Kind] = {
    "head": Kind("MODEL", AGGREGATIONS),
    **{name: Kind("MODEL", FORMAT_AGGREGATIONS) for name in FORMATS},
    "outcome": Kind("MODEL", WHOLE),
    "likelihood": Kind("MODEL", WHOLE),
    "value": Kind("FILE", AGGREGATIONS),
    "judge": Kind("", AGGREGATIONS),
    "verifier": Kind("", WHOLE),
    "outcome-verifier": Kind("", WHOLE),
    "none": Kind("", WHOLE),
}


class NamedReward(NamedTuple):
    """A kind of reward, the model or file it is asked of, and how steps become one."""

    kind: str
    argument: str
    aggregation: str

    def __str__(self) -> str:
        """As rows of results record it; a token head by its model alone."""
        if self.kind == "judge":
            return "the policy's own judgement"
        if self.kind == "head" or not self.argument:
            return self.argument or self.kind
        return f"{self.kind}:{self.argument}"


class Writer(NamedTuple):
    """What a reward must know of the policy: its name, tokenizer and hidden width."""

    name: str
    tokenizer: Tokenizer
    width: int


class LoadedReward(NamedTuple):
    """A reward, the weights that the engine hands it, and where they came from."""

    reward: Reward
    model: Any
    path: Path | None


def forms() -> list[str]:
    """How each kind is written."""
    return [written(kind) for kind in KINDS]


def written(kind: str) -> str:
    """How a kind is written: ``judge``, ``qwen:MODEL``."""
    argument = KINDS[kind].argument
    return f"{kind}:{argument}" if argument else kind


def parse_reward(reward: str, aggregation: str = "last") -> NamedReward:
    """What a name stands for; nothing is looked up yet.

    Args:
        reward: see the module's text.
        aggregation: one of :data:`tsi.rewards.formatted.FORMAT_AGGREGATIONS`.

    Raises:
        UnknownNameError: there is no such kind, or no such way to aggregate; the known
            ones are listed.
        ConfigurationError: the kind wants a model and has none, or the other way
            round, or its scores cannot be aggregated so.
    """
    check_aggregation(aggregation, FORMAT_AGGREGATIONS)
    kind, colon, argument = reward.partition(":")
    if kind not in KINDS:
        if colon and "/" not in kind:
            raise UnknownNameError("kind of reward", kind, forms())
        published = MODELS[reward].format if reward in MODELS else None
        kind, argument = published or "head", reward
    elif bool(argument) != bool(KINDS[kind].argument) or bool(argument) != bool(colon):
        raise ConfigurationError(
            f"The reward {kind} is written {written(kind)}, not {reward!r}."
        )
    ways = KINDS[kind].ways
    if aggregation not in ways:
        raise ConfigurationError(
            f"The reward {written(kind)} "
            + (
                "scores whole prefixes, so that there are no step scores to aggregate; "
                "leave the aggregation out."
                if ways == WHOLE
                else f"cannot be aggregated by {aggregation!r}, which shows a format "
                f"all steps as one; choose one of {', '.join(ways)}."
            )
        )
    return NamedReward(kind, argument, aggregation)


def load_reward(
    named: NamedReward,
    task: Task,
    policy: Writer,
    *,
    max_tokens: int,
    dtype: str = "float32",
    weights: str | None = None,
    mesh: Mesh | None = None,
    shapes_only: bool = False,
) -> LoadedReward:
    """Load what a name stands for and check that it fits the policy.

    Args:
        named: see :func:`parse_reward`.
        task: what is solved.
        policy: whose solutions are scored.
        max_tokens: of a solution, in the policy's tokens.
        dtype: of the reward model's weights.
        weights: int8 or int4, to keep its matrices so; None to keep them in ``dtype``.
        mesh: devices to place them on, if any.
        shapes_only: leave them on disk, but for those of a value head.

    Raises:
        UnknownNameError: there is no such model.
        CheckpointError: a model or file cannot be read.
        DownloadError: a model cannot be fetched.
        ConfigurationError: the model is of another kind or width, or reads other
            tokens than the policy writes; or the policy cannot be asked to judge.
    """
    kind, argument, aggregation = named
    decode = policy.tokenizer.decode
    limits = {"max_steps": task.max_steps, "max_tokens": max_tokens}
    if kind == "none":
        return LoadedReward(NoReward(), None, None)
    if kind in ("verifier", "outcome-verifier"):
        check = prefix_check(task) if kind == "verifier" else outcome_check(task)
        return LoadedReward(Verifier(check, decode), None, None)
    if kind not in ("judge", "value", "head"):
        path = get(argument)
        model, config = load(
            path, dtype=dtype, weights=weights, mesh=mesh, shapes_only=shapes_only
        )
        tokenizer = load_tokenizer(path)
        check_has_rows(tokenizer, config)
        reward: Reward
        if kind == "likelihood":
            encode = prompt_encoder(task, tokenizer)
            # No two prompts differ by more tokens than the longest has characters.
            (problem,) = task.problems("train", 1, 0)
            room = len(encode(problem.prompt)) + task.max_prompt_tokens
            reward = likelihood_reward(
                tokenizer, config, encode, decode, prompt_tokens=room, **limits
            )
        else:
            reward = formatted_reward(
                kind, tokenizer, config, decode, aggregation=aggregation, **limits
            )
        return LoadedReward(reward, model, path)
    if kind == "judge":
        loaded = LoadedReward(self_judge(policy.tokenizer), None, None)
    elif kind == "value":
        path = Path(argument)
        head = load_value_head(path, policy.width)
        loaded = LoadedReward(PolicyValue(), head, path)
    else:
        path = _found(argument)
        check_same_tokens(policy.tokenizer, load_tokenizer(path), policy.name, argument)
        scorer = load_model(
            path, RewardModel, "reward", dtype, mesh, weights, shapes_only
        )
        loaded = LoadedReward(ProcessReward(), scorer, path)
    if aggregation == "last":
        return loaded
    return loaded._replace(
        reward=Aggregated(loaded.reward, aggregation, task.max_steps)
    )


def _found(name: str) -> Path:
    try:
        return get(name)
    except UnknownNameError:
        # Whoever misspells a kind without a colon asks for a model of that name.
        published = [known for known, model in MODELS.items() if model.format]
        own = [f"{task}-reward" for task in TASKS]
        raise UnknownNameError("reward", name, (*forms(), *own, *published)) from None
