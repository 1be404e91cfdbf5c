"""The target of reasoning for explorers: a store of prefixes.

M rows are stored with their caches. In each turn W of them are taken out, cut back,
extended and stored again. Only new tokens are computed: a cut masks cache positions,
and a repeated step is read in one pass instead of token by token. Costs are set to zero
when rows are taken out, and are added to the stored costs when the rows are stored.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.boundary import Advance
from tsi.decoding.cache import cut, keep, take
from tsi.decoding.decode_step import Decoding
from tsi.decoding.forced_end import ForcedStep, read_forced
from tsi.decoding.repetition import mark_seen_within, penalise
from tsi.decoding.token_draws import log_prob_among, log_prob_of
from tsi.errors import ConfigurationError
from tsi.models.attention import Segment
from tsi.reasoning.cost import zero_cost
from tsi.reasoning.particles import (
    History,
    Particles,
    ReasoningParams,
    StepIndex,
    without_caches,
)
from tsi.rewards.reward import as_int32
from tsi.step_keys import AnyKey
from tsi.weights import weight_dtype


@dataclasses.dataclass(frozen=True, eq=False)
class ReasoningStore:
    """A `ReasoningTarget` with `truncate`, `replay`, `log_prob` and `put`."""

    # A ReasoningTarget; its module imports this one.
    target: Any

    @property
    def max_steps(self) -> int:
        """The target's step limit."""
        return self.target.max_steps

    def init(
        self, key: AnyKey | None, num_particles: int, params: ReasoningParams
    ) -> Particles:
        """M empty rows per problem, with room for a solution and one more step."""
        # A turn has rows of all lengths, so a short row's step may begin after the
        # slots of the longest row.
        capacity = self.target.max_tokens + self.target.max_step_tokens
        return self.target.init(key, num_particles, params, capacity)

    def propose(
        self,
        key: AnyKey,
        t: StepIndex,
        particles: Particles,
        params: ReasoningParams,
    ) -> tuple[Particles, Float[Array, " R"]]:
        """See `ReasoningTarget.propose`."""
        return self.target.propose(key, t, particles, params)

    def propose_some(
        self,
        key: AnyKey,
        t: StepIndex,
        particles: Particles,
        params: ReasoningParams,
        active: Bool[Array, " R"],
    ) -> tuple[Particles, Float[Array, " R"]]:
        """See `ReasoningTarget.propose_some`."""
        return self.target.propose_some(key, t, particles, params, active)

    def log_potential(
        self, t: StepIndex, particles: Particles, params: Any
    ) -> Float[Array, " R"]:
        """See `ReasoningTarget.log_potential`."""
        return self.target.log_potential(t, particles, params)

    def finished(self, particles: Particles) -> Bool[Array, " R"]:
        """Whether each row takes no further step."""
        return particles.finished

    def log_prob(self, particles: Particles, params: Any) -> Float[Array, " R"]:
        """log p of each solution so far."""
        return particles.log_prob

    @property
    def log_proposal(self) -> Callable[[Particles, Any], Float[Array, " R"]] | None:
        """A function for log q of each solution so far; None if q is the policy."""
        return None if self.target.forced_end is None else _log_proposal

    def gather(self, particles: Particles, rows: Int[Array, " W"]) -> Particles:
        """Take W rows out of the store, with costs of zero."""
        gathered = jax.tree.map(lambda leaf: leaf[rows], without_caches(particles))
        return gathered._replace(
            prompt=particles.prompt,
            suffix=take(particles.suffix, rows),
            reward_state=self.target.reward.take(particles.reward_state, rows),
            cost=zero_cost(rows.shape[0]),
        )

    def put(
        self, stored: Particles, slots: Int[Array, " W"], rows: Particles
    ) -> Particles:
        """Overwrite the rows at `slots` with W rows; slots out of range are dropped."""
        merged = jax.tree.map(
            lambda old, new: old.at[slots].set(new, mode="drop"),
            without_caches(stored),
            without_caches(rows),
        )
        return merged._replace(
            prompt=stored.prompt,
            suffix=keep(stored.suffix, slots, rows.suffix),
            reward_state=self.target.reward.keep(
                stored.reward_state, slots, rows.reward_state
            ),
            # The cost of an overwritten row still counts.
            cost=jax.tree.map(
                lambda old, new: old.at[slots].add(new, mode="drop"),
                stored.cost,
                rows.cost,
            ),
        )

    def truncate(
        self, particles: Particles, depths: Int[Array, " R"], params: ReasoningParams
    ) -> Particles:
        """Cut rows back to their first `depths` steps."""
        rows = self.shorten(particles, depths, params)
        return rows._replace(
            suffix=cut(particles.suffix, rows.lengths),
            reward_state=self.target.reward.cut(particles.reward_state, rows.lengths),
        )

    def shorten(
        self, particles: Particles, depths: Int[Array, " R"], params: ReasoningParams
    ) -> Particles:
        """As `truncate`, without the caches and the reward's state."""
        num_steps = jnp.sum(particles.step_ends > 0, axis=1)
        shorter = depths < num_steps
        steps = jnp.arange(self.max_steps)
        last = jnp.maximum(depths - 1, 0)[:, None]

        def value_after_cut(by_step: Array, now: Array, at_start: Array) -> Array:
            value = jnp.take_along_axis(by_step, last, axis=1)[:, 0]
            return jnp.where(shorter, jnp.where(depths > 0, value, at_start), now)

        zero = jnp.zeros((), jnp.int32)
        lengths = value_after_cut(particles.step_ends, particles.lengths, zero)
        prompts = as_int32(params.prompts)
        last_of_prompt = jnp.take_along_axis(
            prompts.tokens, prompts.lengths[:, None] - 1, axis=1
        )[:, 0]
        last_of_prompt = jnp.repeat(
            last_of_prompt, depths.shape[0] // last_of_prompt.shape[0]
        )
        newest = jnp.maximum(lengths - 1, 0)[:, None]
        newest = jnp.take_along_axis(particles.tokens, newest, axis=1)[:, 0]
        newest = jnp.where(lengths > 0, newest, last_of_prompt)
        history = particles.history
        is_cut = shorter[:, None] & (steps >= depths[:, None])
        return particles._replace(
            lengths=lengths,
            step_ends=jnp.where(is_cut, 0, particles.step_ends),
            pending=jnp.where(shorter, newest, particles.pending),
            boundary_state=value_after_cut(
                history.boundary_state, particles.boundary_state, zero
            ),
            finished=particles.finished & ~shorter,
            truncated=particles.truncated & ~shorter,
            log_prob=value_after_cut(history.log_prob, particles.log_prob, zero),
            log_proposal=value_after_cut(
                history.log_proposal, particles.log_proposal, zero
            ),
            log_odds=value_after_cut(history.log_odds, particles.log_odds, zero),
            history=History(*(jnp.where(is_cut, 0, leaf) for leaf in history)),
        )

    def replay(
        self,
        t: StepIndex,
        particles: Particles,
        sources: Particles,
        params: ReasoningParams,
    ) -> tuple[Particles, Float[Array, " R"]]:
        """Extend each unfinished row by step t of its source; also return its log p.

        See `repeat_step`.
        """
        context = (particles.prompt, particles.suffix.segment)
        step, impossible = self.repeat_step(t, particles, sources, params, context)
        rows = self.target.append_step(t, particles, step, params, is_drawn=False)
        return rows, jnp.where(impossible, -jnp.inf, step.log_prob)

    def repeat_step(
        self,
        t: StepIndex,
        particles: Particles,
        sources: Particles,
        params: ReasoningParams,
        context: tuple[Segment, ...],
        width: int | None = None,
    ) -> tuple[Decoding, Bool[Array, " R"]]:
        """Read step t of each row's source after the row; find where it is impossible.

        A step is impossible after a prefix if it would have ended at another token (a
        delimiter may begin in an earlier step that was cut), or if it would exceed the
        token limit. Then the row is not changed and log p is -inf.

        Raises:
            ConfigurationError: the proposal has another temperature than the policy, so
                the density of repeated steps is not known.
        """
        if params.proposal_temperature is not None:
            raise ConfigurationError(
                "Repeated steps are weighted by the policy that proposed them, so "
                "ancestor and backward sampling need proposal_temperature=None."
            )
        target = self.target
        width = target.max_step_tokens if width is None else width
        t = jnp.broadcast_to(t, particles.lengths.shape)
        place = jnp.minimum(t, self.max_steps - 1)[:, None]
        end = jnp.take_along_axis(sources.step_ends, place, axis=1)[:, 0]
        before = jnp.maximum(place - 1, 0)
        begin = jnp.take_along_axis(sources.step_ends, before, axis=1)[:, 0]
        begin = jnp.where(t > 0, begin, 0)
        counts = jnp.where(
            particles.finished | (t >= self.max_steps), 0, jnp.maximum(end - begin, 0)
        )
        offsets = jnp.arange(width)
        places = jnp.minimum(begin[:, None] + offsets, target.max_tokens - 1)
        tokens = jnp.take_along_axis(sources.tokens, places, axis=1)
        state, ends, stopped, forced = self._check_ends(tokens, counts, particles)
        too_long = particles.lengths + counts > target.max_tokens
        impossible = (counts > 0) & (too_long | ~ends)
        counts = jnp.where(impossible, 0, counts)
        valid = offsets < counts[:, None]
        tokens = jnp.where(valid, tokens, 0)

        policy = params.policy
        read = jnp.concatenate([particles.pending[:, None], tokens[:, :-1]], axis=1)
        start = target.prompt_rows(particles, params) - 1 + particles.lengths
        hidden, key_values = policy.trunk(
            read, start[:, None] + offsets, valid, context
        )
        logits = target.boundary.mask_padding(policy.logits(hidden))
        confidence, confidences = target.reward.token_confidence, None
        if confidence is not None:
            confidences = confidence(logits, tokens).astype(weight_dtype())
        seen = params.mark_seen(particles.tokens, particles.lengths)
        penalty = params.repetition_penalty
        if seen is not None and penalty is not None:
            logits = penalise(logits, mark_seen_within(seen, tokens, counts), penalty)
        log_p = log_prob_of(logits, tokens, params.temperature, params.truncation)
        takes_step = counts > 0
        last = jnp.maximum(counts - 1, 0)[:, None]
        newest = jnp.take_along_axis(tokens, last, axis=1)[:, 0]
        correction = jnp.zeros_like(log_p[:, 0])
        if forced is not None:
            final = jnp.take_along_axis(logits, last[..., None], axis=1)[:, 0]
            string = jnp.sum(jnp.where(forced.string & valid, log_p, 0.0), axis=1)
            correction = string + self._log_end(final, forced, takes_step, params)
        log_p = jnp.sum(jnp.where(valid, log_p, 0.0), axis=1)
        step = Decoding(
            offset=jnp.max(counts),
            token=jnp.where(takes_step, newest, particles.pending),
            state=jnp.where(takes_step, state, particles.boundary_state),
            active=jnp.zeros_like(takes_step),
            stopped=takes_step & stopped,
            counts=counts,
            log_prob=log_p,
            log_correction=correction,
            tokens=tokens,
            new=key_values,
            confidences=confidences,
        )
        return step, impossible

    def _check_ends(
        self,
        tokens: Int[Array, "R C"],
        counts: Int[Array, " R"],
        particles: Particles,
    ) -> tuple[
        Int[Array, " R"], Bool[Array, " R"], Bool[Array, " R"], ForcedStep | None
    ]:
        """The boundary's state after a step, and whether step and solution end there.

        The step ends with its last token if only this token completes a delimiter or
        the solution, or if no token does and a limit cuts the step. With a forced end,
        the step must contain the forced tokens, which are also returned.
        """
        boundary, target = self.target.boundary, self.target
        full = particles.lengths + counts >= target.max_tokens
        cut_off = (counts >= target.max_step_tokens) | full
        places = target.places(particles)
        if target.forced_end is not None and places is not None:
            step = read_forced(
                target.forced_end,
                boundary,
                tokens,
                counts,
                particles.boundary_state,
                places,
                cut_off,
            )
            return step.state, step.ended, step.stopped, step

        def read_token(
            carry: tuple[Bool[Array, " R"], Advance],
            column: tuple[Int[Array, ""], Int[Array, " R"]],
        ) -> tuple[tuple[Bool[Array, " R"], Advance], None]:
            ended_before, last = carry
            offset, token = column
            valid = offset < counts
            ended_before = ended_before | (valid & last.ended)
            now = boundary.advance(last.state, token, offset + 1)
            last = jax.tree.map(lambda new, old: jnp.where(valid, new, old), now, last)
            return (ended_before, last), None

        false = jnp.zeros(counts.shape, bool)
        columns = (jnp.arange(tokens.shape[1]), tokens.T)
        start = (false, Advance(particles.boundary_state, false, false))
        (ended_early, last), _ = jax.lax.scan(read_token, start, columns)
        return last.state, ~ended_early & (last.ended | cut_off), last.stopped, None

    def _log_end(
        self,
        logits: Float[Array, "R V"],
        forced: ForcedStep,
        takes_step: Bool[Array, " R"],
        params: ReasoningParams,
    ) -> Float[Array, " R"]:
        """log p(F) of a forced end; 0 in rows without one.

        Args:
            logits: logits of the step's last token.
            forced: the forced tokens of the step.
            takes_step: which rows take the step.
            params: weights, prompts and temperature.
        """
        ends = self.target.boundary.stop_tokens(forced.before)[:, : logits.shape[-1]]
        log_mass = log_prob_among(logits, ends, params.temperature, params.truncation)
        return jnp.where(forced.end & takes_step, log_mass, 0.0)


def _log_proposal(particles: Particles, params: Any) -> Float[Array, " R"]:
    return particles.log_proposal
