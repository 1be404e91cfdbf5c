r"""Particle marginal Metropolis-Hastings: inference of the parameters of a target.

The paths x of the target depend on parameters theta, whose prior is a numpyro program.
A particle system run at theta gives an unbiased estimate Z of p(y | theta), and

    theta' ~ q(. | theta),  Z' from a new system at theta',
    accept with probability  min(1, p(theta') Z' q(theta | theta')
                                    / (p(theta) Z q(theta' | theta))),

leaves p(theta, x | y) invariant, where x is one particle of the accepted system, drawn
in proportion to its weights. Z is part of the state and is kept until a proposal is
accepted; a chain that estimates Z again at each move has another target.

theta moves by a random walk on unconstrained values z, so the prior density of z
includes |d theta / dz|. Scale and covariance of the walk adapt only during warm-up.
Without a prior there are no parameters to move, and the method is particle independent
Metropolis-Hastings, a chain of particle systems.

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
from tsi.log_uniform import log_uniform
from tsi.numpyro.arguments import call, model_arguments, params_of
from tsi.numpyro.extra_fields import check_extra_fields
from tsi.numpyro.hosting import check_target, warn_of_another_posterior
from tsi.numpyro.named_fields import NamedValues, with_names, without_names
from tsi.numpyro.parameters import draw_parameters, evaluate_prior
from tsi.numpyro.particle_system import (
    Setting,
    System,
    log_acceptance,
    run_system,
)
from tsi.numpyro.random_walk import RandomWalk, adapt_walk, start_walk, step
from tsi.sampler import Sampler
from tsi.step_keys import typed_key


class PMMHState(NamedTuple):
    """The state of the kernel.

    Attributes:
        rng_key: move i uses fold_in(rng_key, i).
        iteration: number of moves so far, including warm-up.
        num_warmup: number of moves that adapt the walk.
        z: the parameters as real values, by name.
        log_prior: log density of z under the prior.
        log_evidence: log Z of the accepted system; it is not estimated again.
        accept_prob: acceptance probability of the latest proposal.
        mean_accept_prob: mean since the end of warm-up; during warm-up, mean so far.
        num_accepted: number of accepted proposals so far.
        walk: the proposal.
        sample: the collected values, by name.
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
        # MCMC looks up extra fields by attribute first, and then here.
        if isinstance(index, str):
            known_names = [name for name in self._fields if name != "rng_key"]
            raise UnknownNameError("extra field", index, known_names)
        return tuple.__getitem__(self, index)


