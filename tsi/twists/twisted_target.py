"""A target seen through a twist: prefixes are worth what they will have earned.

With potentials G_t and a twist psi_t, the twisted target reports for a prefix

    log (G_1 ... G_t psi_t)  while it is unfinished,    log (G_1 ... G_T)  at its end.

A sampler with telescoping potentials then weighs each step by G_t psi_t / psi_{t-1},
which is twisted SMC; at the end psi has cancelled, and the target is p(x) prod_t G_t
whatever psi is, as long as it is positive where the future is. A twist of zero, log
-inf, ends a prefix. Where only the last potential counts (a reward of the whole
solution), a prefix has the twist alone: log psi_t on the way, log G_T at the end.

A path must end by itself: a run that cuts it short with `max_steps` leaves the twist in
its weight.

References:
    [1] Zhao et al. 2024, arXiv 2404.17546, Section 3.
    [2] Guarniero, Johansen and Lee 2017, arXiv 1511.06286 (the exact twist).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.step_keys import AnyKey
from tsi.target import Particles, require
from tsi.weights import weight_dtype

ACCUMULATE = ("product", "last")


class TwistedParticles(NamedTuple):
    """Particles of the target within, and what their potentials came to.

    Attributes:
        particles: the target's, leading axis N.
        log_earned: log G_{1:t}, or log G_t, after each step t, [N, T].
    """

    particles: Particles
    log_earned: Float[Array, "N T"]


class TwistedParams(NamedTuple):
    """Parameters of a twisted target whose twist has some of its own.

    Attributes:
        target: what the target within is given.
        theta: the twist's, a pytree.
    """

    target: Any
    theta: Any


def _own(params: Any) -> Any:
    """What of the parameters is the target's."""
    return params.target if isinstance(params, TwistedParams) else params


