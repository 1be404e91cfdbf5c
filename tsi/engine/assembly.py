"""An engine from its parts: a policy, a reward, and where steps and solutions end."""

from collections.abc import Callable, Sequence
from typing import Literal

from jax.sharding import Mesh

from tsi.decoding.forced_end import ForcedEnd
from tsi.decoding.vocabularies import boundary_of
from tsi.engine.engine import Engine
from tsi.engine.sizing.planning import device_limits
from tsi.errors import ConfigurationError
from tsi.loading.named_reward import LoadedReward
from tsi.loading.policy import Policy
from tsi.reasoning.limits import SolutionLimits
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.aggregation import Aggregated
from tsi.rewards.policy_value import PolicyValue
from tsi.rewards.process_reward import ProcessReward
from tsi.rewards.reward import Reward
from tsi.rewards.text_reader import TextReader


def reasoning_engine(
    policy: Policy,
    reward: LoadedReward | Reward,
    limits: SolutionLimits,
    *,
    delimiters: Sequence[str] = ("\n\n",),
    stop_strings: Sequence[str] = (),
    min_step_tokens: int = 1,
    forced_end: ForcedEnd | None = None,
    encode: Callable[[str], list[int]] | None = None,
    longest_prompt: str = "",
    cache_dtype: str | None = None,
    max_rows: int | None = None,
    max_stored: int | None = None,
    mesh: Mesh | None = None,
    offload_weights: bool = False,
    attention: Literal["plain", "kernel"] = "plain",
) -> Engine:
    r"""The engine that runs samplers on problems of one policy and one reward.

    Args:
        policy: as :func:`tsi.load_policy` gives it.
        reward: as :func:`tsi.load_reward` gives it, or one that needs no model, such as
            ``tsi.rewards.TextReward(score, policy.tokenizer.decode)``.
        limits: of a solution.
        delimiters: strings each of which ends a step.
        stop_strings: strings each of which ends the solution, in addition to the
            policy's end tokens.
        min_step_tokens: a delimiter that comes sooner does not end the step.
        forced_end: text that is forced at a limit; its probability enters the weight.
        encode: a problem's prompt to token ids; by default one turn of a chat.
        longest_prompt: tokens of the longest prompt, from which the number of rows that
            fit into memory is computed.
        cache_dtype: type of keys and values; None for the type of the weights.
        max_rows: rows for which tokens are drawn together on one device, or group of
            devices; None for a number that suits the models and the device.
        max_stored: prefixes that explorers store at once; None for a number that suits
            the device.
        mesh: devices, as :class:`tsi.engine.engine.Engine` divides them.
        offload_weights: as for :class:`tsi.engine.engine.Engine`; load both models on
            the host.
        attention: as for :class:`tsi.engine.engine.Engine`.

    Raises:
        ConfigurationError: the policy cannot write a delimiter or stop string; the
            reward is only a name, or needs a model and has none; the limits contradict
            the boundary or the forced end; or as for :class:`tsi.engine.engine.Engine`.
    """
    for name, strings in (("delimiters", delimiters), ("stop_strings", stop_strings)):
        if isinstance(strings, str | bytes):
            raise ConfigurationError(
                f"{name} is {strings!r}. Give a list of strings, as in [{strings!r}]."
            )
    loaded = reward if isinstance(reward, LoadedReward) else LoadedReward(reward)
    check_has_model(loaded)
    tokenizer, config = policy.tokenizer, policy.model.config
    target = ReasoningTarget(
        boundary_of(
            tokenizer,
            config.vocab_size,
            [delimiter.encode() for delimiter in delimiters],
            policy.eos_ids,
            stop_strings=[string.encode() for string in stop_strings],
            min_step_tokens=min_step_tokens,
        ),
        loaded.reward,
        max_step_tokens=limits.max_step_tokens,
        max_tokens=limits.max_tokens,
        max_steps=limits.max_steps,
        forced_end=forced_end,
    )
    encode = encode or tokenizer.encode_prompt
    prompt = len(encode(longest_prompt))
    planned = device_limits(
        target,
        policy.model,
        loaded.model,
        prompt,
        mesh,
        cache_dtype,
        max_rows,
        offload_weights=offload_weights,
    )
    rows = planned.rows if max_rows is None else max_rows
    engine = Engine(
        target,
        policy.model,
        loaded.model,
        encode=encode,
        decode=tokenizer.decode,
        temperature=policy.drawing.temperature,
        truncation=policy.drawing.truncation,
        repetition_penalty=policy.drawing.repetition_penalty,
        cache_dtype=cache_dtype,
        max_rows=rows,
        max_stored=max_stored,
        mesh=mesh,
        offload_weights=offload_weights,
        attention=attention,
    )
    if max_stored is None:
        engine.max_stored = max(planned.stored, rows)
    engine.max_in_flight = min(engine.max_in_flight, planned.in_flight)
    return engine


def check_has_model(loaded: LoadedReward) -> None:
    """Check that the argument is a reward and has the model that it needs.

    Raises:
        ConfigurationError: it is the name of a reward, or it has no model.
    """
    hint = "Use tsi.load_reward(name, policy, limits)."
    reward = loaded.reward
    if isinstance(reward, str):
        raise ConfigurationError(f"The reward is {reward!r}, a name. {hint}")
    if isinstance(reward, Aggregated):
        reward = reward.reward
    needs_model = isinstance(reward, ProcessReward | PolicyValue | TextReader)
    if needs_model and loaded.model is None:
        raise ConfigurationError(
            f"A {type(reward).__name__} reads with a model, and none is given. {hint}"
        )
