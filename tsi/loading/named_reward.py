"""Every reward by a name, as `--reward` takes it: ``KIND``, ``KIND:MODEL`` or a model.

    chain-reward              a token head that reads the policy's own tokens
    qwen:MODEL                a published reward model in its format, of any tokenizer
    likelihood:MODEL          a larger language model against the policy
    value:FILE                a value head on the policy's hidden states
    judge                     the policy's own judgement
    verifier, outcome-verifier   an exact check of the task, of prefixes or of answers
    none                      nothing

A bare model is short for ``head:MODEL``; the name of a published reward model that
`tsi models` lists, for its format and it. A folder that is called as a kind is written
with its path, ``./judge``.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jax.sharding import Mesh

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.loading.language_reward import (
    QUESTION_TOKENS,
    formatted_reward,
    likelihood_reward,
)
from tsi.loading.model_checks import check_has_rows, check_same_tokens, load_model
from tsi.loading.policy import Policy
from tsi.loading.self_judge import JUDGE_QUESTION, self_judge
from tsi.models.decoder import RewardModel
from tsi.models.loading.catalogue import MODELS
from tsi.models.loading.checkpoint import load
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.loading.value_head import load_value_head
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.reasoning.limits import SolutionLimits
from tsi.rewards.aggregation import AGGREGATIONS, Aggregated, check_aggregation
from tsi.rewards.formats import FORMATS
from tsi.rewards.formatted import FORMAT_AGGREGATIONS
from tsi.rewards.reward import NoReward, PolicyValue, ProcessReward, Reward
from tsi.rewards.verifier import Verifier

Encoder = Callable[[str], list[int]]
"""From a problem's prompt to token ids."""
Check = Callable[[str, str, bool], float]
"""From question, text and whether it has ended to log-odds."""

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


class LoadedReward(NamedTuple):
    """A reward and the model that it asks.

    Attributes:
        reward: what scores prefixes.
        model: its weights, which the engine hands it; None where it needs none.
        path: of the model's folder or file, if it has one of its own.
    """

    reward: Reward
    model: Any = None
    path: Path | None = None

    def __repr__(self) -> str:
        """The kind of reward, and the place of its model."""
        place = "" if self.path is None else f", {str(self.path)!r}"
        return f"LoadedReward({type(self.reward).__name__}{place})"


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
    reward: str | NamedReward,
    policy: Policy,
    limits: SolutionLimits,
    *,
    aggregation: str = "last",
    question: str = JUDGE_QUESTION,
    checks: Mapping[str, Check] = MappingProxyType({}),
    prompt_encoder: Callable[[Tokenizer], Encoder] = lambda t: t.encode_prompt,
    example_prompt: str = "",
    prompt_tokens: int = QUESTION_TOKENS,
    dtype: str = "float32",
    weights: str | None = None,
    mesh: Mesh | None = None,
    shapes_only: bool = False,
) -> LoadedReward:
    """Load a reward and check that it fits the policy.

    Args:
        reward: its name (see the module's text), or what :func:`parse_reward` has made
            of one, which knows its aggregation.
        policy: whose solutions are scored.
        limits: of a solution.
        aggregation: of the scores of steps, one of :data:`tsi.rewards.formatted.WAYS`.
        question: what a policy that judges itself is asked, to be answered by Yes or
            No.
        checks: what ``verifier`` and ``outcome-verifier`` call, by that name.
        prompt_encoder: from the tokenizer of a larger model to how it is shown a
            problem; by default as the policy is, as one turn of a chat.
        example_prompt: a problem, encoded to see how many tokens a prompt has.
        prompt_tokens: by how many tokens another problem may be longer, at most.
        dtype: of the reward model's weights.
        weights: int8 or int4, to keep its matrices so; None to keep them in ``dtype``.
        mesh: devices to place them on, if any.
        shapes_only: leave them on disk, but for those of a value head.

    Raises:
        UnknownNameError: there is no such model, kind or way to aggregate.
        CheckpointError: a model or file cannot be read.
        DownloadError: a model cannot be fetched.
        ConfigurationError: the model is of another kind or width, or reads other
            tokens than the policy writes; the policy cannot be asked to judge; there
            is no check for a verifier; or see :func:`parse_reward`.
    """
    if isinstance(reward, str):
        reward = parse_reward(reward, aggregation)
    kind, argument, aggregation = reward
    decode = policy.tokenizer.decode
    room = {"max_steps": limits.max_steps, "max_tokens": limits.max_tokens}
    if kind == "none":
        return LoadedReward(NoReward())
    if kind in ("verifier", "outcome-verifier"):
        if kind not in checks:
            raise ConfigurationError(
                f"The reward {kind} is an exact check, and this task has none; give "
                f"load_reward one, as in checks={{{kind!r}: function}}, or name "
                "another reward."
            )
        return LoadedReward(Verifier(checks[kind], decode))
    if kind not in ("judge", "value", "head"):
        path = get(argument)
        model, config = load(
            path, dtype=dtype, weights=weights, mesh=mesh, shapes_only=shapes_only
        )
        tokenizer = load_tokenizer(path)
        check_has_rows(tokenizer, config)
        scorer: Reward
        if kind == "likelihood":
            encode = prompt_encoder(tokenizer)
            scorer = likelihood_reward(
                tokenizer,
                config,
                encode,
                decode,
                prompt_tokens=len(encode(example_prompt)) + prompt_tokens,
                **room,
            )
        else:
            scorer = formatted_reward(
                kind,
                tokenizer,
                config,
                decode,
                prompt_tokens=max(prompt_tokens, QUESTION_TOKENS),
                aggregation=aggregation,
                **room,
            )
        return LoadedReward(scorer, model, path)
    if kind == "judge":
        loaded = LoadedReward(self_judge(policy.tokenizer, question))
    elif kind == "value":
        path = Path(argument)
        head = load_value_head(path, policy.model.config.width)
        loaded = LoadedReward(PolicyValue(), head, path)
    else:
        path = _found(argument)
        check_same_tokens(policy.tokenizer, load_tokenizer(path), policy.name, argument)
        model = load_model(
            path, RewardModel, "reward", dtype, mesh, weights, shapes_only
        )
        loaded = LoadedReward(ProcessReward(), model, path)
    if aggregation == "last":
        return loaded
    return loaded._replace(
        reward=Aggregated(loaded.reward, aggregation, limits.max_steps)
    )


def _found(name: str) -> Path:
    try:
        return get(name)
    except UnknownNameError:
        # Whoever misspells a kind without a colon asks for a model of that name.
        known = [
            model for model in MODELS if MODELS[model].format or "-reward" in model
        ]
        raise UnknownNameError("reward", name, (*forms(), *known)) from None
