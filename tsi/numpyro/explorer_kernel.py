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
from jaxtyping import Array, Key
from numpyro.infer.mcmc import MCMCKernel

from tsi.errors import ConfigurationError
from tsi.explore import Exploration, start, turn
from tsi.explorer import Explorer
from tsi.step_keys import AnyKey, typed_key


class KernelState(NamedTuple):
    """What numpyro carries from sample to sample.

    Attributes:
        rng_key: turn n draws with a function of (rng_key, n), so that a chain that is
            resumed with the key of its last state goes on as if never stopped.
        exploration: the stored prefixes and the explorer's state.
        sample: the numbers that are collected, by name.
    """

    rng_key: AnyKey
    exploration: Exploration
    sample: dict[str, Any]


class ExplorerKernel(MCMCKernel):
    """An explorer on a target as a numpyro kernel; the model's argument is `params`.

    Args:
        explorer: of one chain and without end (`endless=True`): its state must show
            `iteration`, the number of complete moves, and `sample`, a NamedTuple of
            numbers of the chain's present state.
        target: what is explored.
        num_particles: N, as the explorer understands it.
        collect: `(particles) -> dict` of arrays with a leading axis, called with the
            chain's present state alone; collected beside the explorer's own numbers.
            Caches are not for collecting: every sample is kept.
        max_steps: step limit; by default the target's.

    Raises:
        ConfigurationError: the explorer is one that ends.

    The numbers collected are `sample`; whatever else the state holds may be asked for
    by `extra_fields`, for instance "exploration.state.accepted".
    """

    sample_field = "sample"
    # MCMC takes this attribute's presence as leave to resume without a new init.
    _sample_fn = True

    def __init__(
        self,
        explorer: Explorer,
        target: Any,
        *,
        num_particles: int = 1,
        collect: Callable[[Any], dict[str, Any]] | None = None,
        max_steps: int | None = None,
    ) -> None:
        if not explorer.endless:
            raise ConfigurationError(
                "ExplorerKernel needs an explorer that may run for ever in a store of "
                "fixed size. Make it with endless=True."
            )
        self.explorer, self.target = explorer, target
        self.num_particles, self.collect = num_particles, collect
        self.max_steps = max_steps

    def init(
        self,
        rng_key: AnyKey,
        num_warmup: int,
        init_params: Any,
        model_args: tuple,
        model_kwargs: dict[str, Any],
    ) -> KernelState:
        """Empty prefixes; the first sample draws the start as well.

        Raises:
            ConfigurationError: for `init_params`, which a rollout takes the place of,
                for arguments other than `params`, or an explorer of several chains.
        """
        if init_params is not None:
            raise ConfigurationError(
                "ExplorerKernel starts from rollouts of its target, and takes no "
                "init_params. To go on from a state, set mcmc.post_warmup_state."
            )
        params = _params(model_args, model_kwargs)
        rng_key = typed_key(rng_key)
        if rng_key.ndim:
            return jax.vmap(lambda key: self._start(key, params))(rng_key)
        return self._start(rng_key, params)

    def sample(
        self, state: KernelState, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> KernelState:
        """Turns until one more move is complete."""
        params = _params(model_args, model_kwargs)
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
        return KernelState(key_steps, exploration, self._numbers(exploration))

    def _move(self, state: KernelState, params: Any) -> KernelState:
        before = state.exploration.state.iteration

        def waits(exploration: Exploration) -> Array:
            return exploration.state.iteration == before

        def advance(exploration: Exploration) -> Exploration:
            return turn(
                self.explorer,
                self.target,
                state.rng_key,
                exploration,
                params,
                max_steps=self.max_steps,
            )[0]

        exploration = jax.lax.while_loop(waits, advance, state.exploration)
        return KernelState(state.rng_key, exploration, self._numbers(exploration))

    def _numbers(self, exploration: Exploration) -> dict[str, Any]:
        sample = exploration.state.sample._asdict()
        if any(leaf.ndim for leaf in jax.tree.leaves(sample)):
            raise ConfigurationError(
                "ExplorerKernel needs an explorer of one chain, and this one runs "
                "several. Make it with num_chains=1: the chains are MCMC's."
            )
        if self.collect is not None:
            state = exploration.state
            # A sweep has many members, and the state of its chain is one of them; with
            # several temperatures it is the first chain's.
            place = getattr(state, "place", state.members)
            present = jnp.ravel(place)[:1]
            row = self.collect(self.target.gather(exploration.stored, present))
            sample |= jax.tree.map(lambda leaf: leaf[0], row)
        return sample


def _params(model_args: tuple, model_kwargs: dict[str, Any]) -> Any:
    given = (*model_args, *model_kwargs.values())
    if len(given) > 1 or set(model_kwargs) - {"params"}:
        raise ConfigurationError(
            "ExplorerKernel passes one argument on to its target, `params`; "
            f"mcmc.run was given {len(model_args)} and {sorted(model_kwargs)}."
        )
    return given[0] if given else None
