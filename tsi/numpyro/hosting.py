"""Parts that the numpyro kernels of this package share."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tsi.errors import ConfigurationError
from tsi.numpyro.program import ProgramTarget
from tsi.target import Target


def check_target(target: Any, kernel: str) -> None:
    """Check that an object is a target.

    Raises:
        ConfigurationError: if it is not; the message names the kernel.
    """
    if not isinstance(target, Target):
        raise ConfigurationError(
            f"{kernel} needs a target; got {target!r}. Make one from numpyro programs "
            "with program_target."
        )


def warn_of_another_posterior(
    target: Any, path_log_weight: Callable[..., Any] | None, power: float = 1.0
) -> None:
    """Warn if MCMC would not sample the posterior of a program.

    Args:
        target: the target.
        path_log_weight: path weight of the sampler; None is not checked.
        power: exponent of p in the sampler's target.
    """
    if path_log_weight is None or not isinstance(target, ProgramTarget):
        return
    # Identify the path weight by its values at a few generic points.
    probe = jax.random.normal(jax.random.key(0), (7, target.max_steps))
    weight = path_log_weight(probe, jnp.ones(probe.shape, bool))
    if power == 1.0 and np.allclose(weight, probe.sum(-1), atol=1e-4):
        return
    warnings.warn(
        "The sampler does not target the posterior of the program: its path weight is "
        "not the product of all observed sites and factors. To sample the posterior, "
        "use potential=product() for the sampler.",
        stacklevel=3,
    )


def collect_values(
    target: Any, collect: Callable[[Any], dict[str, Any]] | None, row: Any, params: Any
) -> dict[str, Any]:
    """The values that a kernel collects of one particle.

    Args:
        target: the target of the particle.
        collect: argument of the kernel; None for the sites of a program, and nothing
            for other targets.
        row: the particle, with a leading axis of size one.
        params: parameters of the target.
    """
    if collect is not None:
        values = collect(row)
    elif isinstance(target, ProgramTarget):
        values = target.sites(row, params)
    else:
        return {}
    return jax.tree.map(lambda leaf: leaf[0], dict(values))
