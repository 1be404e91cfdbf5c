"""Mistakes that show on any table, as wrappers of any sampler.

See `tsi.experiments.proofs.mutations`, which makes them, and
`tsi.experiments.proofs.quiet_mistakes` for those that small tables with mild scores do
not show.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from tsi.explorer import Explorer, Reply, Request
from tsi.sampler import Sampler
from tsi.samplers.parts.population import SMCState

Mistake = Callable[[Sampler | Explorer], Sampler | Explorer]


class Remembering(NamedTuple):
    """A sampler's state with something that it should not have kept."""

    inner: Any
    memory: Any

    @property
    def log_weights(self) -> Any:
        """Of the sampler."""
        return self.inner.log_weights

    @property
    def log_evidence(self) -> Any:
        """Of the sampler."""
        return self.inner.log_evidence

    @property
    def log_potentials(self) -> Any:
        """Of the sampler."""
        return self.inner.log_potentials

    @property
    def finished(self) -> Any:
        """Of the sampler."""
        return self.inner.finished

    @property
    def members(self) -> Any:
        """Of the sampler."""
        return self.inner.members

    @property
    def done(self) -> Any:
        """Of the sampler."""
        return self.inner.done


def dropped_correction(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """log p - log q is ignored."""
    if isinstance(sampler, Explorer):

        def hear(key: Any, state: Any, reply: Reply) -> Any:
            zeros = jnp.zeros_like(reply.log_corrections)
            return sampler.tell(key, state, reply._replace(log_corrections=zeros))

        return sampler._replace(tell=hear)

    def tell(key: Any, state: Any, potentials: Any, corrections: Any, f: Any) -> Any:
        return sampler.tell(key, state, potentials, 0.0 * corrections, f)

    return sampler._replace(tell=tell)


def wrong_ancestor(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """The children are those of the neighbour."""

    def ask(key: Any, state: Any) -> tuple[Any, Any]:
        state, asked = sampler.ask(key, state)
        if isinstance(asked, Request):
            places = state.members.shape[0]
            return state, asked._replace(parents=(asked.parents + 1) % places)
        return state, jnp.roll(asked, 1)

    return sampler._replace(ask=ask)


def late_reward(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Each turn is weighed by the potentials of the turn before."""
    explores = isinstance(sampler, Explorer)

    def init(key: Any, num_particles: int, *limit: int) -> Remembering:
        rows = num_particles
        if isinstance(sampler, Explorer):
            rows = sampler.plan(num_particles, *limit).rows
        return Remembering(sampler.init(key, num_particles, *limit), jnp.zeros(rows))

    def ask(key: Any, state: Remembering) -> tuple[Remembering, Any]:
        inner, asked = sampler.ask(key, state.inner)
        memory = state.memory if explores else state.memory[asked]
        return Remembering(inner, memory), asked

    def tell(key: Any, state: Remembering, *told: Any) -> tuple[Remembering, Any]:
        if isinstance(told[0], Reply):
            late = (told[0]._replace(log_potentials=state.memory),)
            now = told[0].log_potentials
        else:
            late, now = (state.memory, *told[1:]), told[0]
        inner, info = sampler.tell(key, state.inner, *late)
        return Remembering(inner, now), info

    return sampler._replace(init=init, ask=ask, tell=tell)


def reused_key(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """One key for every turn."""

    def init(key: Any, *numbers: int) -> Remembering:
        return Remembering(sampler.init(key, *numbers), key)

    def ask(key: Any, state: Remembering) -> tuple[Remembering, Any]:
        inner, asked = sampler.ask(state.memory, state.inner)
        return Remembering(inner, state.memory), asked

    def tell(key: Any, state: Remembering, *told: Any) -> tuple[Remembering, Any]:
        inner, info = sampler.tell(state.memory, state.inner, *told)
        return Remembering(inner, state.memory), info

    return sampler._replace(init=init, ask=ask, tell=tell)


def weights_not_reset(
    sampler: Sampler | Explorer, from_step: int = 0
) -> Sampler | Explorer:
    """Offspring keep the weights that they were drawn by, from some step on."""

    def ask(key: Any, state: Any) -> tuple[Any, Any]:
        after, asked = sampler.ask(key, state)
        return _with_old_weights(state, after, from_step), asked

    return sampler._replace(ask=ask)


def _with_old_weights(before: Any, after: Any, from_step: int) -> Any:
    """The state after a draw, with every population's weights as they were."""
    if isinstance(after, SMCState):
        kept = jnp.take_along_axis(before.log_weights, after.ancestors, axis=-1)
        alive = jnp.isfinite(kept) & jnp.isfinite(after.log_weights)
        late = jnp.expand_dims(after.t >= from_step, -1)
        change = jnp.where(alive & late, kept - after.log_weights, 0.0)
        return after._replace(
            log_weights=after.log_weights + change, log_base=after.log_base + change
        )
    if isinstance(after, tuple) and hasattr(after, "_replace"):
        pairs = zip(before, after, strict=True)
        return type(after)(*(_with_old_weights(b, a, from_step) for b, a in pairs))
    return after
