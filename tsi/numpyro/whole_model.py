"""The numpyro model of a program target, with all steps.

    sites of init_fn, then numpyro's scan of step_fn over t = 0 ... T - 1

A site of a step is one site of the model with a leading axis T, as in the histories of
particles, so `Predictive` accepts the samples that MCMC has collected. Steps after the
end of a particle are drawn but masked.
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
"""Prefix of a site of `init_fn` that shares its name with a site of `step_fn`."""


class _AddPrefix(Messenger):
    """Adds the prefix to sites of `init_fn` that share a name with a site of a step."""

    def __init__(self, step_names: frozenset[str]) -> None:
        self.step_names = step_names
        super().__init__(None)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg.get("name") in self.step_names:
            msg["name"] = INITIAL + msg["name"]


def model_sites(
    particles: ProgramParticles, step_names: frozenset[str]
) -> dict[str, Any]:
    """Latent and deterministic values of each particle by their names in the model.

    Args:
        particles: N particles.
        step_names: names of all sites of a step.

    Returns:
        Values of sites of `init_fn`, [N, ...], and of steps, [N, T, ...], zero after
        the end of a particle.
    """
    history = particles.history
    num_steps = history.log_potential.shape[1]
    step_mask = jnp.arange(num_steps) < particles.length[:, None]

    def mask_leaf(leaf: Array) -> Array:
        mask = step_mask.reshape(*step_mask.shape, *[1] * (leaf.ndim - 2))
        return jnp.where(mask, leaf, jnp.zeros_like(leaf))

    steps = jax.tree.map(mask_leaf, {**history.latents, **history.deterministics})
    initial = {**particles.initial, **particles.initial_deterministics}
    init_values = {INITIAL + n if n in step_names else n: v for n, v in initial.items()}
    return {**init_values, **steps}


def run_model(target: Any, params: Any, *, unconditioned: bool) -> Any:
    """Run the whole model as a numpyro program.

    Args:
        target: a `ProgramTarget`.
        params: the packed arguments of the programs.
        unconditioned: draw observed sites instead of observing them.

    Returns:
        The last carry.

    Raises:
        ConfigurationError: if a step has a numpyro scan and values are given.
    """
    init_fn, step_fn = target.init_fn, target.step_fn
    if unconditioned:
        init_fn, step_fn = handlers.uncondition(init_fn), handlers.uncondition(step_fn)
    with _AddPrefix(target.step_names(params)):
        carry = as_arrays(call(init_fn, params=params))

    def run_step(state: tuple[Any, Array], t: Array) -> tuple[tuple[Any, Array], None]:
        carry, finished = state
        if target.end is None:
            return (as_arrays(call(step_fn, t, carry, params=params)), finished), None
        with handlers.mask(mask=~finished):
            after = as_arrays(call(step_fn, t, carry, params=params))
        after = jax.tree.map(
            lambda new, old: jnp.where(finished, old, new), after, carry
        )
        return (after, finished | call(target.end, t, after, params=params)), None

    start = (carry, jnp.zeros((), bool))
    try:
        (carry, _), _ = scan(run_step, start, jnp.arange(target.max_steps))
    except RuntimeError as error:
        if "nested scan" not in str(error):
            raise
        raise ConfigurationError(
            "step_fn has a numpyro scan, and numpyro cannot set the values of sites in "
            "a scan within a scan: the whole model can be sampled, but not scored. "
            "Write the inner scan as a vector site, or make each of its iterations "
            "a step."
        ) from error
    return carry
