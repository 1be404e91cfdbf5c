"""Rewards by name, as in `--reward`: ``KIND``, ``KIND:ARGUMENT`` or a model.

    chain-reward              a token head that reads the tokens of the policy
    qwen:MODEL                a published reward model in its format, of any tokenizer
    likelihood:MODEL          a larger language model against the policy
    value:FILE                a value head on the policy's hidden states
    judge                     the policy's own judgement
    mean-log-prob, self-certainty, tail-entropy, token-confidence
                              the policy's confidence in its own tokens; may be followed
                              by options (:mod:`tsi.loading.confidence_reward`)
    verifier, outcome-verifier   an exact check of the task, of prefixes or of answers
    none                      nothing

A model without a kind means ``head:MODEL``, or the model with its format if `tsi
models` lists it as a published reward model. For a folder with the name of a kind write
a path, ``./judge``.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jax.sharding import Mesh

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.loading.confidence_reward import MEASURE_OF, confidence_reward
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
from tsi.rewards.policy_value import PolicyValue
from tsi.rewards.process_reward import ProcessReward
from tsi.rewards.reward import NoReward, Reward
from tsi.rewards.verifier import Verifier

Encoder = Callable[[str], list[int]]
"""Maps the prompt of a problem to token ids."""
Check = Callable[[str, str, bool], float]
"""`(question, text, whether it has ended) -> log-odds`."""

PREFIX_ONLY = ("last",)
"""The aggregation of a reward that scores whole prefixes and no steps."""


class Kind(NamedTuple):
    """The argument after the colon of a kind, if any, and the aggregations of the kind.

    An optional argument may be omitted.
    """

    argument: str
    aggregations: tuple[str, ...]
    optional: bool = False


KINDS: dict[str, Kind] = {
    "head": Kind("MODEL", AGGREGATIONS),
    **{name: Kind("MODEL", FORMAT_AGGREGATIONS) for name in FORMATS},
    "outcome": Kind("MODEL", PREFIX_ONLY),
    "likelihood": Kind("MODEL", PREFIX_ONLY),
    "value": Kind("FILE", AGGREGATIONS),
    "judge": Kind("", AGGREGATIONS),
    **{name: Kind("OPTIONS", PREFIX_ONLY, optional=True) for name in MEASURE_OF},
    "verifier": Kind("", PREFIX_ONLY),
    "outcome-verifier": Kind("", PREFIX_ONLY),
    "none": Kind("", PREFIX_ONLY),
}


class NamedReward(NamedTuple):
    """A kind of reward, its model, file or options, and the aggregation of scores."""

    kind: str
    argument: str
    aggregation: str

    def __str__(self) -> str:
        """The name in rows of results; for a token head only its model."""
        if self.kind == "judge":
            return "the policy's own judgement"
        if self.kind == "head" or not self.argument:
            return self.argument or self.kind
        return f"{self.kind}:{self.argument}"


class LoadedReward(NamedTuple):
    """A reward and its model.

    Attributes:
        reward: scores prefixes.
        model: the weights, which the engine passes to the reward; None without a model.
        path: folder or file of the model, or None.
    """

    reward: Reward
    model: Any = None
    path: Path | None = None

    def __repr__(self) -> str:
        """The kind of reward and the path of its model."""
        place = "" if self.path is None else f", {str(self.path)!r}"
        return f"LoadedReward({type(self.reward).__name__}{place})"


def list_forms() -> list[str]:
    """How each kind is written."""
    return [format_kind(kind) for kind in KINDS]


def format_kind(kind: str) -> str:
    """How a kind is written: ``judge``, ``qwen:MODEL``, ``tail-entropy[:OPTIONS]``."""
    argument = KINDS[kind].argument
    if KINDS[kind].optional:
        return f"{kind}[:{argument}]"
    return f"{kind}:{argument}" if argument else kind


def parse_reward(reward: str, aggregation: str = "last") -> NamedReward:
    """Parse the name of a reward, without looking up a model.

    Args:
        reward: see the module docstring.
        aggregation: one of :data:`tsi.rewards.formatted.FORMAT_AGGREGATIONS`.

    Raises:
        UnknownNameError: for an unknown kind, option or aggregation; the message lists
            the known ones.
        ConfigurationError: if the kind needs a model and has none, or has a model and
            needs none, or does not support the aggregation; if an option is invalid.
    """
    check_aggregation(aggregation, FORMAT_AGGREGATIONS)
    kind, colon, argument = reward.partition(":")
    if kind not in KINDS:
        if colon and "/" not in kind:
            raise UnknownNameError("kind of reward", kind, list_forms())
        published = MODELS[reward].format if reward in MODELS else None
        kind, argument = published or "head", reward
    elif bool(argument) != bool(colon) or (
        bool(argument) != bool(KINDS[kind].argument) and not KINDS[kind].optional
    ):
        raise ConfigurationError(
            f"The reward {kind} is written {format_kind(kind)}, not {reward!r}."
        )
    if kind in MEASURE_OF:
        # Refuses invalid options; the reward is made when the limits are known.
        confidence_reward(kind, argument, max_tokens=1)
    aggregations = KINDS[kind].aggregations
    if aggregation not in aggregations:
        raise ConfigurationError(
            f"The reward {format_kind(kind)} "
            + (
                "scores whole prefixes, so there are no step scores to aggregate; "
                "leave the aggregation out."
                if aggregations == PREFIX_ONLY
                else f"does not support the aggregation {aggregation!r}, which needs a "
                f"format; use one of {', '.join(aggregations)}."
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
        reward: its name (see the module docstring), or the result of
            :func:`parse_reward`, which includes the aggregation.
        policy: the policy whose solutions are scored.
        limits: of a solution.
        aggregation: of step scores, one of
            :data:`tsi.rewards.formatted.FORMAT_AGGREGATIONS`.
        question: the question, answered by Yes or No, to a policy that judges its own
            solutions.
        checks: functions for ``verifier`` and ``outcome-verifier``, by these names.
        prompt_encoder: maps the tokenizer of a larger model to the encoder of its
            prompts; by default one turn of a chat, as for the policy.
        example_prompt: a problem, from whose prompt the length of prompts is measured.
        prompt_tokens: the maximum number of tokens by which other prompts may be longer
            than this one.
        dtype: of the weights of the reward model.
        weights: int8 or int4 for quantised matrices; None for ``dtype``.
        mesh: devices on which the weights are placed, if any.
        shapes_only: leave the weights on disk, except those of a value head.

    Raises:
        UnknownNameError: for an unknown model, kind or aggregation.
        CheckpointError: if a model or file cannot be read.
        DownloadError: if a model cannot be downloaded.
        ConfigurationError: if the model has another type or width, or another tokenizer
            than the policy; if the policy cannot judge itself; if there is no check for
            a verifier; or see :func:`parse_reward`.
    """
    if isinstance(reward, str):
        reward = parse_reward(reward, aggregation)
    kind, argument, aggregation = reward
    decode = policy.tokenizer.decode
    length_limits = {"max_steps": limits.max_steps, "max_tokens": limits.max_tokens}
    if kind == "none":
        return LoadedReward(NoReward())
    if kind in MEASURE_OF:
        return LoadedReward(confidence_reward(kind, argument, limits.max_tokens))
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
                **length_limits,
            )
        else:
            scorer = formatted_reward(
                kind,
                tokenizer,
                config,
                decode,
                prompt_tokens=max(prompt_tokens, QUESTION_TOKENS),
                aggregation=aggregation,
                **length_limits,
            )
        return LoadedReward(scorer, model, path)
    if kind == "judge":
        loaded = LoadedReward(self_judge(policy.tokenizer, question))
    elif kind == "value":
        path = Path(argument)
        head = load_value_head(path, policy.model.config.width)
        loaded = LoadedReward(PolicyValue(), head, path)
    else:
        path = _find_model(argument)
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


def _find_model(name: str) -> Path:
    try:
        return get(name)
    except UnknownNameError:
        # A misspelled kind without a colon looks like the name of a model.
        known_names = [
            model for model in MODELS if MODELS[model].format or "-reward" in model
        ]
        raise UnknownNameError("reward", name, (*list_forms(), *known_names)) from None
