"""One run of a numpyro program: what its sites drew, and what each density is.

A site is *latent* if it is neither observed nor hidden. Two densities belong to it: p,
as numpyro counts it (times `handlers.scale`, without what `handlers.mask` masks), and
the density it was drawn from. Observed sites and factors make up log G.
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
    """What a run of a program leaves behind.

    Attributes:
        returned: what the program returned.
        latents: value of each latent site.
        deterministics: value of each `numpyro.deterministic` site.
        log_probs: log p of each latent site.
        log_draws: log density that each was drawn with, if drawn from the program;
            0 where a handler had fixed it (`handlers.substitute`).
        log_excess: log p minus that, exactly 0 where the two are the same thing.
        log_likelihood: sum over observed sites and factors.
        num_observed: how many of those there are.
        fixed: names of the latent sites that a handler had fixed.
        random: whether the program has any site at all, hidden ones included.
        names: of all sites that are not hidden, observed and deterministic ones too.
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


class _Watch(Messenger):
    """Notes what the program's own handlers did to a site before ours see it."""

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
                    "would fix sites whose density is then lost. Use "
                    "handlers.condition, or substitute inside the scanned function."
                )
        if msg["value"] is not None:
            if kind == "sample":
                self.fixed.add(name)
        elif msg["kwargs"].get("rng_key") is not None:
            raise ConfigurationError(
                f"The site {name!r} has a random key of its own, from handlers.seed or "
                "`rng_key=`, so that every particle would draw the same. Remove it: "
                "particle i draws with fold_in(key, i)."
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
        key: all its randomness, that of hidden sites included. A site draws with the
            same key whether or not others are given, so that the same key and all
            latent values repeat a run.
        values: values of latent sites, by name, or a function of the site that gives
            one or None, as `handlers.substitute` takes.
        leading: the program's first arguments.
        params: what stands for the others; see `tsi.numpyro.arguments`.

    Raises:
        ConfigurationError: a site comes with a key of its own, or is fixed from outside
            a numpyro scan; or the program does not take these arguments.
    """
    given = {"substitute_fn": values} if callable(values) else {"data": values}
    watch = _Watch()
    # Innermost first: the seed splits its key for a site before `substitute` gives it a
    # value, and `block` keeps handlers around the whole run from seeing traced values.
    with (
        handlers.block(),
        handlers.trace() as trace,
        handlers.substitute(**given),
        handlers.seed(rng_seed=key),
        watch,
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
        fixed, scaled = name in watch.fixed, site["scale"] is not None
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
        frozenset(watch.fixed),
        watch.random,
        frozenset(n for n, site in trace.items() if site["type"] in NAMED),
    )


def total(log_densities: dict[str, Float[Array, ""]]) -> Float[Array, ""]:
    """The sum over sites."""
    return sum(log_densities.values(), jnp.zeros((), weight_dtype()))
