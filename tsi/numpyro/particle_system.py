"""A particle system as the state of a Metropolis-Hastings chain.

Its evidence estimate stands in for the likelihood that cannot be computed, and one of
its particles, drawn in proportion to the weights, for the path.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from tsi.errors import ConfigurationError
from tsi.explore import as_store
from tsi.numpyro.arguments import ModelArguments
from tsi.numpyro.hosting import collected
from tsi.run import run
from tsi.weights import normalise


class System(NamedTuple):
    """A particle system at one z.

    Attributes:
        z: the parameters as real values, by name.
        log_prior: log density of z under the prior.
        log_evidence: log Z, of the system's own estimate.
        sample: the numbers that are collected, by name.
    """

    z: dict[str, Any]
    log_prior: Float[Array, ""]
    log_evidence: Float[Array, ""]
    sample: dict[str, Any]

    @property
    def log_density(self) -> Float[Array, ""]:
        """What proposals are judged by; -inf where it is no number."""
        total = self.log_prior + self.log_evidence
        is_invalid = jnp.isnan(total) | (total == jnp.inf)
        return jnp.where(is_invalid, -jnp.inf, total)


class Setting(NamedTuple):
    """How a system is run; see `tsi.numpyro.pmmh.PMMH` for what each is."""

    sampler: Any
    target: Any
    num_particles: int
    collect: Callable[[Any], dict[str, Any]] | None
    max_steps: int | None


def evidence_and_path(
    setting: Setting, key: Key[Array, ""], params: Any
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """log Z of a new system, and what is collected of one of its particles.

    Args:
        setting: what is run.
        key: of the run and the draw.
        params: the target's parameters.

    Raises:
        ConfigurationError: several arguments for a target that takes `params` alone.
    """
    target = setting.target
    several = isinstance(params, ModelArguments)
    if several and not getattr(target, "takes_arguments", False):
        raise ConfigurationError(
            f"The prior returned ModelArguments, but {type(target).__name__} takes one "
            "argument, `params`. Return that."
        )
    key_run, key_draw = jax.random.split(key)
    result = run(
        setting.sampler,
        target,
        key_run,
        setting.num_particles,
        params,
        max_steps=setting.max_steps,
    )
    drawn = jax.random.categorical(key_draw, normalise(result.state.log_weights))
    row = as_store(target).gather(result.particles, drawn[None])
    path = collected(target, setting.collect, row, params)
    return result.state.log_evidence, path


def acceptance(here: System, there: System) -> Float[Array, ""]:
    """The probability to go from one system to the other by a symmetric proposal."""
    # From a system without evidence every move is accepted, as -inf - -inf is NaN.
    dead = here.log_density == -jnp.inf
    log_ratio = jnp.where(dead, 0.0, there.log_density - here.log_density)
    return jnp.exp(jnp.minimum(log_ratio, 0.0))
