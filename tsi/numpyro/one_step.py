"""Run the programs of one particle, to draw its latents or to weight stored ones."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Key

from tsi.errors import ConfigurationError
from tsi.numpyro.particles import ProgramStep, as_arrays, check_carry
from tsi.numpyro.sites import Sites, run_program, sum_sites


def run_init(
    init_fn: Callable[..., Any],
    key: Key[Array, ""],
    values: dict[str, Any],
    params: Any,
) -> Sites:
    """Run the program before the first step, with given values of some sites."""
    sites = run_program(init_fn, key, values, params=params)
    return sites._replace(returned=as_arrays(sites.returned))


def init_has_sites(
    init_fn: Callable[..., Any], key: Key[Array, ""], params: Any
) -> bool:
    """Whether `init_fn` has sites; these are then part of the first step."""
    has_sites = []

    def begin() -> Any:
        sites = run_init(init_fn, key, {}, params)
        has_sites.append(sites.random)
        return sites.returned

    jax.eval_shape(begin)
    return has_sites[0]


def run_step(
    step_fn: Callable[..., Any],
    proposal: Callable[..., Any] | None,
    key: Key[Array, ""],
    t: Array,
    before: Any,
    stored: dict[str, Any] | None,
    params: Any,
) -> ProgramStep:
    """Run step t of one particle, with new or stored latents.

    Args:
        step_fn: the program of a step.
        proposal: the program that draws some of its latents, or None.
        key: of this step of the particle.
        t: index of the step.
        before: the carry before the step.
        stored: latents of the step, or None to draw them.
        params: arguments of the programs.

    Raises:
        ConfigurationError: the proposal has sites that it may not have, or the carry
            changes its structure.
    """
    key_guide, key_step = jax.random.split(jax.random.fold_in(key, 1))
    guide = _run_proposal(proposal, key_guide, t, before, stored, params)
    values = {} if guide is None else guide.latents
    values = values if stored is None else stored
    sites = run_program(step_fn, key_step, values, t, before, params=params)
    excess = sites.log_excess
    if guide is not None:
        unknown = set(values) - set(sites.latents) | (set(values) & sites.fixed)
        if unknown:
            raise ConfigurationError(
                f"The proposal draws {sorted(unknown)}, which are not latent "
                f"sites of step_fn (it has {sorted(sites.latents)}). Use the same "
                "names in both programs; observed and hidden sites need no "
                "proposal."
            )
        log_ratios = {n: sites.log_probs[n] - q for n, q in guide.log_draws.items()}
        excess = {**excess, **log_ratios}
    after = as_arrays(sites.returned)
    check_carry(before, after)
    log_prob = sum_sites(sites.log_probs)
    return ProgramStep(
        key,
        sites.latents,
        sites.deterministics,
        after,
        log_prob,
        sites.log_likelihood,
        sum_sites(excess),
    )


def _run_proposal(
    proposal: Callable[..., Any] | None,
    key: Key[Array, ""],
    t: Array,
    carry: Any,
    stored: dict[str, Any] | None,
    params: Any,
) -> Sites | None:
    """Run the proposal to draw latents, or to get the density of stored ones."""
    if proposal is None:
        return None
    guide = run_program(proposal, key, stored or {}, t, carry, params=params)
    if guide.num_observed or guide.fixed:
        raise ConfigurationError(
            "The proposal has observed or fixed sites or factors, but it may only "
            "draw. Move these sites into step_fn."
        )
    return guide
