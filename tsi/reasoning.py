"""The target of reasoning: policy + reward + boundary, as a Feynman–Kac model.

A particle is a solution so far. ``propose`` lets the policy write one more step of
every particle, inside one compiled loop over tokens, and has the reward read that step;
``log_potential`` hands out the log-odds of the reward of the prefix; samplers decide
what weight to make of them. Rows are the particles of P problems at once, N of each,
problem by problem (R = P·N); with P = 1 this is a plain :class:`tsi.target.Target`.

Random numbers: the token at offset j of the step of the particle in slot i is drawn
with ``fold_in(fold_in(key, i), j)``, where ``key`` is the problem's key of this step.
So a row depends on (seed, problem, particle, step, token) alone.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.boundary import Boundary
from tsi.cache import Suffix, append, empty_suffix, fork, slots_needed
from tsi.categorical import categorical
from tsi.models.layers import Segment
from tsi.models.llama import KeyValues, Llama
from tsi.rewards import PolicyContext, Prompts, Reward, Step


class ReasoningParams(NamedTuple):
    """Everything that is an argument of the compiled programs.

    Attributes:
        policy: the language model that writes steps.
        reward: the reward model's weights, or None.
        prompts: the problems' prompts.
        temperature: of the policy's tokens; 0 means the most likely token. The policy
            *at this temperature* is the p of the target.
    """

    policy: Llama
    reward: Any
    prompts: Prompts
    temperature: Float[Array, ""]


class Cost(NamedTuple):
    """What each slot has spent, ``[R]`` each; stays with the slot when rows fork.

    ``*_context`` sums the number of positions that each token attended to.
    """

    generated: Int[Array, " R"]
    generated_context: Float[Array, " R"]
    reward_read: Int[Array, " R"]
    reward_context: Float[Array, " R"]


class Particles(NamedTuple):
    """R solutions so far.

    Attributes:
        tokens: ``[R, T]`` generated ids; ``lengths`` of them are real.
        step_ends: ``[R, M]``, length after each step.
        pending: ``[R]``, the newest token, not yet in the policy's cache.
        boundary_state: ``[R]``, of the boundary's automaton after that token; a
            delimiter may lie across the cut of a step that grew too long.
        finished: ``[R]``, ended by itself or at the token limit.
        truncated: ``[R]``, ended at the token limit.
        log_prob: ``[R]``, log p(steps | prompt) at the policy's temperature.
        log_odds: ``[R]``, the reward of the prefix.
        prompt, suffix: the policy's two cache segments.
        reward_state: the reward's own.
        cost: see :class:`Cost`.
    """

    tokens: Int[Array, "R T"]
    lengths: Int[Array, " R"]
    step_ends: Int[Array, "R M"]
    pending: Int[Array, " R"]
    boundary_state: Int[Array, " R"]
    finished: Bool[Array, " R"]
    truncated: Bool[Array, " R"]
    log_prob: Float[Array, " R"]
    log_odds: Float[Array, " R"]
    prompt: Segment
    suffix: Suffix
    reward_state: Any
    cost: Cost


class _Decoding(NamedTuple):
    """Carry of the loop over the tokens of one step."""

    offset: Int[Array, ""]
    token: Int[Array, " R"]
    state: Int[Array, " R"]
    active: Bool[Array, " R"]
    stopped: Bool[Array, " R"]
    counts: Int[Array, " R"]
    log_prob: Float[Array, " R"]
    tokens: Int[Array, "R C"]
    new: KeyValues


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
    """

    boundary: Boundary
    reward: Reward
    max_step_tokens: int
    max_tokens: int
    max_steps: int
    log_truncation: float = -math.inf

    def init(self, key, num_particles: int, params: ReasoningParams) -> Particles:
        """Read the prompts; ``num_particles`` is N per problem."""
        del key
        policy, prompts = params.policy, params.prompts
        problems, length = prompts.tokens.shape
        rows = problems * num_particles
        # The last prompt token stays pending: reading it gives the first logits.
        mask = jnp.arange(length) < prompts.lengths[:, None] - 1
        positions = jnp.broadcast_to(jnp.arange(length), (problems, length))
        _, key_values = policy.trunk(prompts.tokens, positions, mask)
        last = jnp.take_along_axis(
            prompts.tokens, prompts.lengths[:, None] - 1, axis=1
        )[:, 0]
        capacity = slots_needed(self.max_tokens, self.max_steps, self.max_step_tokens)
        zeros, floats = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.float32)
        return Particles(
            tokens=jnp.zeros((rows, self.max_tokens), jnp.int32),
            lengths=zeros,
            step_ends=jnp.zeros((rows, self.max_steps), jnp.int32),
            pending=jnp.repeat(last, num_particles),
            boundary_state=zeros,
            finished=jnp.zeros(rows, bool),
            truncated=jnp.zeros(rows, bool),
            log_prob=floats,
            log_odds=floats,
            prompt=Segment(key_values.keys, key_values.values, mask),
            suffix=empty_suffix(policy.config, rows, capacity, key_values.keys.dtype),
            reward_state=self.reward.init(prompts, rows, capacity, params),
            cost=Cost(zeros, floats, zeros, floats),
        )

    def propose(self, key, t, particles: Particles, params: ReasoningParams):
        """Write one step of every unfinished particle and have it read.

        Args:
            key: a key, or one key for each of P problems.
            t: the step's index, from 0.
            particles: R rows.
            params: weights, prompts and temperature.

        Returns:
            The particles, and zeros (the policy itself proposes: q = p).
        """
        step = self._decode(key, particles, params)
        rows = jnp.arange(particles.lengths.shape[0])
        start, lengths = particles.lengths, particles.lengths + step.counts
        slots = jnp.arange(self.max_tokens) - start[:, None]
        written = (slots >= 0) & (slots < step.counts[:, None])
        new_tokens = jnp.take_along_axis(
            step.tokens, jnp.clip(slots, 0, self.max_step_tokens - 1), axis=1
        )
        tokens = jnp.where(written, new_tokens, particles.tokens)
        out = (lengths >= self.max_tokens) | (t + 1 >= self.max_steps)
        truncated = particles.truncated | (out & ~step.stopped & ~particles.finished)

        suffix = append(particles.suffix, step.new, step.counts, self.max_steps)
        prompt_rows = jnp.repeat(
            params.prompts.lengths, rows.size // params.prompts.lengths.shape[0]
        )
        context = PolicyContext(
            particles.prompt, suffix.segment, step.token, prompt_rows - 1 + lengths
        )
        state, reading = self.reward.read(
            particles.reward_state,
            Step(step.tokens, step.counts, start, tokens, context, self.max_steps),
            params,
        )
        live = step.counts > 0
        read = reading.tokens_read.astype(jnp.float32)
        # Token k of a step attends to what stood before it and k + 1 of its own.
        before = (prompt_rows + start).astype(jnp.float32)
        counts = step.counts.astype(jnp.float32)
        cost = particles.cost
        return particles._replace(
            tokens=tokens,
            lengths=lengths,
            step_ends=particles.step_ends.at[:, t].set(lengths, mode="drop"),
            pending=step.token,
            boundary_state=step.state,
            finished=particles.finished | step.stopped | truncated,
            truncated=truncated,
            log_prob=particles.log_prob + step.log_prob,
            log_odds=jnp.where(live, reading.log_odds, particles.log_odds),
            suffix=suffix,
            reward_state=state,
            cost=Cost(
                cost.generated + step.counts,
                cost.generated_context + counts * (before + (counts - 1) / 2),
                cost.reward_read + reading.tokens_read,
                cost.reward_context + read * (before + (read + 1) / 2),
            ),
        ), jnp.zeros_like(particles.log_prob)

    def log_potential(self, t, particles: Particles, params) -> Float[Array, " R"]:
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

    def gather(self, particles: Particles, ancestors) -> Particles:
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
                log_odds=old.log_odds[ancestors],
                prompt=old.prompt,
                suffix=fork(old.suffix, ancestors),
                reward_state=self.reward.fork(old.reward_state, ancestors),
                cost=old.cost,
            )

        moved = jnp.any(ancestors != jnp.arange(ancestors.shape[0]))
        return jax.lax.cond(moved, take, lambda p: p, particles)

    def _decode(self, key, particles: Particles, params: ReasoningParams) -> _Decoding:
        """Sample tokens until every row has ended its step."""
        policy, width = params.policy, self.max_step_tokens
        rows = particles.lengths.shape[0]
        keys = jnp.atleast_1d(key)
        slots = jnp.arange(rows // keys.shape[0])
        row_keys = jax.vmap(
            lambda k: jax.vmap(lambda i: jax.random.fold_in(k, i))(slots)
        )(keys).reshape(rows)
        prompt_rows = jnp.repeat(
            params.prompts.lengths, rows // params.prompts.lengths.shape[0]
        )
        start = prompt_rows - 1 + particles.lengths

        def body(c: _Decoding) -> _Decoding:
            mask = jnp.broadcast_to(jnp.arange(width) < c.offset, (rows, width))
            context = (
                particles.prompt,
                particles.suffix.segment,
                Segment(c.new.keys, c.new.values, mask),
            )
            position = (start + c.offset)[:, None]
            hidden, (keys, values) = policy.trunk(
                c.token[:, None], position, None, context
            )
            update = jax.lax.dynamic_update_slice_in_dim
            new = KeyValues(
                update(c.new.keys, keys, c.offset, axis=-1),
                update(c.new.values, values, c.offset, axis=-2),
            )
            token, log_prob = sample_token(
                jax.vmap(jax.random.fold_in, (0, None))(row_keys, c.offset),
                policy.logits(hidden[:, 0]),
                params.temperature,
            )
            token = jnp.where(c.active, token, c.token)
            counts = c.counts + c.active
            stopped = c.stopped | (c.active & self.boundary.stops[token])
            ended = self.boundary.ends[c.state, token] | stopped
            full = particles.lengths + counts >= self.max_tokens
            # Afresh after a boundary, on from here where the step is cut.
            state = jnp.where(ended, 0, self.boundary.next_state[c.state, token])
            return _Decoding(
                offset=c.offset + 1,
                token=token,
                state=jnp.where(c.active, state, c.state),
                active=c.active & ~ended & ~full,
                stopped=stopped,
                counts=counts,
                log_prob=c.log_prob + jnp.where(c.active, log_prob, 0.0),
                tokens=update(c.tokens, token[:, None], c.offset, axis=1),
                new=new,
            )

        config, dtype = policy.config, particles.suffix.segment.keys.dtype
        shape = (config.num_layers, rows, config.num_kv_heads)
        zeros = jnp.zeros(rows, jnp.int32)
        return jax.lax.while_loop(
            lambda c: jnp.any(c.active) & (c.offset < width),
            body,
            _Decoding(
                offset=jnp.zeros((), jnp.int32),
                token=particles.pending,
                state=particles.boundary_state,
                active=~particles.finished,
                stopped=jnp.zeros(rows, bool),
                counts=zeros,
                log_prob=jnp.zeros(rows, jnp.float32),
                tokens=jnp.zeros((rows, width), jnp.int32),
                new=KeyValues(
                    jnp.zeros((*shape, config.head_width, width), dtype),
                    jnp.zeros((*shape, width, config.head_width), dtype),
                ),
            ),
        )


def sample_token(
    keys, logits: Float[Array, "R V"], temperature: Float[Array, ""]
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """Draw one token a row at a temperature, each row from a key of its own.

    At temperature 0 the most likely token is taken and its log-probability is 0.

    Returns:
        Token ids and their log-probabilities under the tempered distribution.
    """
    log_p = jax.nn.log_softmax(logits / jnp.where(temperature > 0, temperature, 1.0))
    token = jnp.where(
        temperature > 0, categorical(keys, log_p), jnp.argmax(log_p, axis=-1)
    ).astype(jnp.int32)
    chosen = jnp.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]
    return token, jnp.where(temperature > 0, chosen, 0.0)
