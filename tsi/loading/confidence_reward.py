"""Rewards from the policy's confidence by name: ``KIND`` or ``KIND:OPTIONS``.

    mean-log-prob      log p of the tokens
    self-certainty     divergence of the next-token distribution from the uniform one
    tail-entropy       negative entropy of the next-token distribution, last 64 tokens
    token-confidence   negative mean log p of the 20 most likely next tokens (DeepConf)

Options are separated by commas, as in ``self-certainty:worst=32,scale=raw``:

    last=W             the mean over the last W tokens, instead of all tokens
    worst=W            the smallest mean over W neighbouring tokens
    scale=raw          the score itself as log-odds; by default it becomes a probability
    slope=A, offset=B  log-odds A f + B, where f are those of the scale
    k=K                number of most likely tokens, for token-confidence
"""

from typing import Any

from tsi.decoding.token_confidence import TokenConfidence
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.rewards.policy_confidence import PolicyConfidence

MEASURE_OF = {
    "mean-log-prob": "log-prob",
    "self-certainty": "self-certainty",
    "tail-entropy": "negative-entropy",
    "token-confidence": "top-k",
}
"""The measure of :class:`TokenConfidence` of each kind."""

DEFAULTS: dict[str, dict[str, Any]] = {"tail-entropy": {"window": "last", "size": 64}}
"""The arguments of :class:`PolicyConfidence` that a kind sets without options."""

NUMBERS = {"last": int, "worst": int, "k": int, "slope": float, "offset": float}
"""Options that are numbers, and their types."""


def confidence_reward(kind: str, options: str, max_tokens: int) -> PolicyConfidence:
    """The reward of a kind and its options.

    Args:
        kind: one of :data:`MEASURE_OF`.
        options: see the module docstring; may be empty.
        max_tokens: of a solution.

    Raises:
        UnknownNameError: for an unknown option or scale.
        ConfigurationError: for an option without a valid value, an option that is given
            twice or belongs to another kind, or two windows.
    """
    values = parse_options(kind, options)
    confidence = TokenConfidence(MEASURE_OF[kind], **_part(values, "k"))
    settings = DEFAULTS.get(kind, {}) | _part(values, "scale", "slope", "offset")
    for window in ("last", "worst"):
        if window in values:
            settings |= {"window": window, "size": values[window]}
    return PolicyConfidence(confidence, max_tokens, **settings)


def parse_options(kind: str, options: str) -> dict[str, Any]:
    """Options by name; values that are numbers are converted.

    Raises:
        UnknownNameError, ConfigurationError: see :func:`confidence_reward`.
    """
    known_names = [*NUMBERS, "scale"]
    if kind != "token-confidence":
        known_names.remove("k")
    values: dict[str, Any] = {}
    for option in options.split(",") if options else []:
        name, _, text = option.partition("=")
        if name not in known_names:
            raise UnknownNameError(f"option of the reward {kind}", name, known_names)
        if name in values:
            raise ConfigurationError(
                f"The option {name} of the reward {kind} is given twice. Give it once."
            )
        number = NUMBERS.get(name, str)
        try:
            values[name] = number(text)
        except ValueError:
            raise ConfigurationError(
                f"The option {name} of the reward {kind} is {text!r}. Give "
                f"{'an integer' if number is int else 'a number'}, as in {name}=2."
            ) from None
    if "last" in values and "worst" in values:
        raise ConfigurationError(
            f"The reward {kind} has one window, and both last and worst are given. "
            "Give one of them."
        )
    return values


def _part(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}
