"""Mistakes that show on every table, as wrappers of any sampler.

`tsi.experiments.proofs.mutations` applies them. Mistakes that do not show on small
tables with mild scores are in `tsi.experiments.proofs.quiet_mistakes`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from tsi.explorer import Explorer, Reply, Request
from tsi.sampler import Sampler
from tsi.samplers.parts.population import SMCState

Mistake = Callable[[Sampler | Explorer], Sampler | Explorer]


class StateWithMemory(NamedTuple):
    """The state of a sampler with a value that it should not have kept."""

    inner: Any
    memory: Any

    @property
    def log_weights(self) -> Any:
        """`log_weights` of the sampler."""
        return self.inner.log_weights

    @property
    def log_evidence(self) -> Any:
        """`log_evidence` of the sampler."""
        return self.inner.log_evidence

    @property
    def log_potentials(self) -> Any:
        """`log_potentials` of the sampler."""
        return self.inner.log_potentials

    @property
    def finished(self) -> Any:
        """`finished` of the sampler."""
        return self.inner.finished

    @property
    def members(self) -> Any:
        """`members` of the sampler."""
        return self.inner.members

    @property
    def done(self) -> Any:
        """`done` of the sampler."""
        return self.inner.done


def dropped_correction(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Ignore log p - log q."""
    if isinstance(sampler, Explorer):

        def tell_explorer(key: Any, state: Any, reply: Reply) -> Any:
            zeros = jnp.zeros_like(reply.log_corrections)
            return sampler.tell(key, state, reply._replace(log_corrections=zeros))

        return sampler._replace(tell=tell_explorer)

    def tell(key: Any, state: Any, potentials: Any, corrections: Any, f: Any) -> Any:
        return sampler.tell(key, state, potentials, 0.0 * corrections, f)

    return sampler._replace(tell=tell)


def wrong_ancestor(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Extend the ancestor of the neighbouring particle."""

    def ask(key: Any, state: Any) -> tuple[Any, Any]:
        state, request = sampler.ask(key, state)
        if isinstance(request, Request):
            places = state.members.shape[0]
            return state, request._replace(parents=(request.parents + 1) % places)
        return state, jnp.roll(request, 1)

    return sampler._replace(ask=ask)


def late_reward(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Weight each turn by the potentials of the previous turn."""
    explores = isinstance(sampler, Explorer)

    def init(key: Any, num_particles: int, *limit: int) -> StateWithMemory:
        rows = num_particles
        if isinstance(sampler, Explorer):
            rows = sampler.plan(num_particles, *limit).rows
        return StateWithMemory(
            sampler.init(key, num_particles, *limit), jnp.zeros(rows)
        )

    def ask(key: Any, state: StateWithMemory) -> tuple[StateWithMemory, Any]:
        inner, request = sampler.ask(key, state.inner)
        memory = state.memory if explores else state.memory[request]
        return StateWithMemory(inner, memory), request

    def tell(
        key: Any, state: StateWithMemory, *replies: Any
    ) -> tuple[StateWithMemory, Any]:
        if isinstance(replies[0], Reply):
            delayed = (replies[0]._replace(log_potentials=state.memory),)
            current = replies[0].log_potentials
        else:
            delayed, current = (state.memory, *replies[1:]), replies[0]
        inner, info = sampler.tell(key, state.inner, *delayed)
        return StateWithMemory(inner, current), info

    return sampler._replace(init=init, ask=ask, tell=tell)


def reused_key(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Use one key for all turns."""

    def init(key: Any, *numbers: int) -> StateWithMemory:
        return StateWithMemory(sampler.init(key, *numbers), key)

    def ask(key: Any, state: StateWithMemory) -> tuple[StateWithMemory, Any]:
        inner, request = sampler.ask(state.memory, state.inner)
        return StateWithMemory(inner, state.memory), request

    def tell(
        key: Any, state: StateWithMemory, *replies: Any
    ) -> tuple[StateWithMemory, Any]:
        inner, info = sampler.tell(state.memory, state.inner, *replies)
        return StateWithMemory(inner, state.memory), info

    return sampler._replace(init=init, ask=ask, tell=tell)


def weights_not_reset(
    sampler: Sampler | Explorer, from_step: int = 0
) -> Sampler | Explorer:
    """Keep the weights with which offspring were drawn, from some step on."""

    def ask(key: Any, state: Any) -> tuple[Any, Any]:
        after, request = sampler.ask(key, state)
        return _restore_weights(state, after, from_step), request

    return sampler._replace(ask=ask)


def _restore_weights(before: Any, after: Any, from_step: int) -> Any:
    """Restore the weights that every population had before a draw."""
    if isinstance(after, SMCState):
        weights_before = jnp.take_along_axis(
            before.log_weights, after.ancestors, axis=-1
        )
        alive = jnp.isfinite(weights_before) & jnp.isfinite(after.log_weights)
        is_due = jnp.expand_dims(after.t >= from_step, -1)
        change = jnp.where(alive & is_due, weights_before - after.log_weights, 0.0)
        return after._replace(
            log_weights=after.log_weights + change, log_base=after.log_base + change
        )
    if isinstance(after, tuple) and hasattr(after, "_replace"):
        pairs = zip(before, after, strict=True)
        return type(after)(*(_restore_weights(b, a, from_step) for b, a in pairs))
    return after
