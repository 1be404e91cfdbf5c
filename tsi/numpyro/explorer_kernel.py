"""Explorers that move Markov chains, as kernels of numpyro's MCMC.

    kernel = ExplorerKernel(suffix_metropolis(product(), endless=True), target)
    mcmc = MCMC(kernel, num_warmup=100, num_samples=1000, num_chains=4,
                jit_model_args=True)
    mcmc.run(key, params)
    mcmc.print_summary()

One sample is one complete move or sweep of the explorer, however many turns that takes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt32
from numpyro.infer.mcmc import MCMCKernel

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.explore import Exploration, as_store, start, turn
from tsi.explorer import Explorer
from tsi.numpyro.arguments import params_of
from tsi.numpyro.hosting import (
    check_target,
    collected,
    warn_of_another_posterior,
)
from tsi.numpyro.named_fields import NamedValues, with_names, without_names
from tsi.sampler import Sampler
from tsi.step_keys import typed_key


class KernelState(NamedTuple):
    """What numpyro carries from sample to sample.

    Attributes:
        rng_key: turn n draws with a function of (rng_key, n), so that a chain that is
            resumed with the key of its last state goes on as if never stopped.
        exploration: the stored prefixes and the explorer's state.
        sample: the numbers that are collected, by name.
    """

    rng_key: Key[Array, "*chains"] | UInt32[Array, "*chains 2"]
    exploration: Exploration
    sample: dict[str, Any]

    def __getitem__(self, index: Any) -> Any:
        # MCMC looks for extra fields here last.
        if isinstance(index, str):
            below = getattr(self.exploration.state, "_fields", ())
            known = [f"exploration.state.{name}" for name in below]
            raise UnknownNameError(
                "extra field", index, ["exploration.turn", "sample", *known]
            )
        return tuple.__getitem__(self, index)


class ExplorerKernel(MCMCKernel):
    """An explorer on a target as a numpyro kernel.

    `mcmc.run(key, *args, **kwargs)` hands its arguments to the target: a program's as
    they are, any other's as its one argument `params`.

    Args:
        explorer: of one chain and without end (`endless=True`): its state must show
            `iteration`, the number of complete moves, and `sample`, a NamedTuple of
            numbers of the chain's present state.
        target: what is explored.
        num_particles: N, as the explorer understands it; by default what it is made
            for (`Explorer.default_particles`).
        collect: `(particles) -> dict` of arrays with a leading axis, called with the
            chain's present state alone; collected beside the explorer's own numbers.
            By default the sites of a program, and nothing of other targets. Caches are
            not for collecting: every sample is kept.
        max_steps: step limit; by default the target's.

    Raises:
        ConfigurationError: the explorer is one that ends, or none; or the target is
            none.

    The numbers collected are `sample`; whatever else the state holds may be asked for
    by `extra_fields`, for instance "exploration.state.accepted". The kernel pickles if
    the explorer's constructor is `picklable`, and target and `collect` pickle.
    """

    sample_field = "sample"
    # MCMC takes this attribute's presence as leave to resume without a new init.
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
        _check(explorer)
        check_target(target, "ExplorerKernel")
        warn_of_another_posterior(target, explorer.path_log_weight, explorer.power)
        self.explorer, self.target = explorer, target
        if num_particles is None:
            num_particles = explorer.default_particles
        self.num_particles, self.collect = num_particles, collect
        self.max_steps = max_steps

    @property
    def model(self) -> Callable[..., Any] | None:
        """The whole model of a program, for `Predictive` and ArviZ; else None."""
        return getattr(self.target, "model", None)

    def init(
        self,
        rng_key: Any,
        num_warmup: int,
        init_params: Any,
        model_args: tuple,
        model_kwargs: dict[str, Any],
    ) -> KernelState:
        """Empty prefixes; the first sample draws the start as well.

        Raises:
            ConfigurationError: for `init_params`, which a rollout takes the place of,
                for arguments that the target does not take, or an explorer of several
                chains.
        """
        if init_params is not None:
            raise ConfigurationError(
                "ExplorerKernel starts from rollouts of its target, and takes no "
                "init_params. To go on from a state, set mcmc.post_warmup_state."
            )
        params = params_of(self.target, model_args, model_kwargs)
        key = typed_key(rng_key)
        if key.ndim:
            return jax.vmap(lambda key: self._start(key, params))(key)
        return self._start(key, params)

    def sample(
        self, state: KernelState, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> KernelState:
        """Turns until one more move is complete."""
        params = params_of(self.target, model_args, model_kwargs)
        if typed_key(state.rng_key).ndim:
            return jax.vmap(lambda chain: self._move(chain, params))(state)
        return self._move(state, params)

    def get_diagnostics_str(self, state: KernelState) -> str:
        """Turns so far and the present log density."""
        turns = state.exploration.turn
        log_density = state.sample.get("log_density")
        shown = "" if log_density is None else f", log density {log_density:.2f}"
        return f"{turns} turns{shown}"

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
        return self._shown(key_steps, exploration, params)

    def _move(self, state: KernelState, params: Any) -> KernelState:
        # A resumed chain may bring an old-style key, and MCMC wants it back as it was.
        key, exploration = typed_key(state.rng_key), without_names(state.exploration)
        before = exploration.state.iteration

        def waits(exploration: Exploration) -> Array:
            return exploration.state.iteration == before

        def advance(exploration: Exploration) -> Exploration:
            return turn(
                self.explorer,
                self.target,
                key,
                exploration,
                params,
                max_steps=self.max_steps,
            )[0]

        exploration = jax.lax.while_loop(waits, advance, exploration)
        return self._shown(state.rng_key, exploration, params)

    def _shown(self, key: Any, exploration: Exploration, params: Any) -> KernelState:
        sample = self._numbers(exploration, params)
        return KernelState(key, with_names(exploration), sample)

    def _numbers(self, exploration: Exploration, params: Any) -> NamedValues:
        numbers = exploration.state.sample._asdict()
        if any(leaf.ndim for leaf in jax.tree.leaves(numbers)):
            raise ConfigurationError(
                "ExplorerKernel needs an explorer of one chain, and this one runs "
                "several. Make it with num_chains=1: the chains are MCMC's."
            )
        state = exploration.state
        # A sweep has many members, and the state of its chain is one of them; with
        # several temperatures it is the first chain's.
        present = jnp.ravel(getattr(state, "place", state.members))[:1]
        row = as_store(self.target).gather(exploration.stored, present)
        values = collected(self.target, self.collect, row, params)
        both = sorted(set(numbers) & set(values))
        if both:
            raise ConfigurationError(
                f"The explorer and what is collected both have {both}. Rename the "
                "sites, or give ExplorerKernel a function `collect` that does."
            )
        return NamedValues({**numbers, **values})


def _check(explorer: Any) -> None:
    if isinstance(explorer, Sampler):
        raise ConfigurationError(
            "ExplorerKernel moves one Markov chain, and a sampler such as smc gives "
            "independent systems of particles. PMMH(sampler, target) makes a chain of "
            "whole systems (particle independent Metropolis-Hastings); "
            "particle_gibbs(endless=True) and pimh(endless=True) are explorers that "
            "move by SMC."
        )
    if not isinstance(explorer, Explorer):
        raise ConfigurationError(
            f"ExplorerKernel needs an explorer, for instance particle_gibbs("
            f"endless=True), and was given {explorer!r}."
        )
    if not explorer.endless:
        raise ConfigurationError(
            "ExplorerKernel needs an explorer that may run for ever in a store of "
            "fixed size: a Markov chain made with endless=True (suffix_metropolis, "
            "particle_gibbs, pimh, parallel_tempering). A search has no posterior to "
            "sample from."
        )
