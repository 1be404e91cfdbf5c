"""One run of a numpyro program: values and densities of its sites.

A site is *latent* if it is neither observed nor hidden. It has two densities: p as in
numpyro (with `handlers.scale`, and without values that `handlers.mask` masks), and the
density from which it was drawn. Observed sites and factors contribute to log G.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from numpyro import handlers
from numpyro.primitives import Messenger

from tsi.errors import ConfigurationError
from tsi.numpyro.arguments import call
from tsi.weights import weight_dtype

NAMED = ("sample", "deterministic")


class Sites(NamedTuple):
    """The result of a run of a program.

    Attributes:
        returned: the value that the program returned.
        latents: value of each latent site.
        deterministics: value of each `numpyro.deterministic` site.
        log_probs: log p of each latent site.
        log_draws: log density from which each latent site was drawn; 0 if a handler has
            fixed it (`handlers.substitute`).
        log_excess: log_probs minus log_draws, exactly 0 if both are the same density.
        log_likelihood: sum over observed sites and factors.
        num_observed: number of observed sites and factors.
        fixed: names of the latent sites that a handler has fixed.
        random: whether the program has any site, including hidden ones.
        names: names of all sites that are not hidden, including observed and
            deterministic ones.
    """

    returned: Any
    latents: dict[str, Any]
    deterministics: dict[str, Any]
    log_probs: dict[str, Float[Array, ""]]
    log_draws: dict[str, Float[Array, ""]]
    log_excess: dict[str, Float[Array, ""]]
    log_likelihood: Float[Array, ""]
    num_observed: int
    fixed: frozenset[str]
    random: bool
    names: frozenset[str]


class _Recorder(Messenger):
    """Records what the program's own handlers do to a site before ours see it."""

    def __init__(self) -> None:
        self.fixed: set[str] = set()
        self.random = False
        super().__init__(None)

    def process_message(self, msg: dict[str, Any]) -> None:
        kind = msg["type"]
        if kind not in ("sample", "plate", "prng_key", "control_flow"):
            return
        self.random = True
        if msg.get("_control_flow_done") or msg.get("is_observed"):
            return
        name = msg.get("name", kind)
        if kind == "control_flow":
            stack = msg["kwargs"]["substitute_stack"]
            if any(how == "substitute" for how, _ in stack):
                raise ConfigurationError(
                    "handlers.substitute around a step with a numpyro scan or cond "
                    "fixes sites whose density is then lost. Use handlers.condition, "
                    "or substitute inside the scanned function."
                )
        if msg["value"] is not None:
            if kind == "sample":
                self.fixed.add(name)
        elif msg["kwargs"].get("rng_key") is not None:
            raise ConfigurationError(
                f"The site {name!r} has its own random key, from handlers.seed or "
                "`rng_key=`, so all particles would draw the same value. Remove it: "
                "particle i uses fold_in(key, i)."
            )


def _log_density(site: dict[str, Any], *, scaled: bool) -> Float[Array, ""]:
    log_p = site["fn"].log_prob(site["value"])
    if scaled and site["scale"] is not None:
        log_p = site["scale"] * log_p
    return jnp.sum(log_p).astype(weight_dtype())


def run_program(
    program: Callable[..., Any],
    key: Key[Array, ""],
    values: dict[str, Any] | Callable[[dict[str, Any]], Any],
    *leading: Any,
    params: Any = None,
) -> Sites:
    """Run a program once, with some of its latent sites given.

    Args:
        program: a numpyro program, with any handlers around it.
        key: key of the run, including hidden sites. A site uses the same key whether or
            not values of other sites are given, so the same key and all latent values
            repeat a run.
        values: values of latent sites, by name, or a function of the site that returns
            a value or None, as in `handlers.substitute`.
        leading: the first arguments of the program.
        params: the other arguments, packed; see `tsi.numpyro.arguments`.

    Raises:
        ConfigurationError: if a site has its own key, or is fixed from outside a
            numpyro scan; or if the program does not take these arguments.
    """
    given = {"substitute_fn": values} if callable(values) else {"data": values}
    recorder = _Recorder()
    # The innermost handler acts first: the seed splits its key for a site before
    # `substitute` sets the value. `block` hides traced values from outer handlers.
    with (
        handlers.block(),
        handlers.trace() as trace,
        handlers.substitute(**given),
        handlers.seed(rng_seed=key),
        recorder,
    ):
        returned = call(program, *leading, params=params)

    zero = jnp.zeros((), weight_dtype())
    latents, deterministics, log_probs, log_draws, log_excess = {}, {}, {}, {}, {}
    log_likelihood, num_observed = zero, 0
    for name, site in trace.items():
        if site["type"] == "deterministic":
            deterministics[name] = jnp.asarray(site["value"])
        if site["type"] != "sample":
            continue
        log_p = _log_density(site, scaled=True)
        if site["is_observed"]:
            log_likelihood, num_observed = log_likelihood + log_p, num_observed + 1
            continue
        fixed, scaled = name in recorder.fixed, site["scale"] is not None
        latents[name] = jnp.asarray(site["value"])
        log_probs[name] = log_p
        log_draws[name] = zero if fixed else _log_density(site, scaled=False)
        log_excess[name] = log_p - log_draws[name] if fixed or scaled else zero
    return Sites(
        returned,
        latents,
        deterministics,
        log_probs,
        log_draws,
        log_excess,
        log_likelihood,
        num_observed,
        frozenset(recorder.fixed),
        recorder.random,
        frozenset(n for n, site in trace.items() if site["type"] in NAMED),
    )


def sum_sites(log_densities: dict[str, Float[Array, ""]]) -> Float[Array, ""]:
    """Sum of log densities over sites."""
    return sum(log_densities.values(), jnp.zeros((), weight_dtype()))
