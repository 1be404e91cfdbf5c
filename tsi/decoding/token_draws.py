"""Draws of one token per row, and their log probabilities, at a temperature.

Log p is the log probability under the policy p. The correction is log p - log q, where
the proposal q is the policy at another temperature, or restricted to some tokens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.categorical import categorical
from tsi.decoding.truncation import Truncation, truncate
from tsi.errors import ConfigurationError


class Temperatures(NamedTuple):
    """Temperatures of the policy p and the proposal q; 0 takes the most likely token.

    The truncation and the repetition penalty apply to both.

    Attributes:
        policy: temperature of p.
        proposal: temperature of q; None for q = p.
        truncation: restricts the tokens that may be drawn.
        repetition: the repetition penalty.
    """

    policy: Float[Array, ""]
    proposal: Float[Array, ""] | None = None
    truncation: Truncation | None = None
    repetition: Float[Array, ""] | None = None


def check_temperatures(policy: Any, proposal: Any = None) -> None:
    """Refuse an invalid temperature, or a proposal that cannot draw every token of p.

    Raises:
        ConfigurationError: see above.
    """
    for name, value in (("temperature", policy), ("proposal_temperature", proposal)):
        if value is None and name != "temperature":
            continue
        number = np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu"
        # Temperatures are float32 numbers on the device.
        with np.errstate(over="ignore"):
            single = np.float32(value) if number else np.float32(0)
        is_lost = bool(single == 0) and number and value > 0
        if not number or not value >= 0.0 or not np.isfinite(single) or is_lost:
            raise ConfigurationError(
                f"{name} is {value!r}. Give 0 for greedy, or a number above 0 between "
                "1e-45 and 3e38, the range of float32."
            )
    if proposal == 0.0 and policy > 0.0:
        raise ConfigurationError(
            f"A proposal of temperature 0 draws one token where the policy at "
            f"temperature {policy} may draw any, so no weight could correct it. Give "
            "a positive proposal_temperature."
        )


def scale_logits(
    logits: Float[Array, "*b V"], temperature: Float[Array, ""]
) -> Float[Array, "*b V"]:
    """Logits divided by the temperature (by 1 at temperature 0), with maximum 0."""
    # Without the shift, logits near temperature 0 would overflow.
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    return shifted / jnp.where(temperature > 0, temperature, 1.0)


def log_prob_of(
    logits: Float[Array, "*b V"],
    token: Int[Array, "*b"],
    temperature: Float[Array, ""],
    truncation: Truncation | None = None,
) -> Float[Array, "*b"]:
    """log p of tokens; at temperature 0, 0 for the most likely token and else -inf.

    NaN if any of the logits is.
    """
    mark = jnp.zeros((), logits.dtype)
    if truncation is not None:
        mark = nan_or_zero(logits)
        logits = truncate(logits, temperature, truncation)

    def log_softmax() -> Float[Array, "*b"]:
        scaled = scale_logits(logits, temperature)
        logit = jnp.take_along_axis(scaled, token[..., None], axis=-1)[..., 0]
        return logit - jax.nn.logsumexp(scaled, axis=-1)

    def log_greedy() -> Float[Array, "*b"]:
        is_likeliest = token == jnp.argmax(logits, axis=-1)
        log_p = jnp.where(is_likeliest, 0.0, -jnp.inf).astype(logits.dtype)
        return log_p + nan_or_zero(logits)

    # On a CPU the argmax of 50,000 logits takes as long as their softmax.
    return jax.lax.cond(temperature > 0, log_softmax, log_greedy) + mark


def nan_or_zero(logits: Float[Array, "*b V"]) -> Float[Array, "*b"]:
    """NaN where any of the logits is; truncation and argmax would hide it."""
    largest = jnp.max(logits, axis=-1)
    return jnp.where(jnp.isnan(largest), largest, jnp.zeros_like(largest))


def sample_token(
    keys: Any, logits: Float[Array, "R V"], temperatures: Temperatures
) -> tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
    """Draw one token per row, each row with its own key.

    At temperature 0 the most likely token is taken, and its log p is 0. log p is NaN if
    any of the logits is.

    Returns:
        Token ids, their log p under the policy, and log p - log q.
    """
    policy, proposal, truncation, _ = temperatures
    zeros = jnp.zeros(logits.shape[0], logits.dtype)
    mark = zeros
    if truncation is not None:
        mark = nan_or_zero(logits)
        logits = truncate(logits, policy, truncation)
    drawing = policy if proposal is None else proposal

    def take_likeliest() -> tuple[Int[Array, " R"], Float[Array, " R"]]:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        # NaN if a logit is, since the argmax is then its index.
        largest = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        return token, jnp.where(jnp.isnan(largest), largest, 0.0)

    token, log_q = jax.lax.cond(
        drawing > 0,
        lambda: categorical(keys, scale_logits(logits, drawing)),
        take_likeliest,
    )
    if proposal is None:
        return token, log_q + mark, zeros
    log_p = log_prob_of(logits, token, policy) + mark
    return token, log_p, log_p - log_q


def sample_among(
    keys: Any,
    logits: Float[Array, "R V"],
    allowed: Bool[Array, "R V"],
    temperatures: Temperatures,
) -> tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
    """Draw one token per row from the policy restricted to the allowed tokens.

    If the policy can draw none of them, the most likely allowed token before truncation
    is taken.

    Returns:
        Token ids, their log p under the unrestricted policy, and the log of the allowed
        tokens' total probability, which is log p - log q.
    """
    policy, _, truncation, _ = temperatures
    log_mass = log_prob_among(logits, allowed, policy, truncation)
    truncated_logits = (
        logits if truncation is None else truncate(logits, policy, truncation)
    )
    is_impossible = (log_mass == -jnp.inf)[:, None]
    masked_logits = jnp.where(
        allowed, jnp.where(is_impossible, logits, truncated_logits), -jnp.inf
    )
    argmax_token = jnp.argmax(masked_logits, axis=-1).astype(jnp.int32)
    token, _ = categorical(keys, scale_logits(masked_logits, policy))
    token = jnp.where((policy > 0) & ~is_impossible[:, 0], token, argmax_token)
    return token, log_prob_of(logits, token, policy, truncation), log_mass


def log_prob_among(
    logits: Float[Array, "R V"],
    allowed: Bool[Array, "R V"],
    temperature: Float[Array, ""],
    truncation: Truncation | None = None,
) -> Float[Array, " R"]:
    """The log of the allowed tokens' total probability."""
    if truncation is not None:
        logits = truncate(logits, temperature, truncation)

    def log_softmax() -> Float[Array, " R"]:
        scaled = scale_logits(logits, temperature)
        mass = jax.nn.logsumexp(jnp.where(allowed, scaled, -jnp.inf), axis=-1)
        return mass - jax.nn.logsumexp(scaled, axis=-1)

    def log_greedy() -> Float[Array, " R"]:
        best = jnp.argmax(logits, axis=-1)[:, None]
        is_allowed = jnp.take_along_axis(allowed, best, axis=-1)[:, 0]
        return jnp.where(is_allowed, 0.0, -jnp.inf).astype(logits.dtype)

    return jax.lax.cond(temperature > 0, log_softmax, log_greedy)
