"""A particle system as the state of a Metropolis-Hastings chain.

The system's evidence estimate replaces the likelihood, which cannot be computed
exactly. The path is one of its particles, drawn in proportion to the weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from tsi.errors import ConfigurationError
from tsi.explore import as_store
from tsi.numpyro.arguments import ModelArguments
from tsi.numpyro.hosting import collect_values
from tsi.run import run
from tsi.weights import normalise


class System(NamedTuple):
    """A particle system at one z.

    Attributes:
        z: the parameters as real values, by name.
        log_prior: log density of z under the prior.
        log_evidence: log Z, the estimate of this system.
        sample: the collected values, by name.
    """

    z: dict[str, Any]
    log_prior: Float[Array, ""]
    log_evidence: Float[Array, ""]
    sample: dict[str, Any]

    @property
    def log_density(self) -> Float[Array, ""]:
        """Log density in the acceptance ratio; NaN and +inf as -inf."""
        total = self.log_prior + self.log_evidence
        is_invalid = jnp.isnan(total) | (total == jnp.inf)
        return jnp.where(is_invalid, -jnp.inf, total)


class Setting(NamedTuple):
    """How a system is run; see `tsi.numpyro.pmmh.PMMH` for the fields."""

    sampler: Any
    target: Any
    num_particles: int
    collect: Callable[[Any], dict[str, Any]] | None
    max_steps: int | None


def run_system(
    setting: Setting, key: Key[Array, ""], params: Any
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Run a new system; its log Z, and the collected values of one of its particles.

    Args:
        setting: how the system is run.
        key: a typed key.
        params: parameters of the target.

    Raises:
        ConfigurationError: for several arguments, if the target takes only `params`.
    """
    target = setting.target
    has_several_arguments = isinstance(params, ModelArguments)
    if has_several_arguments and not getattr(target, "takes_arguments", False):
        raise ConfigurationError(
            f"The prior returned ModelArguments, but {type(target).__name__} takes one "
            "argument, `params`. Return one pytree."
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
    index = jax.random.categorical(key_draw, normalise(result.state.log_weights))
    row = as_store(target).gather(result.particles, index[None])
    path = collect_values(target, setting.collect, row, params)
    return result.state.log_evidence, path


def log_acceptance(current: System, proposal: System) -> Float[Array, ""]:
    """The log acceptance probability of a symmetric proposal."""
    # Accept every move from a system of density zero: -inf - -inf is NaN.
    has_no_density = current.log_density == -jnp.inf
    log_ratio = jnp.where(
        has_no_density, 0.0, proposal.log_density - current.log_density
    )
    return jnp.minimum(log_ratio, 0.0)
