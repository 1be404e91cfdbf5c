r"""Particle marginal Metropolis-Hastings: parameters around a target, by its evidence.

The target's paths x depend on parameters theta, whose prior is a numpyro program. A
particle system run at theta has an unbiased estimate Z of p(y | theta), and

    theta' ~ q(. | theta),  Z' from a new system at theta',
    accept with probability  min(1, p(theta') Z' q(theta | theta')
                                    / (p(theta) Z q(theta' | theta))),

keeps p(theta, x | y) invariant, x being one particle of the accepted system drawn in
proportion to its weights. Z belongs to the state: it is kept until a proposal is
accepted, for a chain that estimated it anew at each move would aim at something else.

theta moves by a random walk in the reals, z -> theta one to one, so that the prior's
density of z has |d theta / dz| in it. Scale and covariance of the walk adapt during
warm-up only. Without a prior there is nothing to walk, and what remains is particle
independent Metropolis-Hastings, the chain of whole systems.

    def prior(y):
        decay = numpyro.sample("decay", dist.Uniform(-1, 1))
        return {"decay": decay, "y": y}      # the target's params

    kernel = PMMH(samplers.smc(potential=samplers.product()), target, prior)
    MCMC(kernel, num_warmup=500, num_samples=1000).run(key, y)

References:
    [1] Andrieu, Doucet and Holenstein 2010, Particle Markov chain Monte Carlo methods,
        sections 2.4.2 (PMMH) and 2.4.1 (PIMH).
    [2] Andrieu and Roberts 2009, The pseudo-marginal approach for efficient Monte Carlo
        computations.
    [3] Haario, Saksman and Tamminen 2001, An adaptive Metropolis algorithm.
    [4] Sherlock, Thiery, Roberts and Rosenthal 2015, On the efficiency of
        pseudo-marginal random walk Metropolis algorithms.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, UInt32
from numpyro.infer.mcmc import MCMCKernel

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.explorer import Explorer
from tsi.numpyro.arguments import call, model_arguments, params_of
from tsi.numpyro.hosting import check_target, warn_of_another_posterior
from tsi.numpyro.named_fields import NamedValues, with_names, without_names
from tsi.numpyro.parameters import drawn_parameters, parameters_at
from tsi.numpyro.particle_system import (
    Setting,
    System,
    acceptance,
    evidence_and_path,
)
from tsi.numpyro.random_walk import RandomWalk, adapted, begin, step
from tsi.sampler import Sampler
from tsi.step_keys import typed_key


class PMMHState(NamedTuple):
    """What numpyro carries from sample to sample.

    Attributes:
        rng_key: move i draws with fold_in(rng_key, i).
        iteration: moves so far, those of warm-up included.
        num_warmup: moves that adapt the walk.
        z: the parameters as real values, by name.
        log_prior: log density of z under the prior.
        log_evidence: log Z of the accepted system, never estimated again.
        accept_prob: of the latest proposal.
        mean_accept_prob: since warm-up ended, or so far during it.
        num_accepted: proposals accepted so far.
        walk: the proposal.
        sample: the numbers that are collected, by name.
    """

    rng_key: Key[Array, "*chains"] | UInt32[Array, "*chains 2"]
    iteration: Int[Array, "*chains"]
    num_warmup: Int[Array, "*chains"]
    z: dict[str, Any]
    log_prior: Float[Array, "*chains"]
    log_evidence: Float[Array, "*chains"]
    accept_prob: Float[Array, "*chains"]
    mean_accept_prob: Float[Array, "*chains"]
    num_accepted: Int[Array, "*chains"]
    walk: RandomWalk
    sample: dict[str, Any]

    def __getitem__(self, index: Any) -> Any:
        # MCMC looks for extra fields here last.
        if isinstance(index, str):
            raise UnknownNameError("extra field", index, self._fields)
        return tuple.__getitem__(self, index)


class PMMH(MCMCKernel):
    """Particle marginal Metropolis-Hastings as a numpyro kernel.

    Args:
        sampler: of the particle systems: a `Sampler`, or an `Explorer` that ends, with
            a target and no others besides. For a program whose posterior is meant its
            potential is the product: `smc(potential=product())`.
        target: what is explored at given parameters.
        prior: a numpyro program of the arguments of `mcmc.run` that returns the
            target's `params`. Its continuous sites walk; its discrete sites are drawn
            from the prior at each proposal. None for particle independent
            Metropolis-Hastings: the arguments are the target's.
        num_particles: N of each system. Moves are most efficient where the standard
            deviation of log Z is between 1 and 2 [4].
        step_size: standard deviation of the walk in each real coordinate, to begin
            with, times 2.38 / sqrt(dimensions).
        adapt: whether scale and covariance adapt during warm-up.
        target_accept_prob: that the scale aims at.
        collect: `(particles) -> dict` of arrays with a leading axis, called with the
            particle drawn alone; collected beside the prior's sites. By default the
            sites of a program, and nothing of other targets.
        max_steps: step limit; by default the target's.

    Raises:
        ConfigurationError: what is given is no sampler or target, the sampler has no
            target of its own, or a number is out of range.

    Among the `extra_fields` are "log_evidence", "log_prior", "accept_prob",
    "mean_accept_prob" and "walk.log_scale".
    """

    sample_field = "sample"
    # MCMC takes this attribute's presence as leave to resume without a new init.
    _sample_fn = True

    def __init__(
        self,
        sampler: Any,
        target: Any,
        prior: Callable[..., Any] | None = None,
        *,
        num_particles: int = 64,
        step_size: float = 0.5,
        adapt: bool = True,
        target_accept_prob: float = 0.234,
        collect: Callable[[Any], dict[str, Any]] | None = None,
        max_steps: int | None = None,
    ) -> None:
        _check(sampler)
        check_target(target, "PMMH")
        power = sampler.power if isinstance(sampler, Explorer) else 1.0
        warn_of_another_posterior(target, sampler.path_log_weight, power)
        if num_particles < 1 or not step_size > 0 or not 0 < target_accept_prob < 1:
            raise ConfigurationError(
                "PMMH needs a positive number of particles and step_size and a "
                f"target_accept_prob between 0 and 1; got {num_particles}, {step_size} "
                f"and {target_accept_prob}."
            )
        self.sampler, self.target, self.prior = sampler, target, prior
        self.num_particles, self.step_size = num_particles, step_size
        self.adapt, self.target_accept_prob = adapt, target_accept_prob
        self.collect, self.max_steps = collect, max_steps

    @property
    def model(self) -> Callable[..., Any] | None:
        """The whole numpyro model, prior and all steps; None if the target has none."""
        return None if _model_of(self.target) is None else self._model

    @property
    def unconditioned_model(self) -> Callable[..., Any] | None:
        """`model` with the steps' observed sites drawn instead, for `Predictive`."""
        return None if _model_of(self.target) is None else self._unconditioned_model

    def _model(self, *args: Any, **kwargs: Any) -> Any:
        return self._spread(self.target.model, args, kwargs)

    def _unconditioned_model(self, *args: Any, **kwargs: Any) -> Any:
        return self._spread(self.target.unconditioned_model, args, kwargs)

    def _spread(self, model: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        if self.prior is None:
            return model(*args, **kwargs)
        params = call(self.prior, params=model_arguments(*args, **kwargs))
        return model(params)

    def init(
        self,
        rng_key: Any,
        num_warmup: int,
        init_params: Any,
        model_args: tuple,
        model_kwargs: dict[str, Any],
    ) -> PMMHState:
        """A first system at parameters drawn from the prior.

        Args:
            rng_key: one key, or one per chain.
            num_warmup: moves that adapt the walk.
            init_params: unconstrained values of continuous sites of the prior, by
                name, to start from; drawn where not given.
            model_args: the prior's.
            model_kwargs: the prior's.

        Raises:
            ConfigurationError: `init_params` names what is no continuous site, or the
                target does not take these arguments.
        """
        arguments = self._arguments(model_args, model_kwargs)
        if init_params is not None and not isinstance(init_params, dict):
            raise ConfigurationError(
                "init_params must be a dict of unconstrained values by the names of "
                f"the prior's sites, not {type(init_params).__name__}."
            )
        given = jax.tree.map(jnp.asarray, init_params)
        key = typed_key(rng_key)
        if key.ndim:
            return jax.vmap(
                lambda key, given: self._start(key, num_warmup, given, arguments)
            )(key, given)
        return self._start(key, num_warmup, given, arguments)

    def sample(
        self, state: PMMHState, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> PMMHState:
        """One proposal, and its acceptance or the state as it was."""
        arguments = self._arguments(model_args, model_kwargs)
        if typed_key(state.rng_key).ndim:
            return jax.vmap(lambda chain: self._move(chain, arguments))(state)
        return self._move(state, arguments)

    def get_diagnostics_str(self, state: PMMHState) -> str:
        """Acceptance so far and the present evidence estimate."""
        return (
            f"acc. prob={state.mean_accept_prob:.2f}, "
            f"log evidence {state.log_evidence:.2f}"
        )

    def _arguments(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self.prior is None:
            return params_of(self.target, args, kwargs)
        return model_arguments(*args, **kwargs)

    def _system(
        self, key: Key[Array, ""], z: dict[str, Array], arguments: Any
    ) -> System:
        """Parameters at z, and a new particle system there."""
        key_prior, key_system = jax.random.split(key)
        log_prior, params = jnp.zeros(()), arguments
        values: dict[str, Any] = {}
        if self.prior is not None:
            there = parameters_at(self.prior, key_prior, z, arguments)
            log_prior, values, params = there
        setting = Setting(
            self.sampler,
            self.target,
            self.num_particles,
            self.collect,
            self.max_steps,
        )
        log_evidence, path = evidence_and_path(setting, key_system, params)
        both = sorted(set(values) & set(path))
        if both:
            raise ConfigurationError(
                f"The prior and what is collected of a path both have {both}. Rename "
                "the sites of one of them."
            )
        return System(z, log_prior, log_evidence, {**values, **path})

    def _start(
        self,
        key: Key[Array, ""],
        num_warmup: int,
        given: dict[str, Array] | None,
        arguments: Any,
    ) -> PMMHState:
        key_prior, key_system, key_moves = jax.random.split(key, 3)
        z: dict[str, Array] = {}
        if self.prior is not None:
            z = drawn_parameters(self.prior, key_prior, arguments, given)
        elif given:
            raise ConfigurationError(
                f"init_params names {sorted(given)}, and without a prior PMMH has no "
                "parameters."
            )
        system = self._system(key_system, z, arguments)
        zero, none = jnp.zeros((), jnp.int32), jnp.zeros(())
        return _shown(
            PMMHState(
                key_moves,
                zero,
                jnp.full((), num_warmup, jnp.int32),
                system.z,
                system.log_prior,
                system.log_evidence,
                none,
                none,
                zero,
                begin(ravel_pytree(z)[0], self.step_size),
                system.sample,
            )
        )

    def _move(self, state: PMMHState, arguments: Any) -> PMMHState:
        rng_key, state = state.rng_key, _plain(state)
        # A resumed chain may bring an old-style key, and MCMC wants it back as it was.
        key = jax.random.fold_in(typed_key(rng_key), state.iteration)
        key_walk, key_system, key_accept = jax.random.split(key, 3)
        here = System(state.z, state.log_prior, state.log_evidence, state.sample)
        vector, back = ravel_pytree(state.z)
        z = back(step(key_walk, state.walk, vector))
        there = self._system(key_system, z, arguments)

        accept_prob = acceptance(here, there)
        accept = jax.random.uniform(key_accept) < accept_prob
        kept: System = jax.tree.map(
            lambda new, old: jnp.where(accept, new, old), there, here
        )
        warm = state.iteration < state.num_warmup
        walk = state.walk
        if self.adapt and vector.size:
            moved = adapted(
                walk,
                ravel_pytree(kept.z)[0],
                accept_prob,
                state.iteration,
                self.target_accept_prob,
            )
            walk = jax.tree.map(lambda new, old: jnp.where(warm, new, old), moved, walk)
        iteration = state.iteration + 1
        since = jnp.where(warm, iteration, iteration - state.num_warmup)
        change = (accept_prob - state.mean_accept_prob) / since
        return _shown(
            PMMHState(
                rng_key,
                iteration,
                state.num_warmup,
                kept.z,
                kept.log_prior,
                kept.log_evidence,
                accept_prob,
                state.mean_accept_prob + change,
                state.num_accepted + accept,
                walk,
                kept.sample,
            )
        )


def _shown(state: PMMHState) -> PMMHState:
    return state._replace(
        z=NamedValues(state.z),
        walk=with_names(state.walk),
        sample=with_names(state.sample),
    )


def _plain(state: PMMHState) -> PMMHState:
    return state._replace(
        z=dict(state.z),
        walk=without_names(state.walk),
        sample=without_names(state.sample),
    )


def _model_of(target: Any) -> Callable[..., Any] | None:
    return getattr(target, "model", None)


def _check(sampler: Any) -> None:
    if not isinstance(sampler, Sampler | Explorer):
        raise ConfigurationError(
            "PMMH needs a sampler, for instance smc(potential=product()), and was "
            f"given {sampler!r}."
        )
    weight = sampler.path_log_weight
    if weight is None:
        raise ConfigurationError(
            "PMMH judges parameters by a sampler's unbiased evidence estimate, and "
            "this one targets nothing. Use smc(potential=product())."
        )
    if isinstance(sampler, Explorer) and (sampler.endless or sampler.auxiliary):
        raise ConfigurationError(
            "PMMH runs a sampler to its end and takes its evidence; this explorer "
            "never ends, or its evidence is that of several temperatures together. "
            "Use smc, or ExplorerKernel for an endless chain without parameters."
        )
