"""One step of every row, token by token, in one compiled loop.

Random numbers: token j of the step of the particle in slot i is drawn with
``fold_in(fold_in(key, i), j)``, where ``key`` is the problem's key of this step. So the
draws depend only on (seed, problem, particle, step, token).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.boundary import Boundary
from tsi.decoding.forced_end import (
    ForcedEnd,
    Places,
    allowed_tokens,
    end_step,
    is_in_string,
)
from tsi.decoding.repetition import penalise
from tsi.decoding.token_confidence import TokenConfidence
from tsi.decoding.token_draws import Temperatures, sample_among, sample_token
from tsi.models.attention import Segment
from tsi.models.decoder import KeyValues, LanguageModel
from tsi.models.decoder_config import DecoderConfig
from tsi.step_keys import AnyKey, typed_key
from tsi.weights import weight_dtype


class Decoding(NamedTuple):
    """Carry and result of the loop over the tokens of one step.

    Attributes:
        offset: tokens drawn so far by the longest row.
        token: the newest token, not yet in the cache, ``[R]``.
        state: state of the boundary's automaton, ``[R]``.
        active: rows that have not ended the step, ``[R]``.
        stopped: rows that ended their solution in this step, ``[R]``.
        counts: number of the step's tokens, ``[R]``.
        log_prob: log p of the step's tokens, ``[R]``.
        log_correction: log p - log q of the step's tokens, ``[R]``.
        tokens: the step's tokens, ``[R, C]``.
        new: keys and values of the tokens that were read.
        seen: which tokens occur in prompt and solution, ``[R, V]``; None without a
            penalty.
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
        width: C, the maximum number of tokens of a step.
        seen: which tokens occur in prompt and solution; None without a repetition
            penalty.
        forced_end: end that is forced at a limit, or None.
        places: places of the forced end in this step.
        confidence: confidence measure that is recorded at each token, or None.
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
        logits: logits of the next token.
        keys: the key of each row's step.
        room: the maximum number of tokens that each solution may add in this step.
        boundary: where steps and solutions end.
        temperatures: of policy and proposal.
        forced_end: end that is forced at a limit, or None.
        confidence: confidence measure that is recorded at each token, or None.

    Returns:
        The same tuple with these fields updated.
    """
    logits, seen = boundary.mask_padding(logits), rows.seen
    unprocessed = logits
    if temperatures.repetition is not None:
        logits = penalise(logits, seen, temperatures.repetition)
    # ``counts`` is the index of an active row's next token in its step.
    keys = jax.vmap(jax.random.fold_in)(keys, rows.counts)
    draw = sample_token(keys, logits, temperatures)
    if forced_end is not None:
        draw = _force(draw, rows, keys, logits, boundary, temperatures, forced_end)
    token, log_prob, log_correction = draw
    active, place = rows.active, rows.counts[:, None]
    token = jnp.where(active, token, rows.token)
    counts = rows.counts + active
    now = boundary.advance(rows.state, token, counts)
    state, ended, stopped = now
    if forced_end is not None:
        places, ended = end_step(forced_end, rows.places, counts, now)
        rows = rows._replace(places=_select_rows(active, places, rows.places))
        # A row ends with weight zero if the policy cannot draw its forced token.
        ended |= log_correction == -jnp.inf
        stopped &= log_correction > -jnp.inf
    if seen is not None:
        # In a row that is not active, this token is already marked.
        seen = seen.at[jnp.arange(seen.shape[0]), token].set(True)
    is_place = (jnp.arange(rows.tokens.shape[1]) == place) & active[:, None]
    confidences = rows.confidences
    if confidence is not None:
        value = confidence(unprocessed, token).astype(confidences.dtype)
        confidences = jnp.where(is_place, value[:, None], confidences)
    return rows._replace(
        token=token,
        state=jnp.where(active, state, rows.state),
        active=active & ~ended & (counts < room),
        stopped=rows.stopped | (active & stopped),
        counts=counts,
        log_prob=rows.log_prob + jnp.where(active, log_prob, 0.0),
        log_correction=rows.log_correction + jnp.where(active, log_correction, 0.0),
        tokens=jnp.where(is_place, token[:, None], rows.tokens),
        seen=seen,
        confidences=confidences,
    )


def _force(
    draw: tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]],
    rows: Any,
    keys: Any,
    logits: Float[Array, "R V"],
    boundary: Boundary,
    temperatures: Temperatures,
    forced_end: ForcedEnd,
) -> tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
    """Replace drawn tokens by draws from F where a token is forced."""
    place = rows.counts
    is_forced = is_in_string(forced_end, rows.places, place) | (
        place >= rows.places.end
    )

    def draw_allowed_token() -> tuple[
        Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]
    ]:
        allowed = allowed_tokens(
            forced_end, boundary, rows.places, place, rows.state, logits.shape[-1]
        )
        return _select_rows(
            is_forced, sample_among(keys, logits, allowed, temperatures), draw
        )

    # Forced tokens are rare, so this is skipped if no row has one.
    return jax.lax.cond(
        jnp.any(is_forced & rows.active), draw_allowed_token, lambda: draw
    )


def _select_rows(rows: Bool[Array, " R"], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(rows, a, b), new, old)
