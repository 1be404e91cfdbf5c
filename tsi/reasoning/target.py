"""The target of reasoning: policy + reward + boundary, as a Feynman–Kac model.

A particle is a solution so far. ``propose`` lets the policy write one more step of
every particle, inside one compiled loop over tokens, and has the reward read that step;
``log_potential`` hands out the log-odds of the reward of the prefix; samplers decide
what weight to make of them. Rows are the particles of P problems at once, N of each,
problem by problem (R = P·N); with P = 1 this is a plain :class:`tsi.target.Target`.

Tokens are drawn by :mod:`tsi.decoding.decode_step`, which says with which keys. What
explorers need besides, to cut, repeat and keep prefixes, is in
:mod:`tsi.reasoning.store`.
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
from tsi.models.layers import Segment
from tsi.models.prefill import read_prompts
from tsi.reasoning.particles import (
    Cost,
    History,
    Particles,
    ReasoningParams,
    StepIndex,
    no_cost,
)
from tsi.reasoning.store import ReasoningStore
from tsi.rewards.reward import PolicyContext, Reading, Reward, Step, as_int32
from tsi.step_keys import AnyKey
from tsi.weights import weight_dtype


@dataclasses.dataclass(frozen=True, eq=False)
class ReasoningTarget:
    """Solutions weighed by their reward (see the module's text).

    Attributes:
        boundary: where steps and solutions end.
        reward: gives log-odds of prefixes.
        max_step_tokens: C; a step is cut after that many tokens and the next begins.
        max_tokens: T; a solution that reaches it without an end token is truncated.
        max_steps: M; a solution with so many steps is truncated as well.
        log_truncation: added to the log potential of a truncated solution. The default
            gives it weight zero, so that the target is p conditioned on finishing;
            0 lets it count by its reward.
        forced_end: what a solution is made to write where a limit would cut it, which
            its weight pays for; None leaves it truncated.

    Raises:
        ConfigurationError: the boundary wants more tokens of a step than it may have,
            or what is forced cannot stand where it should (see `ForcedEnd.check`).
    """

    boundary: Boundary
    reward: Reward
    max_step_tokens: int
    max_tokens: int
    max_steps: int
    log_truncation: float = -math.inf
    forced_end: ForcedEnd | None = None

    def __post_init__(self) -> None:
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
            capacity: slots of the caches' suffixes, by default enough for one pass.
        """
        del key
        policy, prompts = params.policy, as_int32(params.prompts)
        problems, length = prompts.tokens.shape
        rows = problems * num_particles
        # The last prompt token stays pending: reading it gives the first logits.
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
            cost=no_cost(rows),
        )

    def propose(
        self,
        key: AnyKey,
        t: StepIndex,
        particles: Particles,
        params: ReasoningParams,
    ) -> tuple[Particles, Float[Array, " R"]]:
        """Write one step of every unfinished particle and have it read.

        Args:
            key: a key, or one key for each of P problems.
            t: the step's index, from 0; one number, or each row's own.
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
        """The same for the rows ``active [R]`` only; the others stay as they are."""
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
        )
        return self.written(t, particles, step, params), step.log_correction

    def places(self, particles: Any) -> Places | None:
        """Where the next step of each row has what is forced, if anything is.

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
        """This target with what explorers need: to cut, repeat and keep prefixes."""
        return ReasoningStore(self)

    def prompt_rows(
        self, particles: Particles, params: ReasoningParams
    ) -> Int[Array, " R"]:
        """The length of each row's prompt."""
        lengths = as_int32(params.prompts).lengths
        return jnp.repeat(lengths, particles.lengths.shape[0] // lengths.shape[0])

    def written(
        self,
        t: StepIndex,
        particles: Particles,
        step: Decoding,
        params: ReasoningParams,
        *,
        drawn: bool = True,
    ) -> Particles:
        """Rows with a step of theirs stored in the cache and read by the reward.

        Arguments as in `read_step`.
        """
        suffix = append(particles.suffix, step.new, step.counts, self.max_steps)
        segments = (particles.prompt, suffix.segment)
        particles = particles._replace(suffix=suffix)
        return self.read_step(t, particles, step, params, segments, drawn=drawn)

    def read_step(
        self,
        t: StepIndex,
        particles: Particles,
        step: Any,
        params: ReasoningParams,
        segments: tuple[Segment, ...],
        *,
        drawn: bool = True,
    ) -> Particles:
        """Rows with a step of theirs read by the reward, the policy having cached it.

        Args:
            t: the step's index, one number or each row's own.
            particles: R rows; their own caches of the policy are not looked at.
            step: what they wrote: a `Decoding`, or another tuple with its fields.
            params: weights, prompts and temperature.
            segments: the policy's caches, the step included.
            drawn: whether the policy drew the step, or read it to score it.
        """
        start, lengths = particles.lengths, particles.lengths + step.counts
        width = step.tokens.shape[1]
        slots = jnp.arange(self.max_tokens) - start[:, None]
        written = (slots >= 0) & (slots < step.counts[:, None])
        new_tokens = jnp.take_along_axis(
            step.tokens, jnp.clip(slots, 0, width - 1), axis=1
        )
        tokens = jnp.where(written, new_tokens, particles.tokens)
        live = step.counts > 0
        t = jnp.broadcast_to(t, lengths.shape)
        out = (lengths >= self.max_tokens) | (t + 1 >= self.max_steps)
        impossible = step.log_correction == -jnp.inf
        if self.forced_end is not None:
            # What the policy cannot write is where the solution ends.
            out |= impossible
        out &= live
        truncated = particles.truncated | (out & ~step.stopped)
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
            ),
            params,
        )
        here = (jnp.arange(self.max_steps) == t[:, None]) & live[:, None]

        def record(value: Shaped[Array, " R"], old: Shaped[Array, "R M"]) -> Array:
            return jnp.where(here, value[:, None], old)

        log_prob = particles.log_prob + step.log_prob
        log_q = jnp.where(impossible, 0.0, step.log_prob - step.log_correction)
        log_proposal = particles.log_proposal + log_q
        log_odds = reading.log_odds.astype(weight_dtype())
        log_odds = jnp.where(live, log_odds, particles.log_odds)
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
            cost=self._spent(
                particles.cost,
                step.counts,
                reading._replace(tokens_read=jnp.where(live, reading.tokens_read, 0)),
                prompt_rows + start,
                params,
                drawn,
            ),
        )

    def _spent(
        self,
        cost: Cost,
        counts: Int[Array, " R"],
        reading: Reading,
        before: Int[Array, " R"],
        params: ReasoningParams,
        drawn: bool,
    ) -> Cost:
        """The ledger after a step of so many tokens, which stands after `before`."""
        reader = self.reward.reader(params)
        read = reading.tokens_read.astype(jnp.int32)
        if reader is not None:
            begin = before if reading.begin is None else reading.begin
            cost = cost._replace(
                reward_read=cost.reward_read + read,
                reward_context=cost.reward_context + reader.attended(begin, read),
            )
        # The token before each is the one that the policy reads to write it.
        context = params.policy.config.attended(before - 1, counts)
        if drawn:
            return cost._replace(
                generated=cost.generated + counts,
                generated_context=cost.generated_context + context,
            )
        return cost._replace(
            repeated=cost.repeated + counts,
            repeated_context=cost.repeated_context + context,
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
        """Rows that write no more."""
        return particles.finished

    def gather(self, particles: Particles, ancestors: Int[Array, " R"]) -> Particles:
        """Fork rows: suffixes are copied, prompts are not, costs stay with the slot."""

        def take(old: Particles) -> Particles:
            return Particles(
                tokens=old.tokens[ancestors],
                lengths=old.lengths[ancestors],
                step_ends=old.step_ends[ancestors],
                pending=old.pending[ancestors],
                boundary_state=old.boundary_state[ancestors],
                finished=old.finished[ancestors],
                truncated=old.truncated[ancestors],
                log_prob=old.log_prob[ancestors],
                log_proposal=old.log_proposal[ancestors],
                log_odds=old.log_odds[ancestors],
                history=jax.tree.map(lambda x: x[ancestors], old.history),
                prompt=old.prompt,
                suffix=fork(old.suffix, ancestors),
                reward_state=self.reward.fork(old.reward_state, ancestors),
                cost=old.cost,
            )

        moved = jnp.any(ancestors != jnp.arange(ancestors.shape[0]))
        return jax.lax.cond(moved, take, lambda p: p, particles)
