"""What a prefix's score does to its weight.

A target reports the log potential lp_t of each prefix; where a reward r in (0, 1)
scores it, lp = logit(r). A transform f turns it into a log score and a potential says
how log scores become log weights:

    product       w_t = w_{t-1} f(lp_t)                  path weight  prod_t f(lp_t)
    telescoping   w_t = w_{t-1} f(lp_t) / f(lp_{t-1})    path weight  f(lp_T)
    terminal      w_t = f(lp_t), nothing else            path weight  f(lp_T)
    latest        w_t = f(lp_t), a rank, no target
    uniform       w_t = 1                                path weight  1

(written for weights; the code adds logarithms). `telescoping` and `terminal` aim at
the same thing except at zeros: a prefix of score zero is dead for good under
telescoping, which may resample, and may revive under terminal, which may not.

Each potential is built from one quantity, the log base: the log weight without the
present score where that score will be replaced, with it where it stays.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.picklable import Recipe, picklable, reduced

Transform = Callable[[Array], Array]


def odds(log_potentials: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weight r / (1 - r): the log potential itself."""
    return log_potentials


def reward(log_potentials: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weight r."""
    return jax.nn.log_sigmoid(log_potentials)


def softmax(log_potentials: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weight exp(r), and zero where the log potential is -inf: an impossible prefix.

    Published code has exp(0) there; but a cut solution or a forbidden step is no
    solution of reward zero, and would survive resampling.
    """
    return jnp.where(
        log_potentials == -jnp.inf, -jnp.inf, jax.nn.sigmoid(log_potentials)
    )


TRANSFORMS: dict[str, Transform] = {"odds": odds, "reward": reward, "softmax": softmax}


def transform_named(transform: str | Transform) -> Transform:
    """The transform of that name, or the function given.

    Raises:
        UnknownNameError: for a name that is not in `TRANSFORMS`.
    """
    if callable(transform):
        return transform
    if transform not in TRANSFORMS:
        raise UnknownNameError("weight transform", transform, TRANSFORMS)
    return TRANSFORMS[transform]


class Potential(NamedTuple):
    """How log scores become log weights.

    Attributes:
        transform: log potentials to log scores.
        weigh: `(log_base, log_scores, log_corrections, live)` to `(log_base,
            log_weights)`; `live` marks the particles that took this step, and the
            scores of the others are their last ones.
        restart: `(log_weights, log_scores)` to the log base of offspring.
        path_log_weight: the target, as in `tsi.sampler.Sampler`; None for a rank.
        evidence: "running" multiplies the increments, "terminal" is the mean of the
            present weights, "none" leaves it at one.
        recipe: how it was made, see `tsi.picklable`.
    """

    transform: Transform
    weigh: Callable[..., tuple[Array, Array]]
    restart: Callable[..., Array]
    path_log_weight: Callable[..., Array] | None
    evidence: Literal["running", "terminal", "none"]
    recipe: Recipe | None = None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return reduced(self)


def require_running(potential: Potential, method: str) -> Potential:
    """The potential, if its weights are those of a particle system step by step.

    Raises:
        ConfigurationError: for a terminal potential or a rank.
    """
    if potential.evidence != "running":
        raise ConfigurationError(
            f"{method} reweighs particles on the way, and this potential's weights "
            "mean something at the end only, or are nothing but ranks. Use product, "
            "telescoping or uniform."
        )
    return potential


def last_live(
    values: Float[Array, "*batch T"], live: Bool[Array, "*batch T"]
) -> Float[Array, "*batch"]:
    """The value at the last live step of each path."""
    last = jnp.sum(live, axis=-1) - 1
    return jnp.take_along_axis(values, last[..., None], axis=-1)[..., 0]


@picklable
def product(transform: str | Transform = "odds") -> Potential:
    """Every prefix's score counts: path weight prod_t f(lp_t)."""
    f = transform_named(transform)

    def weigh(
        base: Array, scores: Array, corrections: Array, live: Array
    ) -> tuple[Array, Array]:
        base = base + corrections + jnp.where(live, scores, 0.0)
        return base, base

    def path_log_weight(log_potentials: Array, live: Array) -> Array:
        return jnp.sum(jnp.where(live, f(log_potentials), 0.0), axis=-1)

    return Potential(f, weigh, lambda w, _: w, path_log_weight, "running")


@picklable
def telescoping(transform: str | Transform = "odds") -> Potential:
    """Each score replaces the one before: path weight f(lp_T).

    A path with a prefix of score zero has weight zero: its particle dies there.
    """
    f = transform_named(transform)

    def weigh(
        base: Array, scores: Array, corrections: Array, live: Array
    ) -> tuple[Array, Array]:
        base = base + corrections
        # Death must be for good, or the target would depend on whether a resampling
        # happened to fall between a zero and the score that follows it.
        base = jnp.where(live & (scores == -jnp.inf), -jnp.inf, base)
        return base, base + scores

    def restart(log_weights: Array, scores: Array) -> Array:
        # After recovery from zero weights everywhere the ratio restarts from f(lp_t).
        return log_weights - jnp.where(scores == -jnp.inf, 0.0, scores)

    def path_log_weight(log_potentials: Array, live: Array) -> Array:
        scores = f(log_potentials)
        dead = jnp.any(live & (scores == -jnp.inf), axis=-1)
        return jnp.where(dead, -jnp.inf, last_live(scores, live))

    return Potential(f, weigh, restart, path_log_weight, "running")


@picklable
def terminal(transform: str | Transform = "reward") -> Potential:
    """Only the last score counts, and nothing is resampled: best-of-N."""
    f = transform_named(transform)

    def weigh(
        base: Array, scores: Array, corrections: Array, live: Array
    ) -> tuple[Array, Array]:
        base = base + corrections
        return base, base + scores

    def path_log_weight(log_potentials: Array, live: Array) -> Array:
        return last_live(f(log_potentials), live)

    return Potential(f, weigh, lambda w, _: w, path_log_weight, "terminal")


@picklable
def latest(transform: str | Transform = "odds") -> Potential:
    """The present score is a rank: beam search, DVTS, REBASE.

    Corrections of the proposal are ignored, for a rank is not an importance weight.
    """
    f = transform_named(transform)

    def weigh(
        base: Array, scores: Array, corrections: Array, live: Array
    ) -> tuple[Array, Array]:
        return jnp.zeros_like(scores), scores

    return Potential(f, weigh, lambda w, _: jnp.zeros_like(w), None, "none")


@picklable
def uniform() -> Potential:
    """No score counts: the target is the policy itself."""

    def weigh(
        base: Array, scores: Array, corrections: Array, live: Array
    ) -> tuple[Array, Array]:
        base = base + corrections
        return base, base

    def path_log_weight(log_potentials: Array, live: Array) -> Array:
        return jnp.zeros(log_potentials.shape[:-1])

    return Potential(jnp.zeros_like, weigh, lambda w, _: w, path_log_weight, "running")
