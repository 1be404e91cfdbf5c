"""Explorers of Markov chains as kernels of numpyro's MCMC.

    kernel = ExplorerKernel(suffix_metropolis(product(), endless=True), target)
    mcmc = MCMC(kernel, num_warmup=100, num_samples=1000, num_chains=4,
                jit_model_args=True)
    mcmc.run(key, params)
    mcmc.print_summary()

One sample is one complete move or sweep of the explorer, which may take many turns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from numpyro.infer.mcmc import MCMCKernel

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.explore import Exploration, as_store, start, turn
from tsi.explorer import Explorer
from tsi.numpyro.arguments import params_of
from tsi.numpyro.extra_fields import check_extra_fields
from tsi.numpyro.hosting import (
    check_target,
    collect_values,
    warn_of_another_posterior,
)
from tsi.numpyro.named_fields import NamedValues, with_names, without_names
from tsi.sampler import Sampler
from tsi.step_keys import AnyKey, typed_key


class KernelState(NamedTuple):
    """The state of the kernel.

    Attributes:
        rng_key: turn n uses a function of (rng_key, n), so a chain that is resumed with
            the key of its last state continues as if it had not been stopped.
        exploration: the stored prefixes and the state of the explorer.
        sample: the collected values, by name.
    """

    rng_key: AnyKey
    exploration: Exploration
    sample: dict[str, Any]

    def __getitem__(self, index: Any) -> Any:
        # MCMC looks up extra fields by attribute first, and then here.
        if isinstance(index, str):
            fields = getattr(self.exploration.state, "_fields", ())
            field_names = [f"exploration.state.{name}" for name in fields]
            raise UnknownNameError(
                "extra field", index, ["exploration.turn", "sample", *field_names]
            )
        return tuple.__getitem__(self, index)


class ExplorerKernel(MCMCKernel):
    """An explorer on a target as a numpyro kernel.

    `mcmc.run(key, *args, **kwargs)` passes its arguments to the target: unchanged to
    the programs of a program target, and as the argument `params` to any other target.

    Args:
        explorer: an endless explorer of one chain (`endless=True`). Its state must have
            the fields `iteration`, the number of complete moves, and `sample`, a
            NamedTuple that summarises the current state of the chain.
        target: the target.
        num_particles: N of the explorer; by default `Explorer.default_particles`.
        collect: `(particles) -> dict` of arrays with a leading axis, called with the
            current state of the chain; its values are collected together with those of
            the explorer. By default the sites of a program, and nothing for other
            targets. Every sample is kept, so do not collect caches.
        max_steps: step limit; by default that of the target.

    Raises:
        ConfigurationError: if the explorer is not an endless `Explorer`, or the target
            is not a `Target`.

    MCMC collects `sample`. Other fields of the state are collected with `extra_fields`,
    for instance "exploration.state.accepted"; fields with random keys cannot be
    collected. The kernel can be pickled if the
    constructor of the explorer is `picklable`, and target and `collect` can be pickled.
    """

    sample_field = "sample"
    # If this attribute is set, MCMC resumes a run without calling init again.
    _sample_fn = True

    def __init__(
        self,
        explorer: Any,
        target: Any,
        *,
        num_particles: int | None = None,
        collect: Callable[[Any], dict[str, Any]] | None = None,
        max_steps: int | None = None,
    ) -> None:
        _check_explorer(explorer)
        check_target(target, "ExplorerKernel")
        warn_of_another_posterior(target, explorer.path_log_weight, explorer.power)
        self.explorer, self.target = explorer, target
        if num_particles is None:
            num_particles = explorer.default_particles
        self.num_particles, self.collect = num_particles, collect
        self.max_steps = max_steps

    @property
    def model(self) -> Callable[..., Any] | None:
        """The model of a program target, for `Predictive` and ArviZ; else None."""
        return getattr(self.target, "model", None)

    def init(
        self,
        rng_key: AnyKey,
        num_warmup: int,
        init_params: Any,
        model_args: tuple,
        model_kwargs: dict[str, Any],
    ) -> KernelState:
        """Start with empty prefixes; the first sample also draws the initial state.

        Raises:
            ConfigurationError: for `init_params`, since chains start from rollouts; for
                arguments that the target does not take; for an explorer of several
                chains; or for extra fields with random keys.
            UnknownNameError: MCMC is to collect a field that the state does not have.
        """
        if init_params is not None:
            raise ConfigurationError(
                "ExplorerKernel starts from rollouts of its target and takes no "
                "init_params. To continue from a state, set mcmc.post_warmup_state."
            )
        params = params_of(self.target, model_args, model_kwargs)
        key = typed_key(rng_key)
        if key.ndim:
            state = jax.vmap(lambda key: self._start(key, params))(key)
        else:
            state = self._start(key, params)
        check_extra_fields(state, self.sample_field)
        return state

    def sample(
        self, state: KernelState, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> KernelState:
        """Run turns until the next move is complete."""
        params = params_of(self.target, model_args, model_kwargs)
        if typed_key(state.rng_key).ndim:
            return jax.vmap(lambda chain: self._move(chain, params))(state)
        return self._move(state, params)

    def get_diagnostics_str(self, state: KernelState) -> str:
        """Number of turns so far and the current log density."""
        turns = state.exploration.turn
        log_density = state.sample.get("log_density")
        density = "" if log_density is None else f", log density {log_density:.2f}"
        return f"{turns} turns{density}"

    def _start(self, key: Key[Array, ""], params: Any) -> KernelState:
        key_init, key_steps = jax.random.split(key)
        exploration = start(
            self.explorer,
            self.target,
            key_init,
            self.num_particles,
            params,
            max_steps=self.max_steps,
        )
        return self._make_state(key_steps, exploration, params)

    def _move(self, state: KernelState, params: Any) -> KernelState:
        # A resumed chain may have an old-style key, and MCMC needs the same key back.
        key, exploration = typed_key(state.rng_key), without_names(state.exploration)
        iteration = exploration.state.iteration

        def is_incomplete(exploration: Exploration) -> Array:
            return exploration.state.iteration == iteration

        def advance(exploration: Exploration) -> Exploration:
            return turn(
                self.explorer,
                self.target,
                key,
                exploration,
                params,
                max_steps=self.max_steps,
            )[0]

        exploration = jax.lax.while_loop(is_incomplete, advance, exploration)
        return self._make_state(state.rng_key, exploration, params)

    def _make_state(
        self, key: Any, exploration: Exploration, params: Any
    ) -> KernelState:
        sample = self._collect_sample(exploration, params)
        return KernelState(key, with_names(exploration), sample)

    def _collect_sample(self, exploration: Exploration, params: Any) -> NamedValues:
        summary = exploration.state.sample._asdict()
        if any(leaf.ndim for leaf in jax.tree.leaves(summary)):
            raise ConfigurationError(
                "ExplorerKernel needs an explorer of one chain, but this one has "
                "several. Use num_chains=1 for the explorer, and num_chains of MCMC."
            )
        state = exploration.state
        # A sweep has many members; the state of the chain is one of them. With several
        # temperatures it is the state of the first chain.
        current = jnp.ravel(getattr(state, "place", state.members))[:1]
        row = as_store(self.target).gather(exploration.stored, current)
        values = collect_values(self.target, self.collect, row, params)
        common_names = sorted(set(summary) & set(values))
        if common_names:
            raise ConfigurationError(
                f"The explorer and the collected values both have {common_names}. "
                "Rename the sites, or rename the values in a function `collect`."
            )
        return NamedValues({**summary, **values})


def _check_explorer(explorer: Any) -> None:
    if isinstance(explorer, Sampler):
        raise ConfigurationError(
            "ExplorerKernel moves one Markov chain, but a sampler such as smc gives "
            "independent particle systems. Use PMMH(sampler, target) for a chain of "
            "systems (particle independent Metropolis-Hastings), or the explorers "
            "particle_gibbs(endless=True) and pimh(endless=True)."
        )
    if not isinstance(explorer, Explorer):
        raise ConfigurationError(
            f"ExplorerKernel needs an explorer, for instance particle_gibbs("
            f"endless=True); got {explorer!r}."
        )
    if not explorer.endless:
        raise ConfigurationError(
            "ExplorerKernel needs an endless Markov chain, which runs in a store of "
            "fixed size: use suffix_metropolis, particle_gibbs, pimh or "
            "parallel_tempering with endless=True. A search has no posterior."
        )
