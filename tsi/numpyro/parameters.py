"""The parameters of a numpyro prior as a vector that a random walk can move.

    log density of z = sum over moved sites of log p(theta) + log |d theta / d z|
                       + what the other sites add,

where theta = T(z) maps a real vector to each continuous site's support. A discrete site
cannot walk: it is drawn anew from the prior, whose density then cancels out of the
acceptance ratio and is left out here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from numpyro.distributions import biject_to

from tsi.errors import ConfigurationError
from tsi.numpyro.sites import Sites, run_program


class Parameters(NamedTuple):
    """One run of the prior.

    Attributes:
        log_density: of z, up to what cancels.
        values: latent and deterministic values, by name.
        params: what the prior returned: the target's parameters.
    """

    log_density: Float[Array, ""]
    values: dict[str, Array]
    params: Any


def drawn_parameters(
    prior: Callable[..., Any],
    key: Key[Array, ""],
    arguments: Any,
    given: dict[str, Array] | None = None,
) -> dict[str, Array]:
    """Real values of the prior's continuous sites at one of its draws.

    Args:
        prior: a numpyro program.
        key: of the draw.
        arguments: the `params` that stand for the arguments of the run.
        given: real values in place of drawn ones, by name.

    Raises:
        ConfigurationError: `given` names what is no continuous site of the prior, or
            the prior has sites in a numpyro scan.
    """
    given = {} if given is None else given
    functions: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def seen(site: dict[str, Any]) -> Any:
        if site["type"] != "sample" or site["value"] is not None:
            return None
        functions[site["name"]] = site["fn"]
        shapes[site["name"]] = (*site["kwargs"]["sample_shape"], *site["fn"].shape())
        if site["name"] not in given:
            return None
        return biject_to(site["fn"].support)(given[site["name"]])

    sites = run_program(prior, key, seen, params=arguments)
    moved = [
        name
        for name in sites.latents
        if name in functions and not functions[name].is_discrete
    ]
    repeated = sorted(n for n in moved if sites.latents[n].shape != shapes[n])
    if repeated:
        raise ConfigurationError(
            f"The prior draws {repeated} in a numpyro scan, which cannot be moved from "
            "outside. Draw them as one vector site."
        )
    strangers = sorted(set(given) - set(moved))
    if strangers:
        raise ConfigurationError(
            f"init_params names {strangers}, and the prior's continuous sites are "
            f"{sorted(moved)}. Give their unconstrained values."
        )
    return {
        name: jnp.asarray(
            given.get(name, biject_to(functions[name].support).inv(sites.latents[name]))
        )
        for name in moved
    }


def parameters_at(
    prior: Callable[..., Any],
    key: Key[Array, ""],
    z: dict[str, Array],
    arguments: Any,
) -> Parameters:
    """The prior at real values of its continuous sites.

    Args:
        prior: a numpyro program.
        key: of its discrete and hidden sites.
        z: real values, by name.
        arguments: the `params` that stand for the arguments of the run.
    """
    log_jacobians: dict[str, Array] = {}

    def moved(site: dict[str, Any]) -> Any:
        name = site.get("name")
        if name not in z or site["value"] is not None:
            return None
        transform = biject_to(site["fn"].support)
        value = transform(z[name])
        slope = transform.log_abs_det_jacobian(z[name], value)
        log_jacobians[name] = jnp.sum(slope)
        return value

    sites = run_program(prior, key, moved, params=arguments)
    return Parameters(
        _log_density(sites, log_jacobians),
        {**sites.latents, **sites.deterministics},
        sites.returned,
    )


def _log_density(sites: Sites, log_jacobians: dict[str, Array]) -> Float[Array, ""]:
    terms = [sites.log_likelihood]
    for name, log_p in sites.log_probs.items():
        if name in log_jacobians:
            terms += [log_p, log_jacobians[name].astype(log_p.dtype)]
        else:
            # Of a site drawn from the prior only what a handler adds is left.
            terms.append(sites.log_excess[name])
    return sum(terms[1:], terms[0])