class PMMH(MCMCKernel):
    """Particle marginal Metropolis-Hastings as a numpyro kernel.

    Args:
        sampler: runs the particle systems: a `Sampler`, or an `Explorer` that is not
            endless and has no auxiliary targets. It must have a target. To sample the
            posterior of a program use `smc(potential=product())`.
        target: the target at given parameters.
        prior: a numpyro program of the arguments of `mcmc.run` that returns the
            `params` of the target. Its continuous sites move by the random walk; its
            discrete sites are drawn from the prior at each proposal. None for particle
            independent Metropolis-Hastings; the target then gets the arguments.
        num_particles: N of each system. Moves are most efficient if the standard
            deviation of log Z is between 1 and 2 [4].
        step_size: initial standard deviation of the walk in each real coordinate,
            before the factor 2.38 / sqrt(dimensions).
        adapt: whether scale and covariance adapt during warm-up.
        target_accept_prob: acceptance probability to which the scale adapts.
        collect: `(particles) -> dict` of arrays with a leading axis, called with the
            drawn particle; its values are collected together with the sites of the
            prior. By default the sites of a program, and nothing for other targets.
        max_steps: step limit; by default that of the target.

    Raises:
        ConfigurationError: if the sampler or the target is of another type, the sampler
            has no target, or a number is out of range.

    The `extra_fields` include "log_evidence", "log_prior", "accept_prob",
    "mean_accept_prob" and "walk.log_scale".
    """

    sample_field = "sample"
    # If this attribute is set, MCMC resumes a run without calling init again.
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
        _check_sampler(sampler)
        check_target(target, "PMMH")
        power = sampler.power if isinstance(sampler, Explorer) else 1.0
        warn_of_another_posterior(target, sampler.path_log_weight, power)
        if num_particles < 1 or not step_size > 0 or not 0 < target_accept_prob < 1:
            raise ConfigurationError(
                "PMMH needs positive num_particles and step_size, and a "
                f"target_accept_prob between 0 and 1; got {num_particles}, {step_size} "
                f"and {target_accept_prob}."
            )
        self.sampler, self.target, self.prior = sampler, target, prior
        self.num_particles, self.step_size = num_particles, step_size
        self.adapt, self.target_accept_prob = adapt, target_accept_prob
        self.collect, self.max_steps = collect, max_steps

    @property
    def model(self) -> Callable[..., Any] | None:
        """The whole numpyro model, prior and all steps; None without a target model."""
        return None if _get_model(self.target) is None else self._model

    @property
    def unconditioned_model(self) -> Callable[..., Any] | None:
        """`model` with the observed sites of the steps drawn, for `Predictive`."""
        return None if _get_model(self.target) is None else self._unconditioned_model

    def _model(self, *args: Any, **kwargs: Any) -> Any:
        return self._run_model(self.target.model, args, kwargs)

    def _unconditioned_model(self, *args: Any, **kwargs: Any) -> Any:
        return self._run_model(self.target.unconditioned_model, args, kwargs)

    def _run_model(self, model: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
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
        """Run a first system at parameters drawn from the prior.

        Args:
            rng_key: one key, or one per chain.
            num_warmup: number of moves that adapt the walk.
            init_params: initial unconstrained values of continuous sites of the prior,
                by name; other sites are drawn.
            model_args: positional arguments of the prior.
            model_kwargs: keyword arguments of the prior.

        Raises:
            ConfigurationError: if `init_params` has a name that is not a continuous
                site, the target does not take these arguments, or an extra field holds
                random keys.
            UnknownNameError: MCMC is to collect a field that the state does not have.
        """
        arguments = self._arguments(model_args, model_kwargs)
        if init_params is not None and not isinstance(init_params, dict):
            raise ConfigurationError(
                "init_params must be a dict of unconstrained values by the names of "
                f"the prior's sites, not {type(init_params).__name__}."
            )
        given = jax.tree.map(jnp.asarray, init_params)
        key = typed_key(rng_key)

        def start(key: Key[Array, ""], given: dict[str, Array] | None) -> PMMHState:
            return self._start(key, num_warmup, given, arguments)

        state = jax.vmap(start)(key, given) if key.ndim else start(key, given)
        check_extra_fields(state, self.sample_field)
        return state

    def sample(
        self, state: PMMHState, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> PMMHState:
        """Propose parameters with a new system, and accept or reject them."""
        arguments = self._arguments(model_args, model_kwargs)
        if typed_key(state.rng_key).ndim:
            return jax.vmap(lambda chain: self._move(chain, arguments))(state)
        return self._move(state, arguments)

    def get_diagnostics_str(self, state: PMMHState) -> str:
        """Mean acceptance probability and the current evidence estimate."""
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
        """Run a new particle system at the parameters z."""
        key_prior, key_system = jax.random.split(key)
        log_prior, params = jnp.zeros(()), arguments
        values: dict[str, Any] = {}
        if self.prior is not None:
            log_prior, values, params = evaluate_prior(
                self.prior, key_prior, z, arguments
            )
        setting = Setting(
            self.sampler,
            self.target,
            self.num_particles,
            self.collect,
            self.max_steps,
        )
        log_evidence, path = run_system(setting, key_system, params)
        common_names = sorted(set(values) & set(path))
        if common_names:
            raise ConfigurationError(
                "The prior and the collected values of a path both have "
                f"{common_names}. Rename the sites of one of them."
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
            z = draw_parameters(self.prior, key_prior, arguments, given)
        elif given:
            raise ConfigurationError(
                f"init_params has {sorted(given)}, but without a prior PMMH has no "
                "parameters."
            )
        system = self._system(key_system, z, arguments)
        zero, no_rate = jnp.zeros((), jnp.int32), jnp.zeros(())
        return _with_names(
            PMMHState(
                key_moves,
                zero,
                jnp.full((), num_warmup, jnp.int32),
                system.z,
                system.log_prior,
                system.log_evidence,
                no_rate,
                no_rate,
                zero,
                start_walk(ravel_pytree(z)[0], self.step_size),
                system.sample,
            )
        )

    def _move(self, state: PMMHState, arguments: Any) -> PMMHState:
        rng_key, state = state.rng_key, _without_names(state)
        # A resumed chain may have an old-style key, and MCMC needs the same key back.
        key = jax.random.fold_in(typed_key(rng_key), state.iteration)
        key_walk, key_system, key_accept = jax.random.split(key, 3)
        current = System(state.z, state.log_prior, state.log_evidence, state.sample)
        vector, unravel = ravel_pytree(state.z)
        z = unravel(step(key_walk, state.walk, vector))
        proposal = self._system(key_system, z, arguments)

        log_accept = log_acceptance(current, proposal)
        accept_prob = jnp.exp(log_accept)
        accept = log_uniform(key_accept) < log_accept
        system: System = jax.tree.map(
            lambda new, old: jnp.where(accept, new, old), proposal, current
        )
        is_warmup = state.iteration < state.num_warmup
        walk = state.walk
        if self.adapt and vector.size:
            adapted = adapt_walk(
                walk,
                ravel_pytree(system.z)[0],
                accept_prob,
                state.iteration,
                self.target_accept_prob,
            )
            walk = jax.tree.map(
                lambda new, old: jnp.where(is_warmup, new, old), adapted, walk
            )
        iteration = state.iteration + 1
        count = jnp.where(is_warmup, iteration, iteration - state.num_warmup)
        change = (accept_prob - state.mean_accept_prob) / count
        return _with_names(
            PMMHState(
                rng_key,
                iteration,
                state.num_warmup,
                system.z,
                system.log_prior,
                system.log_evidence,
                accept_prob,
                state.mean_accept_prob + change,
                state.num_accepted + accept,
                walk,
                system.sample,
            )
        )


def _with_names(state: PMMHState) -> PMMHState:
    return state._replace(
        z=NamedValues(state.z),
        walk=with_names(state.walk),
        sample=with_names(state.sample),
    )


def _without_names(state: PMMHState) -> PMMHState:
    return state._replace(
        z=dict(state.z),
        walk=without_names(state.walk),
        sample=without_names(state.sample),
    )


def _get_model(target: Any) -> Callable[..., Any] | None:
    return getattr(target, "model", None)


def _check_sampler(sampler: Any) -> None:
    if not isinstance(sampler, Sampler | Explorer):
        raise ConfigurationError(
            "PMMH needs a sampler, for instance smc(potential=product()); got "
            f"{sampler!r}."
        )
    weight = sampler.path_log_weight
    if weight is None:
        raise ConfigurationError(
            "PMMH needs a sampler with an unbiased evidence estimate, but this one has "
            "no target. Use smc(potential=product())."
        )
    if isinstance(sampler, Explorer) and (sampler.endless or sampler.auxiliary):
        raise ConfigurationError(
            "PMMH runs a sampler to its end and uses its evidence, but this explorer "
            "is endless, or its evidence is the product over several temperatures. Use "
            "smc, or ExplorerKernel for an endless chain without parameters."
        )
