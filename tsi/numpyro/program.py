"""numpyro programs as targets.

    p(x_{1:T}) = prod_t prod_latent p(x_t^site | carry_{t-1}),
    log G_t    = sum of the log densities of the observed sites and factors of step t.

With the product potential the target is the posterior of the numpyro program that runs
all steps in sequence, and the evidence is its marginal likelihood:

    def start(params):
        return jnp.zeros(())

    def step(t, x, params):
        x = numpyro.sample("x", dist.Normal(0.8 * x, 0.6))
        numpyro.sample("y", dist.Normal(x, 0.9), obs=params.y[t])
        return x

    target = program_target(start, step, max_steps=4)
    tsi.run(samplers.particle_filter("odds"), target, key, 100, params)

A program is written for one particle and traced once for all steps. `t` is a traced
number, so code that depends on it or on the carry uses `jnp.where`, `jax.lax` (without
sites inside) or numpyro's own `scan` and `cond`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.numpyro.arguments import call, model_arguments
from tsi.numpyro.one_step import init_has_sites, run_init, run_step
from tsi.numpyro.particles import ProgramParticles, ProgramStep
from tsi.numpyro.sites import run_program, sum_sites
from tsi.numpyro.whole_model import model_sites, run_model
from tsi.step_keys import AnyKey, single_key
from tsi.target import where_rows
from tsi.weights import weight_dtype


@dataclasses.dataclass(frozen=True, eq=False)
class ProgramTarget:
    """A `tsi.target.Target` made of numpyro programs; see `program_target`."""

    init_fn: Callable[..., Any]
    step_fn: Callable[..., Any]
    max_steps: int
    end: Callable[..., Any] | None = None
    proposal: Callable[..., Any] | None = None

    takes_arguments: ClassVar[bool] = True
    """Its programs may take several arguments: see `tsi.numpyro.arguments`."""

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """The whole model, a numpyro program of the arguments of `init_fn`.

        A site of a step becomes one site with a leading axis T. If a site of `init_fn`
        has the same name as a site of a step, it gets the prefix "initial/". The
        proposal is not part of the model, and steps after the end of a particle are
        masked.

        Returns:
            The last carry.
        """
        params = model_arguments(*args, **kwargs)
        return run_model(self, params, unconditioned=False)

    def unconditioned_model(self, *args: Any, **kwargs: Any) -> Any:
        """`model` with observed sites drawn, for `Predictive`."""
        params = model_arguments(*args, **kwargs)
        return run_model(self, params, unconditioned=True)

    def sites(self, particles: ProgramParticles, params: Any = None) -> dict[str, Any]:
        """Latent and deterministic values by their names in `model`.

        Args:
            particles: N particles.
            params: parameters of the target.

        Returns:
            Leaves [N, ...] for sites of `init_fn` and [N, T, ...] for sites of steps,
            zero after the end of a particle.
        """
        return model_sites(particles, self.step_names(params))

    def step_names(self, params: Any = None) -> frozenset[str]:
        """Names of all sites of a step."""
        key = jax.random.key(0)
        names = []

        def trace_step() -> Any:
            carry = self._empty_carry(key, 1, params)
            row = jax.tree.map(lambda leaf: leaf[0], carry)
            t = jnp.zeros((), jnp.int32)
            sites = run_program(self.step_fn, key, {}, t, row, params=params)
            names.append(sites.names)
            return sites.log_likelihood

        jax.eval_shape(trace_step)
        return names[0]

    def _empty_carry(self, key: Key[Array, ""], num_rows: int, params: Any) -> Any:
        if init_has_sites(self.init_fn, key, params):
            carry = jax.eval_shape(
                lambda: run_init(self.init_fn, key, {}, params).returned
            )
            carry = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), carry)
        else:
            carry = run_init(self.init_fn, key, {}, params).returned
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_rows, *leaf.shape)), carry
        )

    def _empty_init_values(
        self, key: Key[Array, ""], num_rows: int, params: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Latent and deterministic values of `init_fn`, zero if not yet drawn."""

        def begin() -> tuple[dict[str, Any], dict[str, Any]]:
            sites = run_init(self.init_fn, key, {}, params)
            return sites.latents, sites.deterministics

        if init_has_sites(self.init_fn, key, params):
            shapes = jax.eval_shape(begin)
            init_values = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes
            )
        else:
            init_values = begin()
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_rows, *leaf.shape)), init_values
        )

    def init(
        self, key: AnyKey, num_particles: int, params: Any = None
    ) -> ProgramParticles:
        """N particles without steps; the first step draws the sites of `init_fn`."""
        key = single_key(key)
        carry = self._empty_carry(key, num_particles, params)
        initial, deterministics = self._empty_init_values(key, num_particles, params)
        t = jnp.zeros((), jnp.int32)

        def trace_step() -> ProgramStep:
            row = jax.tree.map(lambda leaf: leaf[0], carry)
            return run_step(self.step_fn, self.proposal, key, t, row, None, params)

        shapes = jax.eval_shape(trace_step)._replace(key=None)
        rows, length = num_particles, self.max_steps
        history = jax.tree.map(
            lambda leaf: jnp.zeros((rows, length, *leaf.shape), leaf.dtype), shapes
        )
        return ProgramParticles(
            carry=carry,
            initial=initial,
            initial_deterministics=deterministics,
            history=history._replace(key=jnp.broadcast_to(key, (rows, length))),
            length=jnp.zeros(rows, jnp.int32),
            finished=jnp.zeros(rows, bool),
        )

    def _extend(
        self,
        keys: Key[Array, "N"],
        t: Int[Array, "*rows"] | int,
        particles: ProgramParticles,
        initial: dict[str, Any] | None,
        stored: dict[str, Any] | None,
        params: Any,
    ) -> tuple[ProgramParticles, Array, Array]:
        """Extend unfinished rows; also log p - log q and log p of the step, [N]."""
        rows = jnp.arange(particles.length.shape[0])
        t = jnp.broadcast_to(jnp.asarray(t, jnp.int32), rows.shape)
        step_mask = ~particles.finished
        zeros = jnp.zeros(rows.shape, weight_dtype())
        before = particles.carry
        init_values = (particles.initial, particles.initial_deterministics)
        log_p, log_g, excess = zeros, zeros, zeros
        if init_has_sites(self.init_fn, keys[0], params):

            def begin(key: Array, values: dict[str, Any] | None) -> tuple:
                key = jax.random.fold_in(key, 0)
                sites = run_init(self.init_fn, key, values or {}, params)
                log_p = sum_sites(sites.log_probs)
                log_g, excess = sites.log_likelihood, sum_sites(sites.log_excess)
                draws = (sites.latents, sites.deterministics)
                return sites.returned, draws, log_p, log_g, excess

            first = step_mask & (t == 0)
            unchanged = (before, init_values, log_p, log_g, excess)
            # Under vmap the condition is a selection, so every step runs `init_fn`.
            before, init_values, log_p, log_g, excess = jax.lax.cond(
                jnp.any(first),
                lambda: where_rows(first, jax.vmap(begin)(keys, initial), unchanged),
                lambda: unchanged,
            )
        step = jax.vmap(
            lambda key, t, carry, stored: run_step(
                self.step_fn, self.proposal, key, t, carry, stored, params
            )
        )(keys, t, before, stored)
        step = step._replace(
            log_prob=log_p + step.log_prob,
            log_potential=log_g + step.log_potential,
            log_correction=excess + step.log_correction,
        )
        # Step T of a finished row is out of range, so it is dropped.
        places = jnp.where(step_mask, t, self.max_steps)
        finished = t + 1 >= self.max_steps
        if self.end is not None:
            finished |= jax.vmap(lambda t, carry: self._has_ended(t, carry, params))(
                t, step.carry
            )
        extended = ProgramParticles(
            carry=where_rows(step_mask, step.carry, particles.carry),
            initial=init_values[0],
            initial_deterministics=init_values[1],
            history=jax.tree.map(
                lambda stack, new: stack.at[rows, places].set(new, mode="drop"),
                particles.history,
                step,
            ),
            length=jnp.where(step_mask, t + 1, particles.length),
            finished=particles.finished | finished,
        )
        return (
            extended,
            jnp.where(step_mask, step.log_correction, 0.0),
            jnp.where(step_mask, step.log_prob, 0.0),
        )

    def _has_ended(self, t: Array, carry: Any, params: Any) -> Bool[Array, ""]:
        assert self.end is not None
        has_ended = jnp.asarray(call(self.end, t, carry, params=params))
        if has_ended.shape != () or has_ended.dtype != bool:
            raise ConfigurationError(
                "`end` must return one bool, whether the particle has finished; it "
                f"returned {has_ended.dtype} of shape {has_ended.shape}."
            )
        return has_ended

    def propose(
        self,
        key: AnyKey,
        t: Int[Array, "*rows"] | int,
        particles: ProgramParticles,
        params: Any = None,
    ) -> tuple[ProgramParticles, Float[Array, "N"]]:
        """Run step t of each unfinished particle; particle i uses fold_in(key, i)."""
        key, slots = single_key(key), jnp.arange(particles.length.shape[0])
        keys = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots)
        extended, correction, _ = self._extend(keys, t, particles, None, None, params)
        return extended, correction

    def log_potential(
        self,
        t: Int[Array, "*rows"] | int,
        particles: ProgramParticles,
        params: Any = None,
    ) -> Float[Array, "N"]:
        """log G of the last step of each row; 0 without steps."""
        rows = jnp.arange(particles.length.shape[0])
        last = jnp.maximum(particles.length - 1, 0)
        values = particles.history.log_potential[rows, last]
        return jnp.where(particles.length > 0, values, 0.0)

    def finished(self, particles: ProgramParticles) -> Bool[Array, "N"]:
        """Which rows take no further step."""
        return particles.finished

    def gather(
        self, particles: ProgramParticles, ancestors: Int[Array, "W"]
    ) -> ProgramParticles:
        """The rows at `ancestors`, with their histories."""
        return jax.tree.map(lambda leaf: leaf[ancestors], particles)

    def truncate(
        self, particles: ProgramParticles, depths: Int[Array, "N"], params: Any = None
    ) -> ProgramParticles:
        """Cut longer rows back to their first `depths` steps."""
        rows = jnp.arange(depths.shape[0])
        is_longer = particles.length > depths
        key = particles.history.key[0, 0]
        empty = self._empty_carry(key, depths.shape[0], params)
        last = jnp.maximum(depths - 1, 0)
        last_carry = jax.tree.map(
            lambda leaf: leaf[rows, last], particles.history.carry
        )
        carry = where_rows(depths > 0, last_carry, empty)
        return particles._replace(
            carry=where_rows(is_longer, carry, particles.carry),
            length=jnp.where(is_longer, depths, particles.length),
            finished=particles.finished & ~is_longer,
        )

    def replay(
        self,
        t: Int[Array, "*rows"] | int,
        particles: ProgramParticles,
        sources: ProgramParticles,
        params: Any = None,
    ) -> tuple[ProgramParticles, Float[Array, "N"]]:
        """Extend each unfinished row by the latents of step t of its source.

        The carry and the potential are computed from the past of the row itself. The
        source must have taken step t.

        Returns:
            The rows, and log p of the step, [N]; 0 for rows that took no step.
        """
        rows = jnp.arange(particles.length.shape[0])
        history = sources.history
        latents = jax.tree.map(lambda leaf: leaf[rows, t], history.latents)
        extended, _, log_p = self._extend(
            history.key[rows, t], t, particles, sources.initial, latents, params
        )
        return extended, log_p

    def log_prob(
        self, particles: ProgramParticles, params: Any = None
    ) -> Float[Array, "N"]:
        """log p of all latent sites of each row so far."""
        return self._sum_steps(particles, particles.history.log_prob)

    def log_proposal(
        self, particles: ProgramParticles, params: Any = None
    ) -> Float[Array, "N"]:
        """Log density of each row so far under the proposal."""
        history = particles.history
        return self._sum_steps(particles, history.log_prob - history.log_correction)

    def _sum_steps(
        self, particles: ProgramParticles, values: Float[Array, "N T"]
    ) -> Float[Array, "N"]:
        step_mask = jnp.arange(self.max_steps) < particles.length[:, None]
        return jnp.sum(jnp.where(step_mask, values, 0.0), axis=1)


