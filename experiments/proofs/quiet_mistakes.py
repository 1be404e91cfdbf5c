"""Mistakes that do not show on small tables with mild scores, as wrappers of samplers.

Each gives correct results in nearly all cases. It shows only with long paths, large
scores, light particles, a check of keys or of counts, or many runs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tsi.experiments.proofs.mistakes import StateWithMemory, weights_not_reset
from tsi.explorer import Explorer, Reply
from tsi.sampler import Sampler

BOUND, MIN_LOG_WEIGHT = 20.0, -16.0
"""Bound of clipped numbers, and relative log weight that is set to zero."""
FLOOR = -60.0
"""What replaces a log correction of -inf."""


def weights_not_reset_from_step_5(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Keep the weights with which offspring were drawn, from step 5 on."""
    return weights_not_reset(sampler, from_step=5)


def _change_potentials(sampler: Sampler | Explorer, change: Any) -> Sampler | Explorer:
    """Replace log potentials by `change(potentials, finished now, finished before)`."""
    if isinstance(sampler, Explorer):

        def tell_explorer(key: Any, state: Any, reply: Reply) -> Any:
            before = jnp.zeros_like(reply.finished)
            new_potentials = change(reply.log_potentials, reply.finished, before)
            return sampler.tell(
                key, state, reply._replace(log_potentials=new_potentials)
            )

        return sampler._replace(tell=tell_explorer)

    def tell(key: Any, state: Any, potentials: Any, corrections: Any, f: Any) -> Any:
        new_potentials = change(potentials, f, state.finished)
        return sampler.tell(key, state, new_potentials, corrections, f)

    return sampler._replace(tell=tell)


def round_to_bfloat16(potentials: Any) -> Any:
    """Log potentials rounded to the 8 bits of bfloat16."""
    potentials = jnp.asarray(potentials)
    return potentials.astype(jnp.bfloat16).astype(potentials.dtype)


def clip(numbers: Any) -> Any:
    """Numbers clipped to [-20, 20], infinite ones excepted."""
    return jnp.where(jnp.isfinite(numbers), jnp.clip(numbers, -BOUND, BOUND), numbers)


def change_corrections(sampler: Sampler | Explorer, change: Any) -> Sampler | Explorer:
    """Replace log corrections by `change(corrections)`."""
    if isinstance(sampler, Explorer):

        def tell_explorer(key: Any, state: Any, reply: Reply) -> Any:
            changed = reply._replace(log_corrections=change(reply.log_corrections))
            return sampler.tell(key, state, changed)

        return sampler._replace(tell=tell_explorer)

    def tell(key: Any, state: Any, potentials: Any, corrections: Any, f: Any) -> Any:
        return sampler.tell(key, state, potentials, change(corrections), f)

    return sampler._replace(tell=tell)


