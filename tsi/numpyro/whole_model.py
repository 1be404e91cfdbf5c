"""The numpyro model that a target's programs make up, with every step in it.

    sites of init_fn, then numpyro's scan of step_fn over t = 0 ... T - 1

A site of a step is one site of the model with T in front of its shape, as in the
histories of particles, so that what MCMC collects can be handed to `Predictive`. Steps
after a particle's end are drawn but masked: they count nowhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.primitives import Messenger

from tsi.errors import ConfigurationError
from tsi.numpyro.arguments import call
from tsi.numpyro.particles import ProgramParticles, as_arrays

INITIAL = "initial/"
"""Put before the name of a site of `init_fn` that `step_fn` has too."""


class _Renamed(Messenger):
    """Sites whose names are taken get the prefix."""

    def __init__(self, taken: frozenset[str]) -> None:
        self.taken = taken
        super().__init__(None)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg.get("name") in self.taken:
            msg["name"] = INITIAL + msg["name"]


def model_sites(
    particles: ProgramParticles, step_names: frozenset[str]
) -> dict[str, Any]:
    """Latent and deterministic values of each particle by their names in the model.

    Args:
        particles: N of them.
        step_names: names of all sites of a step.

    Returns:
        Values of sites of `init_fn`, [N, ...], and of steps, [N, T, ...], zero behind
        a particle's end.
    """
    history = particles.history
    num_steps = history.log_potential.shape[1]
    taken = jnp.arange(num_steps) < particles.length[:, None]

    def lived(leaf: Array) -> Array:
        mask = taken.reshape(*taken.shape, *[1] * (leaf.ndim - 2))
        return jnp.where(mask, leaf, jnp.zeros_like(leaf))

    steps = jax.tree.map(lived, {**history.latents, **history.deterministics})
    initial = {**particles.initial, **particles.initial_deterministics}
    begun = {INITIAL + n if n in step_names else n: v for n, v in initial.items()}
    return {**begun, **steps}


def run_model(target: Any, params: Any, *, unconditioned: bool) -> Any:
    """Run the whole model as a numpyro program.

    Args:
        target: a `ProgramTarget`.
        params: what stands for the programs' arguments.
        unconditioned: draw observed sites instead of observing them.

    Returns:
        The last carry.

    Raises:
        ConfigurationError: values are given to a numpyro scan within a step.
    """
    init_fn, step_fn = target.init_fn, target.step_fn
    if unconditioned:
        init_fn, step_fn = handlers.uncondition(init_fn), handlers.uncondition(step_fn)
    with _Renamed(target.step_names(params)):
        carry = as_arrays(call(init_fn, params=params))

    def body(state: tuple[Any, Array], t: Array) -> tuple[tuple[Any, Array], None]:
        carry, over = state
        if target.end is None:
            return (as_arrays(call(step_fn, t, carry, params=params)), over), None
        with handlers.mask(mask=~over):
            after = as_arrays(call(step_fn, t, carry, params=params))
        after = jax.tree.map(lambda new, old: jnp.where(over, old, new), after, carry)
        return (after, over | call(target.end, t, after, params=params)), None

    start = (carry, jnp.zeros((), bool))
    try:
        (carry, _), _ = scan(body, start, jnp.arange(target.max_steps))
    except RuntimeError as error:
        if "nested scan" not in str(error):
            raise
        raise ConfigurationError(
            "step_fn has a numpyro scan of its own, and numpyro cannot give values to "
            "the sites of a scan within a scan: the whole model can be drawn from, but "
            "not scored. Write the inner scan as a vector site, or make each of its "
            "iterations a step."
        ) from error
    return carry
