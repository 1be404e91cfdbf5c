"""A task with a policy behind a server: the world of `--policy served:URL#MODEL`."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from tsi.decoding.truncation import Truncation
from tsi.errors import ConfigurationError
from tsi.experiments.tasks.task import Split, Task
from tsi.experiments.worlds.language_policy import (
    STEP_SLACK,
    Encoder,
    is_trained_on,
    prompt_encoder,
)
from tsi.experiments.worlds.provenance import sha256_of, sha256_of_tokenizer
from tsi.experiments.worlds.step_ends import StepEnds
from tsi.experiments.worlds.task_problems import checks_of, resolve_problems
from tsi.experiments.worlds.world import World, assemble_world, task_limits
from tsi.loading.language_reward import QUESTION_TOKENS
from tsi.loading.named_reward import parse_reward
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.problem import Problem
from tsi.serving.connect import connect
from tsi.serving.engine import ServedEngine
from tsi.serving.local_scorer import LocalScorer
from tsi.serving.policy import ServedPolicy
from tsi.serving.prices import Prices
from tsi.serving.scorer import Scorer, ServedScorer
from tsi.serving.served_judge import ServedJudge
from tsi.serving.served_prm import ServedPrm
from tsi.serving.served_reward import RewardSettings, served_reward
from tsi.serving.step import Controls

PREFIX = "served:"


class Served(NamedTuple):
    """How a served policy is used.

    Attributes:
        address: ``URL#MODEL``.
        tokenizer: name, folder or hub id of the policy's tokenizer; None asks the
            server.
        together: whether the rows of a step share a request.
        max_rows: rows that the server processes in parallel; None leaves it to the
            engine.
        price: of a million generated tokens, in any currency; None for none.
        read_price: of a million tokens that the server reads; None for `price`.
        switches: variables of the chat template, of JSON types.
    """

    address: str
    tokenizer: str | None = None
    together: bool = False
    max_rows: int | None = None
    price: float | None = None
    read_price: float | None = None
    switches: Mapping[str, Any] = MappingProxyType({})


def is_served(policy: str | None) -> bool:
    """Whether the name of a policy is that of one behind a server."""
    return policy is not None and policy.startswith(PREFIX)


def served_world(
    task: Task,
    problems: int | Sequence[Problem] | None,
    served: Served,
    *,
    reward: str | None = None,
    aggregation: str = "last",
    dtype: str = "float32",
    weights: str | None = None,
    temperature: float | None = None,
    truncation: Truncation = Truncation(),  # noqa: B008
    repetition_penalty: float | None = None,
    ends: StepEnds = StepEnds(),  # noqa: B008
    split: Split = "test",
    encoder: Encoder = prompt_encoder,
) -> World:
    """A task with a policy behind a server.

    Args:
        task: of the problems.
        problems: number of problems, the problems themselves, or None for all.
        served: the policy and how it is used.
        reward: see :mod:`tsi.serving.served_reward`; the policy's own judgement by
            default.
        aggregation: of the scores of steps.
        dtype, weights: of a reward model in this process.
        temperature, truncation, repetition_penalty: of the policy, the p of the target.
        ends: of steps and solutions; forced ends and the minimum number of tokens of a
            step need a policy in this process.
        split: of the problems.
        encoder: how prompts become ids or code points.

    Raises:
        ConfigurationError: an option needs a policy in this process, or see
            :func:`tsi.serving.connect.connect`.
        ServerError: the server cannot be reached, refuses or answers nonsense.
        UnknownNameError: it does not have the model.
        PromptTooLongError: a prompt is longer than the server's context.
    """
    if ends.forced is not None or ends.min_tokens != 1:
        raise ConfigurationError(
            "Forced ends and the least number of tokens of a step need each token's "
            "probabilities, which a server does not give; leave them out."
        )
    problems = resolve_problems(task, problems, split)
    tokenizer, switches = None, served.switches
    digest: dict[str, str] = {}
    if served.tokenizer is not None:
        tokenizer = load_tokenizer(get(served.tokenizer), switches=switches)
        switches = {}
        digest["served_tokenizer_sha256"] = sha256_of_tokenizer(tokenizer)
    policy = connect(
        served.address,
        tokenizer=tokenizer,
        switches=switches,
        together=served.together,
    )
    is_trained = is_trained_on(task, policy.spelling)
    limits = task_limits(task, 0 if is_trained else STEP_SLACK)
    encode = encoder(task, policy.spelling)
    plain = Controls(repetition_penalty=repetition_penalty)
    controls = plain.change(temperature, truncation)
    scorer = served_reward(
        reward or "judge",
        policy,
        RewardSettings(
            limits,
            checks_of(reward, task, problems),
            encode,
            tokenizer,
            controls,
            aggregation,
            prompt_tokens=max(QUESTION_TOKENS, longest_prompt(problems, encode)),
            dtype=dtype,
            weights=weights,
        ),
    )
    engine = ServedEngine(
        policy,
        scorer,
        limits,
        delimiters=ends.delimiters or task.delimiters,
        stop_strings=ends.stop_strings or task.stop_strings,
        controls=controls,
        encode=encode,
        max_rows=served.max_rows,
        prices=None
        if served.price is None
        else Prices(served.price, served.read_price),
    )
    settings: dict[str, Any] = {
        **reward_settings(scorer, reward, aggregation),
        "aggregation": aggregation,
        **{k: v for k, v in controls._asdict().items() if v is not None},
    }
    if split != "test":
        settings["split"] = split
    if served.switches:
        settings["template_switches"] = dict(served.switches)
    return assemble_world(
        task,
        problems,
        engine,
        limits,
        policy.spelling,
        ends,
        {
            "policy": f"{PREFIX}{policy.abilities.model}",
            "server": policy.abilities.server,
            "server_address": policy.client.address.url,
            "has_chat_template": policy.spelling.chat_template is not None,
            "served_tokenizer": served.tokenizer,
            "server_seeds": policy.abilities.seeds and not served.together,
            **digest,
        },
        settings,
        notes_of(policy),
        is_served=True,
    )


def longest_prompt(
    problems: Sequence[Problem], encode: Callable[[str], list[int]]
) -> int:
    """Units of the prompt with the most characters."""
    return len(encode(max((p.prompt for p in problems), key=len)))


def reward_settings(
    scorer: Scorer | ServedScorer, name: str | None, aggregation: str
) -> dict[str, str | None]:
    """The name of a reward, and the hash of its files or the address of its server.

    The name of a model behind a server decides whether a run is continued, and its
    address does not.
    """
    settings: dict[str, str | None] = {"reward": scorer.name}
    if isinstance(scorer, LocalScorer) and name is not None:
        path = get(parse_reward(name, aggregation).argument)
        settings["reward_sha256"] = sha256_of(path)
    if isinstance(scorer, ServedJudge | ServedPrm) and scorer.address is not None:
        settings["reward_address"] = scorer.address
    return settings


def notes_of(policy: ServedPolicy) -> tuple[str, ...]:
    """Sentences for the user about a served policy."""
    abilities = policy.abilities
    notes = []
    if policy.together:
        notes.append(
            "The rows of a step share a request, so the server chooses their random "
            "numbers, and the run cannot be repeated."
        )
    elif abilities.seeds:
        notes.append(
            f"Samples are as reproducible as {abilities.server}'s seeds: it may round "
            "differently when other requests share its batch."
        )
    else:
        notes.append(
            f"{abilities.server} does not give the same tokens for the same seed, so "
            "the run cannot be repeated."
        )
    if not abilities.takes_ids and policy.spelling.chat_template is None:
        notes.append(
            f"{abilities.server} takes only text and is asked in plain text, without "
            "a chat template, and questions with parts such as <|im_end|> or [INST] "
            "are refused. A chat model needs --served-tokenizer, its tokenizer."
        )
    if abilities.unknown_controls:
        notes.append(
            f"{abilities.server} does not know the controls "
            f"{abilities.unknown_control_words}, so they are not sent. Whether "
            "it truncates unasked cannot be measured."
        )
    if abilities.draws_all is False:
        notes.append(
            f"{abilities.server} does not draw unlikely tokens as often as the model's "
            "own probabilities say: it truncates or changes them by default, and the "
            "results are those of the changed policy."
        )
    return tuple(notes)
