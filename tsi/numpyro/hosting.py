"""What numpyro kernels of this package have in common."""

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
    """Refuse what is no target.

    Raises:
        ConfigurationError: naming the kernel.
    """
    if not isinstance(target, Target):
        raise ConfigurationError(
            f"{kernel} needs a target, and was given {target!r}. A numpyro program "
            "with steps becomes one by program_target."
        )


def warn_of_another_posterior(
    target: Any, path_log_weight: Callable[..., Any] | None, power: float = 1.0
) -> None:
    """Warn where MCMC would sample something else than a program's posterior.

    Args:
        target: what is explored.
        path_log_weight: what the sampler aims at; None is not judged.
        power: of p in it.
    """
    if path_log_weight is None or not isinstance(target, ProgramTarget):
        return
    # What a function computes shows in its values at a few generic points.
    probe = jax.random.normal(jax.random.key(0), (7, target.max_steps))
    weight = path_log_weight(probe, jnp.ones(probe.shape, bool))
    if power == 1.0 and np.allclose(weight, probe.sum(-1), atol=1e-4):
        return
    warnings.warn(
        "The sampler does not aim at the program's posterior, for its path weight is "
        "not the product of all observed sites and factors. If the posterior is meant, "
        "give the sampler potential=product().",
        stacklevel=3,
    )


def collected(
    target: Any, collect: Callable[[Any], dict[str, Any]] | None, row: Any, params: Any
) -> dict[str, Any]:
    """What a kernel keeps of one particle.

    Args:
        target: whose particle it is.
        collect: as given to the kernel; None for the sites of a program, and nothing
            of other targets.
        row: the particle, leading axis 1.
        params: the target's parameters.
    """
    if collect is not None:
        values = collect(row)
    elif isinstance(target, ProgramTarget):
        values = target.sites(row, params)
    else:
        return {}
    return jax.tree.map(lambda leaf: leaf[0], dict(values))
