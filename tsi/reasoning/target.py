"""The target of reasoning: policy + reward + boundary, as a Feynman–Kac model.

A particle is a solution so far. ``propose`` draws one more step of every particle from
the policy, in one compiled loop over tokens, and lets the reward read it.
``log_potential`` returns the log-odds of the reward of each prefix, which samplers
convert to weights. Rows are the particles of P problems, N per problem and ordered by
problem (R = P·N); with P = 1 this is a :class:`tsi.target.Target`.

:mod:`tsi.decoding.decode_step` draws the tokens and documents their keys.
:mod:`tsi.reasoning.store` has the further methods that explorers need: to cut, repeat
and store prefixes.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from tsi.decoding.boundary import Boundary
from tsi.decoding.cache import append, empty_suffix, fork, slots_needed
from tsi.decoding.decode_step import Decoding, decode, row_keys
from tsi.decoding.forced_end import ForcedEnd, Places, places_of
from tsi.errors import ConfigurationError
from tsi.models.attention import Segment
from tsi.models.prefill import read_prompts
from tsi.reasoning.cost import add_cost, zero_cost
from tsi.reasoning.particles import (
    History,
    Particles,
    ReasoningParams,
    StepIndex,
    without_caches,
)
from tsi.reasoning.store import ReasoningStore
from tsi.rewards.reward import PolicyContext, Reward, Step, as_int32
from tsi.step_keys import AnyKey
from tsi.weights import weight_dtype


@dataclasses.dataclass(frozen=True, eq=False)
class ReasoningTarget:
    """Solutions weighted by their reward; see the module docstring.

    Attributes:
        boundary: where steps and solutions end.
        reward: computes log-odds of prefixes.
        max_step_tokens: C; a step is cut after C tokens, and the next one begins.
        max_tokens: T; a solution of T tokens without an end token is truncated.
        max_steps: M; a solution of M steps without an end is truncated as well.
        log_truncation: added to the log potential of a truncated solution. The default
            gives it weight zero, so that the target is p conditioned on finishing; with
            0 it is weighted by its reward.
        forced_end: tokens that are forced where a limit would truncate a solution; see
            :mod:`tsi.decoding.forced_end`. None for truncation.

    Raises:
        ConfigurationError: a limit is below 1, the smallest number of tokens of a step
            is above the largest, or `forced_end` does not fit (see `ForcedEnd.check`).
    """

    boundary: Boundary
    reward: Reward
    max_step_tokens: int
    max_tokens: int
    max_steps: int
    log_truncation: float = -math.inf
    forced_end: ForcedEnd | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_step_tokens", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}, so no solution could be "
                    "written. Give at least 1."
                )
        if self.forced_end is not None:
            self.forced_end.check(self.boundary, self.max_step_tokens, self.max_tokens)
        min_tokens = self.boundary.min_tokens
        if min_tokens is not None and min_tokens > self.max_step_tokens:
            raise ConfigurationError(
                f"Steps have at least {min_tokens} tokens by the boundary and at most "
                f"{self.max_step_tokens} by the target, so no delimiter could end one. "
                "Lower min_step_tokens or raise max_step_tokens."
            )

    def init(
        self,
        key: AnyKey | None,
        num_particles: int,
        params: ReasoningParams,
        capacity: int | None = None,
    ) -> Particles:
        """Read the prompts.

        Args:
            key: unused.
            num_particles: N per problem.
            params: weights, prompts and temperature.
            capacity: number of slots of the caches' suffixes; by default enough for a
                run without a store.
        """
        del key
        policy, prompts = params.policy, as_int32(params.prompts)
        problems, length = prompts.tokens.shape
        rows = problems * num_particles
        # The last prompt token is pending: reading it gives the first logits.
        mask = jnp.arange(length) < prompts.lengths[:, None] - 1
        key_values = read_prompts(policy.trunk, prompts.tokens, mask)
        last = jnp.take_along_axis(
            prompts.tokens, prompts.lengths[:, None] - 1, axis=1
        )[:, 0]
        if capacity is None:
            capacity = slots_needed(
                self.max_tokens, self.max_steps, self.max_step_tokens
            )
        by_step = jnp.zeros((rows, self.max_steps), jnp.int32)
        zeros, floats = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, weight_dtype())
        nothing = by_step.astype(weight_dtype())
        return Particles(
            tokens=jnp.zeros((rows, self.max_tokens), jnp.int32),
            lengths=zeros,
            step_ends=by_step,
            pending=jnp.repeat(last, num_particles),
            boundary_state=zeros,
            finished=jnp.zeros(rows, bool),
            truncated=jnp.zeros(rows, bool),
            log_prob=floats,
            log_proposal=floats,
            log_odds=floats,
            history=History(by_step, nothing, nothing, nothing),
            prompt=Segment(*key_values, mask),
            suffix=empty_suffix(policy.config, rows, capacity, key_values.keys.dtype),
            reward_state=self.reward.init(prompts, rows, capacity, params),
            cost=zero_cost(rows),
        )

    def propose(
        self,
        key: AnyKey,
        t: StepIndex,
        particles: Particles,
        params: ReasoningParams,
    ) -> tuple[Particles, Float[Array, " R"]]:
        """Draw one step of every unfinished particle, and let the reward read it.

        Args:
            key: a key, or one key for each of P problems.
            t: the step's index, from 0; one number, or one per row.
            particles: R rows.
            params: weights, prompts and temperature.

        Returns:
            The particles, and log p - log q.
        """
        return self.propose_some(key, t, particles, params, ~particles.finished)

    def propose_some(
        self,
        key: AnyKey,
        t: StepIndex,
        particles: Particles,
        params: ReasoningParams,
        active: Bool[Array, " R"],
    ) -> tuple[Particles, Float[Array, " R"]]:
        """As `propose` for the rows ``active [R]``; the others are not changed."""
        step = decode(
            params.policy,
            self.boundary,
            row_keys(key, particles.lengths.shape[0]),
            particles,
            self.prompt_rows(particles, params) - 1 + particles.lengths,
            active & ~particles.finished,
            params.temperatures,
            self.max_step_tokens,
            params.mark_seen(particles.tokens, particles.lengths),
            self.forced_end,
            self.places(particles),
            self.reward.token_confidence,
        )
        return self.append_step(t, particles, step, params), step.log_correction

    def places(self, particles: Any) -> Places | None:
        """Places of forced tokens in the next step of each row; None if none is forced.

        Args:
            particles: R rows, with or without caches.
        """
        if self.forced_end is None:
            return None
        return places_of(
            self.forced_end,
            particles.lengths,
            jnp.sum(particles.step_ends > 0, axis=1, dtype=jnp.int32),
            (self.max_step_tokens, self.max_tokens, self.max_steps),
        )

    def as_store(self) -> ReasoningStore:
        """This target with the methods that explorers need."""
        return ReasoningStore(self)

    def prompt_rows(
        self, particles: Particles, params: ReasoningParams
    ) -> Int[Array, " R"]:
        """The length of each row's prompt."""
        lengths = as_int32(params.prompts).lengths
        return jnp.repeat(lengths, particles.lengths.shape[0] // lengths.shape[0])

    def append_step(
        self,
        t: StepIndex,
        particles: Particles,
        step: Decoding,
        params: ReasoningParams,
        *,
        is_drawn: bool = True,
    ) -> Particles:
        """Store a step of each row in the policy's cache, and let the reward read it.

        Arguments as in `read_step`.
        """
        suffix = append(particles.suffix, step.new, step.counts, self.max_steps)
        segments = (particles.prompt, suffix.segment)
        particles = particles._replace(suffix=suffix)
        return self.read_step(t, particles, step, params, segments, is_drawn=is_drawn)

    def read_step(
        self,
        t: StepIndex,
        particles: Particles,
        step: Any,
        params: ReasoningParams,
        segments: tuple[Segment, ...],
        *,
        is_drawn: bool = True,
    ) -> Particles:
        """Append a step to each row, and let the reward read it.

        Args:
            t: the step's index; one number, or one per row.
            particles: R rows; the policy's caches in them are not used.
            step: a `Decoding`, or another tuple with its fields.
            params: weights, prompts and temperature.
            segments: the policy's caches, including the step.
            is_drawn: True if the policy drew the step, False if it read a repeated
                step.
        """
        start, lengths = particles.lengths, particles.lengths + step.counts
        width = step.tokens.shape[1]
        slots = jnp.arange(self.max_tokens) - start[:, None]
        is_new = (slots >= 0) & (slots < step.counts[:, None])
        new_tokens = jnp.take_along_axis(
            step.tokens, jnp.clip(slots, 0, width - 1), axis=1
        )
        tokens = jnp.where(is_new, new_tokens, particles.tokens)
        takes_step = step.counts > 0
        t = jnp.broadcast_to(t, lengths.shape)
        at_limit = (lengths >= self.max_tokens) | (t + 1 >= self.max_steps)
        impossible = step.log_correction == -jnp.inf
        if self.forced_end is not None:
            # If the policy cannot draw a forced token, the solution ends there.
            at_limit |= impossible
        at_limit &= takes_step
        truncated = particles.truncated | (at_limit & ~step.stopped)
        finished = particles.finished | step.stopped | truncated

        prompt_rows = self.prompt_rows(particles, params)
        context = PolicyContext(segments, step.token, prompt_rows - 1 + lengths)
        state, reading = self.reward.read(
            particles.reward_state,
            Step(
                tokens=step.tokens,
                counts=step.counts,
                start=start,
                solution=tokens,
                stopped=step.stopped,
                finished=finished,
                log_prob=particles.log_prob + step.log_prob,
                policy=context,
                max_steps=self.max_steps,
                confidences=step.confidences,
            ),
            params,
        )
        at_step = (jnp.arange(self.max_steps) == t[:, None]) & takes_step[:, None]

        def record(value: Shaped[Array, " R"], old: Shaped[Array, "R M"]) -> Array:
            return jnp.where(at_step, value[:, None], old)

        log_prob = particles.log_prob + step.log_prob
        log_q = jnp.where(impossible, 0.0, step.log_prob - step.log_correction)
        log_proposal = particles.log_proposal + log_q
        log_odds = reading.log_odds.astype(weight_dtype())
        log_odds = jnp.where(takes_step, log_odds, particles.log_odds)
        history = particles.history
        return particles._replace(
            tokens=tokens,
            lengths=lengths,
            step_ends=record(lengths, particles.step_ends),
            pending=step.token,
            boundary_state=step.state,
            finished=finished,
            truncated=truncated,
            log_prob=log_prob,
            log_proposal=log_proposal,
            log_odds=log_odds,
            history=History(
                record(step.state, history.boundary_state),
                record(log_prob, history.log_prob),
                record(log_proposal, history.log_proposal),
                record(log_odds, history.log_odds),
            ),
            reward_state=state,
            cost=add_cost(
                particles.cost,
                step.counts,
                reading,
                prompt_rows + start,
                params.policy.config,
                self.reward.reader(params),
                is_drawn=is_drawn,
            ),
        )

    def log_potential(
        self, t: StepIndex, particles: Particles, params: Any
    ) -> Float[Array, " R"]:
        """Log-odds of the reward of each prefix; see ``log_truncation``."""
        del t, params
        return jnp.where(
            particles.truncated,
            particles.log_odds + self.log_truncation,
            particles.log_odds,
        )

    def finished(self, particles: Particles) -> Bool[Array, " R"]:
        """Whether each row takes no further step."""
        return particles.finished

    def gather(self, particles: Particles, ancestors: Int[Array, " R"]) -> Particles:
        """Fork rows: suffixes are copied; prompts and costs stay where they are."""

        def take(old: Particles) -> Particles:
            rows = jax.tree.map(lambda leaf: leaf[ancestors], without_caches(old))
            return rows._replace(
                prompt=old.prompt,
                suffix=fork(old.suffix, ancestors),
                reward_state=self.reward.fork(old.reward_state, ancestors),
                cost=old.cost,
            )

        is_moved = jnp.any(ancestors != jnp.arange(ancestors.shape[0]))
        return jax.lax.cond(is_moved, take, lambda p: p, particles)
