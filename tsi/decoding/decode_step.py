"""One step of every row, token by token, in one compiled loop.

Random numbers: token j of the step of the particle in slot i is drawn with
``fold_in(fold_in(key, i), j)``, where ``key`` is the problem's key of this step. So the
draws depend only on (seed, problem, particle, step, token).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.boundary import Boundary
from tsi.decoding.categorical import categorical
from tsi.decoding.forced_end import (
    ForcedEnd,
    Places,
    allowed_tokens,
    end_step,
    in_string,
)
from tsi.decoding.repetition import penalise
from tsi.decoding.token_confidence import TokenConfidence
from tsi.decoding.truncation import Truncation, truncate
from tsi.errors import ConfigurationError
from tsi.models.decoder import KeyValues, LanguageModel
from tsi.models.decoder_config import DecoderConfig
from tsi.models.layers import Segment
from tsi.step_keys import AnyKey, typed_key
from tsi.weights import weight_dtype


class Decoding(NamedTuple):
    """The carry of the loop over the tokens of one step, and its result.

    Attributes:
        offset: tokens drawn so far by the longest row.
        token: the newest token, not yet in the cache, ``[R]``.
        state: of the boundary's automaton, ``[R]``.
        active: rows that have not ended the step, ``[R]``.
        stopped: rows that ended their solution in this step, ``[R]``.
        counts: number of the step's tokens, ``[R]``.
        log_prob: log p of them, ``[R]``.
        log_correction: log p - log q of them, ``[R]``.
        tokens: ``[R, C]``.
        new: keys and values of the tokens that were read.
        seen: tokens of prompt and solution, ``[R, V]``; None without a penalty.
        places: places of a forced end; None without one.
        confidences: the policy's confidence at each token of the step, ``[R, C]``; None
            if no reward reads it.
    """

    offset: Int[Array, ""]
    token: Int[Array, " R"]
    state: Int[Array, " R"]
    active: Bool[Array, " R"]
    stopped: Bool[Array, " R"]
    counts: Int[Array, " R"]
    log_prob: Float[Array, " R"]
    log_correction: Float[Array, " R"]
    tokens: Int[Array, "R C"]
    new: KeyValues
    seen: Bool[Array, "R V"] | None = None
    places: Places | None = None
    confidences: Float[Array, "R C"] | None = None


class Temperatures(NamedTuple):
    """Temperatures of the policy p and the proposal q; 0 takes the most likely token.

    The truncation and the penalty of repetition belong to both.

    Attributes:
        policy: temperature of p.
        proposal: temperature of q; None for q = p.
        truncation: tokens that p may draw.
        repetition: the penalty.
    """

    policy: Float[Array, ""]
    proposal: Float[Array, ""] | None = None
    truncation: Truncation | None = None
    repetition: Float[Array, ""] | None = None


def check_temperatures(policy: Any, proposal: Any = None) -> None:
    """Refuse an invalid temperature, and a proposal that cannot draw all that p can.

    Raises:
        ConfigurationError: see above.
    """
    for name, value in (("temperature", policy), ("proposal_temperature", proposal)):
        if value is None and name != "temperature":
            continue
        number = np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu"
        if not number or not 0.0 <= value < math.inf:
            raise ConfigurationError(
                f"{name} is {value!r}. Give a finite number: 0 for greedy, or above 0."
            )
    if proposal == 0.0 and policy > 0.0:
        raise ConfigurationError(
            f"A proposal of temperature 0 draws one token where the policy at "
            f"temperature {policy} may draw any, so no weight could correct it. Give "
            "a positive proposal_temperature."
        )


def row_keys(keys: AnyKey, rows: int) -> Any:
    """One key per row, from one key per problem (or from a single key)."""
    keys = jnp.atleast_1d(typed_key(keys))
    slots = jnp.arange(rows // keys.shape[0])
    fold = jax.vmap(lambda k: jax.vmap(lambda i: jax.random.fold_in(k, i))(slots))
    return fold(keys).reshape(rows)


def empty_key_values(
    config: DecoderConfig, rows: int, width: int, dtype: Any
) -> KeyValues:
    """Zeros for the keys and values of one step."""
    shape = (config.num_layers, rows, config.num_kv_heads)
    return KeyValues(
        jnp.zeros((*shape, config.head_width, width), dtype),
        jnp.zeros((*shape, width, config.head_width), dtype),
        jnp.zeros((rows, width), jnp.int32),
    )


def decode(
    policy: LanguageModel,
    boundary: Boundary,
    keys: Any,
    particles: Any,
    start: Int[Array, " R"],
    active: Bool[Array, " R"],
    temperatures: Temperatures,
    width: int,
    seen: Bool[Array, "R V"] | None = None,
    forced_end: ForcedEnd | None = None,
    places: Places | None = None,
    confidence: TokenConfidence | None = None,
) -> Decoding:
    """Sample tokens until every active row has ended its step.

    Args:
        policy: the language model.
        boundary: where steps and solutions end.
        keys: one key per row.
        particles: R rows, see :class:`tsi.reasoning.particles.Particles`.
        start: position of each row's pending token, ``[R]``.
        active: rows that take a step, ``[R]``.
        temperatures: of policy and proposal.
        width: C, the most tokens of a step.
        seen: tokens of prompt and solution; None without a penalty of repetition.
        forced_end: what is forced at a limit, or None.
        places: its places in this step.
        confidence: what is recorded of each token for the reward, or None.
    """
    rows = start.shape[0]
    max_tokens = particles.tokens.shape[1]

    def decode_token(c: Decoding) -> Decoding:
        mask = jnp.broadcast_to(jnp.arange(width) < c.offset, (rows, width))
        context = (
            particles.prompt,
            particles.suffix.segment,
            Segment(*c.new, mask),
        )
        position = (start + c.offset)[:, None]
        hidden, read = policy.trunk(c.token[:, None], position, None, context)
        update = jax.lax.dynamic_update_slice_in_dim
        new = KeyValues(
            update(c.new.keys, read.keys, c.offset, axis=-1),
            update(c.new.values, read.values, c.offset, axis=-2),
            update(c.new.positions, read.positions, c.offset, axis=-1),
        )
        return write_token(
            c._replace(new=new, offset=c.offset + 1),
            policy.logits(hidden[:, 0]),
            keys,
            max_tokens - particles.lengths,
            boundary,
            temperatures,
            forced_end,
            confidence,
        )

    zeros = jnp.zeros(rows, weight_dtype())
    return jax.lax.while_loop(
        lambda c: jnp.any(c.active) & (c.offset < width),
        decode_token,
        Decoding(
            offset=jnp.zeros((), jnp.int32),
            token=particles.pending,
            state=particles.boundary_state,
            active=active,
            stopped=jnp.zeros(rows, bool),
            counts=jnp.zeros(rows, jnp.int32),
            log_prob=zeros,
            log_correction=zeros,
            tokens=jnp.zeros((rows, width), jnp.int32),
            new=empty_key_values(
                policy.config, rows, width, particles.suffix.segment.keys.dtype
            ),
            seen=seen,
            places=places,
            confidences=None
            if confidence is None
            else jnp.zeros((rows, width), weight_dtype()),
        ),
    )


def write_token(
    rows: Any,
    logits: Float[Array, "R V"],
    keys: Any,
    room: Int[Array, " R"],
    boundary: Boundary,
    temperatures: Temperatures,
    forced_end: ForcedEnd | None = None,
    confidence: TokenConfidence | None = None,
) -> Any:
    """Draw the next token of every active row and append it.

    Args:
        rows: a :class:`Decoding`, or another tuple with its fields ``token`` to
            ``tokens``, ``seen``, ``places`` and ``confidences``.
        logits: of the next token.
        keys: one key per row, of its step.
        room: the most tokens that each solution may add in this step.
        boundary: where steps and solutions end.
        temperatures: of policy and proposal.
        forced_end: what is forced at a limit, or None.
        confidence: what is recorded of each token for the reward, or None.

    Returns:
        The same tuple with these fields updated.
    """
    logits, seen = boundary.mask_padding(logits), rows.seen
    unprocessed = logits
    if temperatures.repetition is not None:
        logits = penalise(logits, seen, temperatures.repetition)
    # ``counts`` is the index of an active row's next token in its step.
    keys = jax.vmap(jax.random.fold_in)(keys, rows.counts)
    drawn = sample_token(keys, logits, temperatures)
    if forced_end is not None:
        drawn = _force(drawn, rows, keys, logits, boundary, temperatures, forced_end)
    token, log_prob, log_correction = drawn
    active, place = rows.active, rows.counts[:, None]
    token = jnp.where(active, token, rows.token)
    counts = rows.counts + active
    now = boundary.advance(rows.state, token, counts)
    state, ended, stopped = now
    if forced_end is not None:
        places, ended = end_step(forced_end, rows.places, counts, now)
        rows = rows._replace(places=_where(active, places, rows.places))
        # A row whose forced token the policy cannot draw has weight zero: it ends.
        ended |= log_correction == -jnp.inf
        stopped &= log_correction > -jnp.inf
    if seen is not None:
        # For a row that is not active this token is marked already.
        seen = seen.at[jnp.arange(seen.shape[0]), token].set(True)
    here = (jnp.arange(rows.tokens.shape[1]) == place) & active[:, None]
    confidences = rows.confidences
    if confidence is not None:
        value = confidence(unprocessed, token).astype(confidences.dtype)
        confidences = jnp.where(here, value[:, None], confidences)
    return rows._replace(
        token=token,
        state=jnp.where(active, state, rows.state),
        active=active & ~ended & (counts < room),
        stopped=rows.stopped | (active & stopped),
        counts=counts,
        log_prob=rows.log_prob + jnp.where(active, log_prob, 0.0),
        log_correction=rows.log_correction + jnp.where(active, log_correction, 0.0),
        tokens=jnp.where(here, token[:, None], rows.tokens),
        seen=seen,
        confidences=confidences,
    )


def _force(
    drawn: tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]],
    rows: Any,
    keys: Any,
    logits: Float[Array, "R V"],
    boundary: Boundary,
    temperatures: Temperatures,
    forced_end: ForcedEnd,
) -> tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
    """Replace drawn tokens by draws from F where a token is forced."""
    place = rows.counts
    here = in_string(forced_end, rows.places, place) | (place >= rows.places.end)

    def draw_allowed_token() -> tuple[
        Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]
    ]:
        allowed = allowed_tokens(
            forced_end, boundary, rows.places, place, rows.state, logits.shape[-1]
        )
        return _where(here, sample_among(keys, logits, allowed, temperatures), drawn)

    # Forced tokens are rare, so this is skipped where no row has one.
    return jax.lax.cond(jnp.any(here & rows.active), draw_allowed_token, lambda: drawn)


def _where(rows: Bool[Array, " R"], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(rows, a, b), new, old)


def scale_logits(
    logits: Float[Array, "*b V"], temperature: Float[Array, ""]
) -> Float[Array, "*b V"]:
    """Logits divided by the temperature (by 1 at temperature 0), the largest one 0."""
    # Without the shift, logits near temperature 0 would overflow.
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    return shifted / jnp.where(temperature > 0, temperature, 1.0)


def log_prob_of(
    logits: Float[Array, "*b V"],
    token: Int[Array, "*b"],
    temperature: Float[Array, ""],
    truncation: Truncation | None = None,
) -> Float[Array, "*b"]:
    """log p of tokens; at temperature 0, 0 for the most likely token and else -inf."""
    if truncation is not None:
        logits = truncate(logits, temperature, truncation)

    def log_softmax() -> Float[Array, "*b"]:
        scaled = scale_logits(logits, temperature)
        chosen = jnp.take_along_axis(scaled, token[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(scaled, axis=-1)

    def log_greedy() -> Float[Array, "*b"]:
        return jnp.where(token == jnp.argmax(logits, axis=-1), 0.0, -jnp.inf).astype(
            logits.dtype
        )

    # On a CPU the argmax of 50,000 logits takes as long as their softmax.
    return jax.lax.cond(temperature > 0, log_softmax, log_greedy)


def sample_token(
    keys: Any, logits: Float[Array, "R V"], temperatures: Temperatures
) -> tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
    """Draw one token per row, each row with its own key.

    At temperature 0 the most likely token is taken, and its log p is 0.

    Returns:
        Token ids, their log p under the policy, and log p - log q.
    """
    policy, proposal, truncation, _ = temperatures
    if truncation is not None:
        logits = truncate(logits, policy, truncation)
    zeros = jnp.zeros(logits.shape[0], logits.dtype)
    drawing = policy if proposal is None else proposal
    token, log_q = jax.lax.cond(
        drawing > 0,
        lambda: categorical(keys, scale_logits(logits, drawing)),
        lambda: (jnp.argmax(logits, axis=-1).astype(jnp.int32), zeros),
    )
    if proposal is None:
        return token, log_q, zeros
    log_p = log_prob_of(logits, token, policy)
    return token, log_p, log_p - log_q


def sample_among(
    keys: Any,
    logits: Float[Array, "R V"],
    allowed: Bool[Array, "R V"],
    temperatures: Temperatures,
) -> tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
    """Draw one token per row from the policy restricted to the allowed tokens.

    If the policy can draw none of them, the most likely one before truncation is taken.

    Returns:
        Token ids, their log p under the unrestricted policy, and the log of the allowed
        tokens' total probability, which is log p - log q.
    """
    policy, _, truncation, _ = temperatures
    log_mass = log_prob_among(logits, allowed, policy, truncation)
    kept = logits if truncation is None else truncate(logits, policy, truncation)
    impossible = (log_mass == -jnp.inf)[:, None]
    masked = jnp.where(allowed, jnp.where(impossible, logits, kept), -jnp.inf)
    likeliest = jnp.argmax(masked, axis=-1).astype(jnp.int32)
    token, _ = categorical(keys, scale_logits(masked, policy))
    token = jnp.where((policy > 0) & ~impossible[:, 0], token, likeliest)
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
