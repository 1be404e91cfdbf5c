"""Rewards for served policies by name, as in ``--reward``.

    verifier, outcome-verifier, none      as for a policy of this machine
    mean-log-prob[:OPTIONS]               the server's log p of the solution
    judge                                 the policy's own judgement, by its server
    served-judge:URL#MODEL                that of a policy behind another server
    served-prm:URL#MODEL[,format=FORMAT][,tokenizer=PATH]
                                          a reward model behind a server
    MODEL, head:MODEL                     a token head of this machine, same tokenizer
    FORMAT:MODEL                          a published reward model of this machine

FORMAT is one of :data:`tsi.rewards.formats.FORMATS`; "qwen" if none is given and `tsi
models` does not list the model.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from tsi.decoding.step_texts import text_so_far
from tsi.errors import CapabilityError, ConfigurationError, UnknownNameError
from tsi.loading.confidence_reward import MEASURE_OF, confidence_reward
from tsi.loading.language_reward import (
    QUESTION_TOKENS,
    TOKENS_PER_STEP,
    formatted_reward,
)
from tsi.loading.model_checks import check_has_rows, check_same_tokens, load_model
from tsi.loading.named_reward import Check, NamedReward, parse_reward
from tsi.loading.self_judge import JUDGE_QUESTION
from tsi.models.decoder import RewardModel
from tsi.models.loading.catalogue import MODELS
from tsi.models.loading.checkpoint import load
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.reasoning.limits import SolutionLimits
from tsi.rewards.formats import FORMATS, OutcomeFormat
from tsi.rewards.formatted import FormattedReward
from tsi.rewards.verifier import Verifier
from tsi.serving.abilities import Abilities
from tsi.serving.address import parse_address, server_key
from tsi.serving.client import Client, Patience
from tsi.serving.confidence_scorer import ConfidenceScorer, check_known
from tsi.serving.connect import connect
from tsi.serving.identify import list_models
from tsi.serving.judge_question import judge_question
from tsi.serving.local_rendering import IdRenderer, TextRenderer
from tsi.serving.local_scorer import MAX_BYTES, LocalScorer
from tsi.serving.policy import ServedPolicy
from tsi.serving.scorer import HostScorer, NoScorer, ScoredRow, Scorer, ServedScorer
from tsi.serving.served_judge import ServedJudge
from tsi.serving.served_prm import ChosenMarks, MarkScores, PooledMarks, ServedPrm
from tsi.serving.step import Controls

JUDGE, PRM = "served-judge", "served-prm"
MAX_CONTEXT = 2**20


class RewardSettings(NamedTuple):
    """What the rewards of a run have in common.

    Attributes:
        limits: of a solution.
        checks: functions for ``verifier`` and ``outcome-verifier``, by these names.
        encode: function from a problem's prompt to ids of the policy; None for the
            policy's own.
        tokenizer: the policy's tokenizer; None if only its server has one.
        controls: how the policy's tokens are drawn.
        aggregation: how step scores are aggregated.
        question: question to a judge, answered by Yes or No.
        prompt_tokens: tokens of the longest question or prompt that a reward model
            reads.
        dtype, weights: types of a model on this machine; see
            :func:`tsi.loading.named_reward.load_reward`.
        max_bytes: the maximum number of bytes of keys and values that a model on this
            machine keeps.
        patience: limits of the clients of reward servers.
    """

    limits: SolutionLimits
    checks: Mapping[str, Check] = MappingProxyType({})
    encode: Callable[[str], list[int]] | None = None
    tokenizer: Tokenizer | None = None
    controls: Controls = Controls()
    aggregation: str = "last"
    question: str = JUDGE_QUESTION
    prompt_tokens: int = QUESTION_TOKENS
    dtype: str = "float32"
    weights: str | None = None
    max_bytes: int = MAX_BYTES
    patience: Patience = Patience()


def served_reward(
    name: str, policy: ServedPolicy, settings: RewardSettings
) -> Scorer | ServedScorer:
    """The reward with a name, for solutions of a served policy.

    Args:
        name: see the module docstring.
        policy: the policy whose solutions are scored.
        settings: settings of the run.

    Raises:
        UnknownNameError: there is no such reward, model, format or aggregation.
        ConfigurationError: the name is malformed, the reward needs something that is
            missing, or a model has another tokenizer than the policy.
        CapabilityError: the reward needs something that the server does not provide.
        CheckpointError: a model cannot be read.
        ServerError: a reward server cannot be reached, or sends an invalid answer.
    """
    kind, _, argument = name.partition(":")
    if kind == JUDGE and argument:
        return _other_judge(argument, policy, settings)
    if kind == PRM and argument:
        return _served_prm(argument, policy, settings, name)
    if kind in (JUDGE, PRM):
        raise ConfigurationError(
            f"The reward {kind} is written {kind}:URL#MODEL, not {name!r}."
        )
    reward = parse_reward(name, settings.aggregation)
    if reward.kind == "none":
        return NoScorer()
    if reward.kind in ("verifier", "outcome-verifier"):
        if reward.kind not in settings.checks:
            raise ConfigurationError(
                f"The reward {reward.kind} is an exact check, and this task has none; "
                "name another reward."
            )
        check = settings.checks[reward.kind]
        return HostScorer(Verifier(check, policy.spelling.decode), reward.kind)
    if reward.kind in MEASURE_OF:
        return _confidence(reward, policy.abilities, settings)
    if reward.kind == "judge":
        return ServedJudge(
            policy,
            judge_question(settings.tokenizer or policy.spelling, settings.question),
            settings.encode or policy.spelling.encode_prompt,
            aggregation=settings.aggregation,
        )
    if reward.kind in ("likelihood", "value"):
        reasons = {
            "value": "hidden states of the policy, which a server does not give",
            "likelihood": "log p under a second model of the same steps, which is not "
            "supported over a server",
        }
        raise CapabilityError(
            f"The reward {name} needs {reasons[reward.kind]}. Use judge, served-prm:URL"
            "#MODEL, a reward model of this machine or an exact check."
        )
    return _make_local_scorer(reward, policy, settings)


def _confidence(
    reward: NamedReward, abilities: Abilities, settings: RewardSettings
) -> ConfidenceScorer:
    measure = confidence_reward(
        reward.kind, reward.argument, settings.limits.max_tokens
    )
    scorer = ConfidenceScorer(measure, str(reward))
    check_known(str(reward), abilities, settings.controls)
    return scorer


def _make_local_scorer(
    reward: NamedReward, policy: ServedPolicy, settings: RewardSettings
) -> LocalScorer:
    """A reward model on this machine."""
    kind, argument, aggregation = reward
    limits, path = settings.limits, get(argument)
    if kind == "head":
        if settings.tokenizer is None:
            raise ConfigurationError(
                f"The reward {reward} reads the policy's token ids, so its tokenizer "
                "must be the policy's, and whether it is can be seen only from the "
                "files of both. Name the policy's tokenizer (--served-tokenizer), or "
                "the format that the reward model was trained with, as in qwen:PATH."
            )
        check_same_tokens(
            settings.tokenizer, load_tokenizer(path), policy.name, argument
        )
        model = load_model(
            path, RewardModel, "reward", settings.dtype, None, settings.weights
        )
        longest = settings.prompt_tokens + limits.max_tokens
        renderer = IdRenderer(
            settings.encode or policy.spelling.encode_prompt,
            min(longest, model.config.max_length),
            aggregation,
        )
        return LocalScorer(model, renderer, str(reward), settings.max_bytes)
    text_model, config = load(path, dtype=settings.dtype, weights=settings.weights)
    tokenizer = load_tokenizer(path)
    check_has_rows(tokenizer, config)
    text_reward = formatted_reward(
        kind,
        tokenizer,
        config,
        policy.spelling.decode,
        max_steps=limits.max_steps,
        max_tokens=limits.max_tokens,
        prompt_tokens=max(settings.prompt_tokens, QUESTION_TOKENS),
        aggregation=aggregation,
    )
    return LocalScorer(
        text_model, TextRenderer(text_reward), str(reward), settings.max_bytes
    )


def _other_judge(
    address: str, policy: ServedPolicy, settings: RewardSettings
) -> ServedJudge:
    """A judge behind another server, with its own tokenizer."""
    judge = connect(address, patience=settings.patience)
    spelling, decode = judge.spelling, policy.spelling.decode

    def translate(row: ScoredRow) -> list[int]:
        text = text_so_far(decode, list(row.tokens), finished=row.finished)
        return spelling.encode(text)

    try:
        return ServedJudge(
            judge,
            judge_question(spelling, settings.question),
            spelling.encode_prompt,
            translate=translate,
            aggregation=settings.aggregation,
            name=f"{JUDGE}:{judge.abilities.model}",
            address=judge.client.address.url,
        )
    except BaseException:
        judge.client.close()
        raise


def _served_prm(
    text: str, policy: ServedPolicy, settings: RewardSettings, name: str
) -> ServedPrm:
    """A reward model behind a server."""
    address, options = parse_prm(text)
    model = parse_address(address).model
    listed = model if model in MODELS else None
    published = None if listed is None else MODELS[listed].format
    kind = options.get("format") or published or "qwen"
    if kind not in FORMATS:
        raise UnknownNameError("format of a reward model", kind, FORMATS)
    place = options.get("tokenizer") or listed
    if place is None:
        raise ConfigurationError(
            f"The reward {name:.200} is rendered and encoded on this machine, so that "
            "no text can pass for a control token. Name the tokenizer of the reward "
            f"model, a folder or GGUF file, as in {PRM}:URL#MODEL,format={kind},"
            "tokenizer=PATH."
        )
    tokenizer = load_tokenizer(get(place))
    limits, format = settings.limits, FORMATS[kind](tokenizer)
    longest = max(settings.prompt_tokens, QUESTION_TOKENS)
    longest += 2 * limits.max_tokens + TOKENS_PER_STEP * limits.max_steps

    def reward_within(context: int) -> FormattedReward:
        return FormattedReward(
            format,
            policy.spelling.decode,
            max_steps=limits.max_steps,
            max_tokens=min(longest, context),
            aggregation=settings.aggregation,
        )

    # Refuse an unknown aggregation before a request is sent.
    reward_within(MAX_CONTEXT)
    if format.answers is not None:
        judge = connect(address, tokenizer=tokenizer, patience=settings.patience)
        reward = reward_within(judge.abilities.context or MAX_CONTEXT)
        model = judge.abilities.model
        url = judge.client.address.url
        marks: MarkScores = ChosenMarks(judge, format.answers)
        return ServedPrm(marks, reward, f"{PRM}:{model},format={kind}", url)
    client = Client(parse_address(address), server_key(), settings.patience)
    try:
        served, context = client.call(_model_of(client, model))
        probe = format.render("1+1", ["2"], True).tokens
        whole = isinstance(format, OutcomeFormat)
        marks = PooledMarks(client, model, whole, probe)
    except BaseException:
        client.close()
        raise
    name = f"{PRM}:{served},format={kind}"
    return ServedPrm(marks, reward_within(context), name, client.address.url)


def parse_prm(text: str) -> tuple[str, dict[str, str]]:
    """The address and options of ``URL#MODEL[,format=FORMAT][,tokenizer=PATH]``.

    Raises:
        UnknownNameError: an option is unknown.
        ConfigurationError: an option is empty or given twice.

    >>> parse_prm("http://host:8000#m,format=qwen")
    ('http://host:8000#m', {'format': 'qwen'})
    """
    address, *parts = text.split(",")
    options: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in ("format", "tokenizer"):
            raise UnknownNameError(f"option of {PRM}", key, ["format", "tokenizer"])
        if not value or key in options:
            raise ConfigurationError(
                f"The option {key} of {PRM} is empty or given twice; write {key}=VALUE "
                "once."
            )
        options[key] = value
    return address, options


async def _model_of(client: Client, model: str | None) -> tuple[str, int]:
    """Name and positions of a reward model, as its server lists them."""
    models = await list_models(client)
    names = [entry["id"] for entry in models]
    if model is not None and model not in names:
        raise UnknownNameError(f"model at {client.address.url}", model, names)
    entry = models[0] if model is None else models[names.index(model)]
    context = entry.get("max_model_len")
    if isinstance(context, int) and 0 < context < MAX_CONTEXT:
        return entry["id"], context
    return entry["id"], MAX_CONTEXT
