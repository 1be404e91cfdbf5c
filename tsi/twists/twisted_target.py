"""A twisted target: the potential of a prefix includes its expected future.

With potentials G_t and a twist psi_t, the twisted target reports for a prefix

    log (G_1 ... G_t psi_t)  while it is unfinished,    log (G_1 ... G_T)  at its end.

A sampler with telescoping potentials then weights each step by G_t psi_t / psi_{t-1},
which is twisted SMC. At the end psi cancels, and the target is p(x) prod_t G_t for
every psi that is positive wherever the future potentials are. A twist of zero (log
-inf) ends a prefix. If only the last potential counts (a reward of the whole solution),
a prefix reports log psi_t while it is unfinished, and log G_T at its end.

A path must end by itself: if `max_steps` cuts it short, the twist remains in its
weight.

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
    """Particles of the inner target, and their potentials.

    Attributes:
        particles: of the inner target, leading axis N.
        log_earned: log G_{1:t}, or log G_t, after each step t, [N, T].
    """

    particles: Particles
    log_earned: Float[Array, "N T"]


class TwistedParams(NamedTuple):
    """Parameters of a twisted target whose twist has parameters.

    Attributes:
        target: parameters of the inner target.
        theta: parameters of the twist, a pytree.
    """

    target: Any
    theta: Any


def _target_params(params: Any) -> Any:
    """The parameters of the inner target."""
    return params.target if isinstance(params, TwistedParams) else params


class TwistedTarget:
    """A target with a twist, for samplers with telescoping("odds") potentials.

    It has the capabilities truncate, replay, log_prob and put if the inner target has
    them. `params` are given to the inner target, the twist and the proposal. If they
    are `TwistedParams`, the inner target gets their field `target`.

    Args:
        target: the inner target; it must have `max_steps`.
        log_twist: `(t, particles, params) -> [N]`, log psi_t of the inner target's
            particles after step t (a scalar, or [N]); ignored for finished ones.
        accumulate: "product" of all potentials, or the "last" one only.
        propose: replaces the inner target's proposal: `(key, t, particles, params) ->
            (particles, log p - log q)`; the optimal q is proportional to p G psi.

    Raises:
        UnknownNameError: `accumulate` is neither "product" nor "last".
        ConfigurationError: the target has no step limit.
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
                "TwistedTarget stores a number per step of a particle, and "
                f"{type(target).__name__} has no step limit. Give the target an "
                "attribute max_steps."
            )
        self.target, self.log_twist, self.accumulate = target, log_twist, accumulate
        self.max_steps: int = target.max_steps
        self._own_proposal = propose
        # `tsi.target.require` treats a method that is None as missing.
        for name in ("truncate", "replay", "log_prob", "log_proposal", "put"):
            is_available = getattr(target, name, None) is not None
            # The inner target does not know the density of another proposal, and
            # without it repeated steps would get wrong weights.
            is_available &= name not in ("replay", "log_proposal") or propose is None
            setattr(self, name, getattr(self, f"_{name}") if is_available else None)

    def init(
        self, key: AnyKey, num_particles: int, params: Any = None
    ) -> TwistedParticles:
        """N particles before their first step."""
        log_earned = jnp.zeros((num_particles, self.max_steps), weight_dtype())
        inner = self.target.init(key, num_particles, _target_params(params))
        return TwistedParticles(inner, log_earned)

    def _record_potential(
        self,
        t: Int[Array, "..."] | int,
        before: TwistedParticles,
        now: Any,
        params: Any,
    ) -> TwistedParticles:
        """Record the potential of the step from `before` to `now`."""
        log_earned = self.target.log_potential(t, now, _target_params(params))
        log_earned = log_earned.astype(weight_dtype())
        if self.accumulate == "product":
            previous = self._log_earned_at(before, jnp.asarray(t) - 1)
            log_earned = log_earned + jnp.where(jnp.asarray(t) > 0, previous, 0.0)
        # For a row that had finished before, the write is out of range and dropped.
        rows = jnp.arange(log_earned.shape[0])
        done = self.target.finished(before.particles)
        places = jnp.where(done, self.max_steps, t)
        recorded = before.log_earned.at[rows, places].set(log_earned, mode="drop")
        return TwistedParticles(now, recorded)

    def _log_earned_at(
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
        """A step of the inner target's proposal or of `propose`; also log p - log q."""
        inner, own_proposal = particles.particles, self._own_proposal
        if own_proposal is None:
            extended, correction = self.target.propose(
                key, t, inner, _target_params(params)
            )
        else:
            extended, correction = own_proposal(key, t, inner, params)
        return self._record_potential(t, particles, extended, params), correction

    def log_potential(
        self,
        t: Int[Array, "..."] | int,
        particles: TwistedParticles,
        params: Any = None,
    ) -> Float[Array, "N"]:
        """The potentials of each prefix and, unless it has ended, its twist."""
        earned = self._log_earned_at(particles, jnp.asarray(t))
        twist = self.log_twist(t, particles.particles, params)
        so_far = earned if self.accumulate == "product" else jnp.zeros_like(earned)
        # An impossible prefix stays impossible: -inf plus a twist of +inf is NaN.
        twisted = jnp.where(so_far == -jnp.inf, -jnp.inf, so_far + twist)
        return jnp.where(self.target.finished(particles.particles), earned, twisted)

    def finished(self, particles: TwistedParticles) -> Bool[Array, "N"]:
        """Whether each particle of the inner target has finished."""
        return self.target.finished(particles.particles)

    def gather(
        self, particles: TwistedParticles, ancestors: Int[Array, "N"]
    ) -> TwistedParticles:
        """The particles at `ancestors`, with their potentials."""
        inner = self.target.gather(particles.particles, ancestors)
        return TwistedParticles(inner, particles.log_earned[ancestors])

    def _truncate(
        self, particles: TwistedParticles, depths: Int[Array, "N"], params: Any = None
    ) -> TwistedParticles:
        # Later steps overwrite the potentials of the steps that are cut off.
        truncate = require(self.target, "truncate", "a twisted target")
        inner = truncate(particles.particles, depths, _target_params(params))
        return particles._replace(particles=inner)

    def _replay(
        self,
        t: Int[Array, "..."] | int,
        particles: TwistedParticles,
        sources: TwistedParticles,
        params: Any = None,
    ) -> tuple[TwistedParticles, Float[Array, "N"]]:
        replay = require(self.target, "replay", "a twisted target")
        now, log_probs = replay(
            t, particles.particles, sources.particles, _target_params(params)
        )
        return self._record_potential(t, particles, now, params), log_probs

    def _log_prob(
        self, particles: TwistedParticles, params: Any = None
    ) -> Float[Array, "N"]:
        log_prob = require(self.target, "log_prob", "a twisted target")
        return log_prob(particles.particles, _target_params(params))

    def _log_proposal(
        self, particles: TwistedParticles, params: Any = None
    ) -> Float[Array, "N"]:
        log_proposal = require(self.target, "log_proposal", "a twisted target")
        return log_proposal(particles.particles, _target_params(params))

    def _put(
        self,
        stored: TwistedParticles,
        slots: Int[Array, "W"],
        rows: TwistedParticles,
    ) -> TwistedParticles:
        inner = self.target.put(stored.particles, slots, rows.particles)
        earned = stored.log_earned.at[slots].set(rows.log_earned, mode="drop")
        return TwistedParticles(inner, earned)
