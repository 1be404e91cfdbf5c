"""The parameters of a numpyro prior as a real vector for a random walk.

    log density of z = sum over continuous sites of log p(theta) + log |d theta / d z|
                       + terms of the other sites,

where theta = T(z) maps a real vector to the support of each continuous site. A discrete
site is not moved by the walk. It is drawn anew from the prior, so its density
cancels in the acceptance ratio and is omitted here.
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
        log_density: log density of z, without terms that cancel.
        values: latent and deterministic values, by name.
        params: the value that the prior returned: the parameters of the target.
    """

    log_density: Float[Array, ""]
    values: dict[str, Array]
    params: Any


def draw_parameters(
    prior: Callable[..., Any],
    key: Key[Array, ""],
    arguments: Any,
    given: dict[str, Array] | None = None,
) -> dict[str, Array]:
    """Draw the continuous sites of a prior, and map them to real values.

    Args:
        prior: a numpyro program.
        key: a typed key.
        arguments: the packed arguments of the run.
        given: real values that replace drawn ones, by name.

    Raises:
        ConfigurationError: if `given` has a name that is not a continuous site of the
            prior, or the prior has continuous sites in a numpyro scan.
    """
    given = {} if given is None else given
    functions: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def record_site(site: dict[str, Any]) -> Any:
        if site["type"] != "sample" or site["value"] is not None:
            return None
        functions[site["name"]] = site["fn"]
        shapes[site["name"]] = (*site["kwargs"]["sample_shape"], *site["fn"].shape())
        if site["name"] not in given:
            return None
        return biject_to(site["fn"].support)(given[site["name"]])

    sites = run_program(prior, key, record_site, params=arguments)
    continuous = [
        name
        for name in sites.latents
        if name in functions and not functions[name].is_discrete
    ]
    repeated = sorted(n for n in continuous if sites.latents[n].shape != shapes[n])
    if repeated:
        raise ConfigurationError(
            f"The prior draws {repeated} in a numpyro scan, where the random walk "
            "cannot set them. Draw them as one vector site."
        )
    unknown = sorted(set(given) - set(continuous))
    if unknown:
        raise ConfigurationError(
            f"init_params has {unknown}, but the continuous sites of the prior are "
            f"{sorted(continuous)}. Use their names, with unconstrained values."
        )
    return {
        name: jnp.asarray(
            given.get(name, biject_to(functions[name].support).inv(sites.latents[name]))
        )
        for name in continuous
    }


def evaluate_prior(
    prior: Callable[..., Any],
    key: Key[Array, ""],
    z: dict[str, Array],
    arguments: Any,
) -> Parameters:
    """Evaluate the prior at real values of its continuous sites.

    Args:
        prior: a numpyro program.
        key: for its discrete and hidden sites.
        z: real values, by name.
        arguments: the packed arguments of the run.
    """
    log_jacobians: dict[str, Array] = {}

    def set_site(site: dict[str, Any]) -> Any:
        name = site.get("name")
        if name not in z or site["value"] is not None:
            return None
        transform = biject_to(site["fn"].support)
        value = transform(z[name])
        slope = transform.log_abs_det_jacobian(z[name], value)
        log_jacobians[name] = jnp.sum(slope)
        return value

    sites = run_program(prior, key, set_site, params=arguments)
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
            # The density of a site drawn from the prior cancels; a handler's terms do
            # not.
            terms.append(sites.log_excess[name])
    return sum(terms[1:], terms[0])