class TwistedTarget:
    """A target with a twist, for samplers with telescoping("odds") potentials.

    It has the capabilities truncate, replay, log_prob and put if the target has.
    `params` are handed to the target, the twist and the proposal alike, except that of
    `TwistedParams` the target is given its own part.

    Args:
        target: the target within; it must have `max_steps`.
        log_twist: `(t, particles, params) -> [N]`, log psi_t of the target's particles
            after step t (a scalar, or [N]); what it says of finished ones is ignored.
        accumulate: "product" of all potentials, or the "last" one alone.
        propose: in place of the target's own proposal, `(key, t, particles, params) ->
            (particles, log p - log q)`; best q in proportion to p G psi.

    Raises:
        UnknownNameError: for another way to accumulate.
        ConfigurationError: if the target has no step limit.
    """

    def __init__(
        self,
        target: Any,
        log_twist: Callable[..., Array],
        accumulate: str = "product",
        propose: Callable[..., tuple[Particles, Array]] | None = None,
    ) -> None:
        if accumulate not in ACCUMULATE:
            raise UnknownNameError("way to accumulate", accumulate, ACCUMULATE)
        if getattr(target, "max_steps", None) is None:
            raise ConfigurationError(
                "TwistedTarget keeps a number for each step of a particle, and "
                f"{type(target).__name__} does not say how many there may be. Give the "
                "target an attribute max_steps."
            )
        self.target, self.log_twist, self.accumulate = target, log_twist, accumulate
        self.max_steps: int = target.max_steps
        self._foreign_proposal = propose
        # `tsi.target.require` takes None for a capability that is not there.
        for name in ("truncate", "replay", "log_prob", "log_proposal", "put"):
            has_it = getattr(target, name, None) is not None
            # The target does not know the density of another's proposal, without which
            # repeated steps would be weighed wrongly.
            has_it &= name not in ("replay", "log_proposal") or propose is None
            setattr(self, name, getattr(self, f"_{name}") if has_it else None)

    def init(
        self, key: AnyKey, num_particles: int, params: Any = None
    ) -> TwistedParticles:
        """N particles that have earned nothing yet."""
        earned = jnp.zeros((num_particles, self.max_steps), weight_dtype())
        inner = self.target.init(key, num_particles, _own(params))
        return TwistedParticles(inner, earned)

    def _earn(
        self,
        t: Int[Array, "..."] | int,
        before: TwistedParticles,
        now: Any,
        params: Any,
    ) -> TwistedParticles:
        """Enter the potential of the step that led from `before` to `now`."""
        log_earned = self.target.log_potential(t, now, _own(params))
        log_earned = log_earned.astype(weight_dtype())
        if self.accumulate == "product":
            previous = self._earned(before, jnp.asarray(t) - 1)
            log_earned = log_earned + jnp.where(jnp.asarray(t) > 0, previous, 0.0)
        # A row that had finished stays as it is: its number goes nowhere.
        rows = jnp.arange(log_earned.shape[0])
        done = self.target.finished(before.particles)
        places = jnp.where(done, self.max_steps, t)
        entered = before.log_earned.at[rows, places].set(log_earned, mode="drop")
        return TwistedParticles(now, entered)

    def _earned(
        self, particles: TwistedParticles, t: Int[Array, "..."]
    ) -> Float[Array, "N"]:
        rows = jnp.arange(particles.log_earned.shape[0])
        return particles.log_earned[rows, jnp.clip(t, 0, self.max_steps - 1)]

    def propose(
        self,
        key: AnyKey,
        t: Int[Array, "..."] | int,
        particles: TwistedParticles,
        params: Any = None,
    ) -> tuple[TwistedParticles, Float[Array, "N"]]:
        """A step of the target's proposal, or of the one given; also log p - log q."""
        inner, foreign = particles.particles, self._foreign_proposal
        if foreign is None:
            now, correction = self.target.propose(key, t, inner, _own(params))
        else:
            now, correction = foreign(key, t, inner, params)
        return self._earn(t, particles, now, params), correction

    def log_potential(
        self,
        t: Int[Array, "..."] | int,
        particles: TwistedParticles,
        params: Any = None,
    ) -> Float[Array, "N"]:
        """What each prefix has earned and, unless it has ended, its twist."""
        earned = self._earned(particles, jnp.asarray(t))
        twist = self.log_twist(t, particles.particles, params)
        so_far = earned if self.accumulate == "product" else jnp.zeros_like(earned)
        # An impossible prefix stays so even if the twist is +inf, as 0 * inf is NaN.
        twisted = jnp.where(so_far == -jnp.inf, -jnp.inf, so_far + twist)
        return jnp.where(self.target.finished(particles.particles), earned, twisted)

    def finished(self, particles: TwistedParticles) -> Bool[Array, "N"]:
        """The target's."""
        return self.target.finished(particles.particles)

    def gather(
        self, particles: TwistedParticles, ancestors: Int[Array, "N"]
    ) -> TwistedParticles:
        """The particles at `ancestors`, with what they earned."""
        inner = self.target.gather(particles.particles, ancestors)
        return TwistedParticles(inner, particles.log_earned[ancestors])

    def _truncate(
        self, particles: TwistedParticles, depths: Int[Array, "N"], params: Any = None
    ) -> TwistedParticles:
        # Later steps write over what is cut off here, before it is read.
        truncate = require(self.target, "truncate", "a twisted target")
        inner = truncate(particles.particles, depths, _own(params))
        return particles._replace(particles=inner)

    def _replay(
        self,
        t: Int[Array, "..."] | int,
        particles: TwistedParticles,
        sources: TwistedParticles,
        params: Any = None,
    ) -> tuple[TwistedParticles, Float[Array, "N"]]:
        replay = require(self.target, "replay", "a twisted target")
        now, log_probs = replay(t, particles.particles, sources.particles, _own(params))
        return self._earn(t, particles, now, params), log_probs

    def _log_prob(
        self, particles: TwistedParticles, params: Any = None
    ) -> Float[Array, "N"]:
        log_prob = require(self.target, "log_prob", "a twisted target")
        return log_prob(particles.particles, _own(params))

    def _log_proposal(
        self, particles: TwistedParticles, params: Any = None
    ) -> Float[Array, "N"]:
        log_proposal = require(self.target, "log_proposal", "a twisted target")
        return log_proposal(particles.particles, _own(params))

    def _put(
        self,
        stored: TwistedParticles,
        slots: Int[Array, "W"],
        rows: TwistedParticles,
    ) -> TwistedParticles:
        inner = self.target.put(stored.particles, slots, rows.particles)
        earned = stored.log_earned.at[slots].set(rows.log_earned, mode="drop")
        return TwistedParticles(inner, earned)