def clipped_corrections(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Clip log corrections to [-20, 20]."""
    return change_corrections(sampler, clip)


def floored_corrections(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Read a log correction of -inf as -60."""
    return change_corrections(sampler, lambda c: jnp.where(c == -jnp.inf, FLOOR, c))


def potentials_in_bfloat16(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Round log potentials to the 8 bits of bfloat16."""
    return _change_potentials(sampler, lambda p, now, before: round_to_bfloat16(p))


def clipped_potentials(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Clip log potentials to [-20, 20]."""
    return _change_potentials(sampler, lambda p, now, before: clip(p))


def last_score_twice(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Weight a finishing particle by 1.5 times its log potential."""
    return _change_potentials(
        sampler,
        lambda p, now, before: jnp.where(now & ~before, 1.5 * p, p),
    )


def counts_of_zero(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Report `num_invalid` and `num_recoveries` as 0."""

    def tell(key: Any, *replies: Any) -> tuple[Any, Any]:
        state, info = sampler.tell(key, *replies)
        zero = jnp.zeros((), jnp.int32)
        return state, info._replace(num_invalid=zero, num_recoveries=zero)

    return sampler._replace(tell=tell)


def equal_keys(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Draw one more number with a key that `ask` uses as well."""

    def ask(key: Any, state: Any) -> tuple[Any, Any]:
        jitter = jax.random.normal(jax.random.split(key)[1], ())
        state, request = sampler.ask(jax.random.fold_in(key, 1), state)

        def jitter_leaf(leaf: Any) -> Any:
            return jnp.where(jitter > 100.0, jnp.zeros_like(leaf), leaf)

        return state, jax.tree.map(jitter_leaf, request)

    return sampler._replace(ask=ask)


class TurnKeys(NamedTuple):
    """The keys of a turn.

    Attributes:
        turn: number of turns before.
        ask: key data of `ask`.
        tell: key data of `tell`.
    """

    turn: Any
    ask: Any
    tell: Any


def late_key(sampler: Sampler | Explorer, num_new_keys: int = 6) -> Sampler | Explorer:
    """Take no new key after the sixth turn."""

    def choose(keys: TurnKeys, name: str, new: Any) -> tuple[Any, TurnKeys]:
        is_new = keys.turn < num_new_keys
        data = jnp.where(is_new, jax.random.key_data(new), getattr(keys, name))
        return jax.random.wrap_key_data(data), keys._replace(**{name: data})

    def init(key: Any, *numbers: int) -> StateWithMemory:
        data = jax.random.key_data(key)
        keys = TurnKeys(jnp.int32(0), data, data)
        return StateWithMemory(sampler.init(key, *numbers), keys)

    def ask(key: Any, state: StateWithMemory) -> tuple[StateWithMemory, Any]:
        own_key, keys = choose(state.memory, "ask", key)
        inner, request = sampler.ask(own_key, state.inner)
        return StateWithMemory(inner, keys), request

    def tell(
        key: Any, state: StateWithMemory, *replies: Any
    ) -> tuple[StateWithMemory, Any]:
        own_key, keys = choose(state.memory, "tell", key)
        inner, info = sampler.tell(own_key, state.inner, *replies)
        return StateWithMemory(inner, keys._replace(turn=keys.turn + 1)), info

    return sampler._replace(init=init, ask=ask, tell=tell)


class StateWithLargerEvidence(NamedTuple):
    """The state of a sampler with an overestimated evidence."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def log_evidence(self) -> Any:
        """`log_evidence` of the sampler plus one per cent."""
        return self.inner.log_evidence + jnp.log(jnp.float32(1.01))


def evidence_one_percent_off(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Overestimate the evidence by one per cent."""

    def init(key: Any, *numbers: int) -> StateWithLargerEvidence:
        return StateWithLargerEvidence(sampler.init(key, *numbers))

    def ask(
        key: Any, state: StateWithLargerEvidence
    ) -> tuple[StateWithLargerEvidence, Any]:
        inner, request = sampler.ask(key, state.inner)
        return StateWithLargerEvidence(inner), request

    def tell(
        key: Any, state: StateWithLargerEvidence, *replies: Any
    ) -> tuple[Any, Any]:
        inner, info = sampler.tell(key, state.inner, *replies)
        return StateWithLargerEvidence(inner), info

    return sampler._replace(init=init, ask=ask, tell=tell)


def mean_of_the_living(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Estimate the evidence by the mean over particles with weight, not over all."""

    def tell(key: Any, state: Any, *replies: Any) -> tuple[Any, Any]:
        after, info = sampler.tell(key, state, *replies)
        alive = jnp.isfinite(after.log_weights)
        is_newly_dead = jnp.isfinite(state.log_weights) & ~alive
        share = jnp.mean(alive, dtype=jnp.float32)
        correction = jnp.where(is_newly_dead.any() & alive.any(), -jnp.log(share), 0.0)
        return after._replace(log_evidence=after.log_evidence + correction), info

    return sampler._replace(tell=tell)


def light_particles_dropped(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Set weights below exp(-16) of the largest to zero before a draw."""

    def ask(key: Any, state: Any) -> tuple[Any, Any]:
        weights = state.log_weights
        is_light = weights < weights.max() + MIN_LOG_WEIGHT
        new_weights = jnp.where(is_light, -jnp.inf, weights)
        return sampler.ask(key, state._replace(log_weights=new_weights))

    return sampler._replace(ask=ask)


def naive_sum(key: Any, log_weights: Any, num_samples: int) -> Any:
    """A resampling scheme with a cumulative sum in float32, as in a first draft."""
    weights = jax.nn.softmax(log_weights)
    uniforms = jax.random.uniform(key, (num_samples,))
    indices = jnp.searchsorted(jnp.cumsum(weights), uniforms)
    return jnp.minimum(indices, weights.size - 1).astype(jnp.int32)