def program_target(
    init_fn: Callable[..., Any],
    step_fn: Callable[..., Any],
    *,
    max_steps: int,
    end: Callable[..., Any] | None = None,
    proposal: Callable[..., Any] | None = None,
) -> ProgramTarget:
    """Make a target from numpyro programs, each written for one particle.

    Args:
        init_fn: `(params) -> carry` before the first step. It may have sites, which are
            part of the first step.
        step_fn: `(t, carry, params) -> carry`. Latent sites are the step, observed
            sites and `numpyro.factor` its potential. `t` is a traced int32 scalar.
        max_steps: T; a particle finishes after T steps.
        end: `(t, carry, params) -> bool`, with the carry that step t returned: whether
            the particle has finished. None to finish only at `max_steps`.
        proposal: `(t, carry, params)`, a program with some of the latent sites of
            `step_fn`. These are drawn from the proposal and corrected by
            log p - log q; the others are drawn from `step_fn`.

    Returns:
        A target with the capabilities `truncate`, `replay` and `log_prob`. Handlers
        around the programs act as in numpyro; see docs/numpyro.md.

    Raises:
        ConfigurationError: if `max_steps` is less than one.
    """
    if max_steps < 1:
        raise ConfigurationError(f"A program needs max_steps >= 1; got {max_steps}.")
    return ProgramTarget(init_fn, step_fn, max_steps, end, proposal)
