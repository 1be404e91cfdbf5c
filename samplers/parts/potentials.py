"""Potentials: how the score of a prefix changes its weight.

A target reports the log potential lp_t of each prefix; if a reward r in (0, 1) scores
it, lp = logit(r). A transform f maps it to a log score, and a potential defines how log
scores become log weights:

    product       w_t = w_{t-1} f(lp_t)                  path weight  prod_t f(lp_t)
    telescoping   w_t = w_{t-1} f(lp_t) / f(lp_{t-1})    path weight  f(lp_T)
    terminal      w_t = f(lp_t), at the end only         path weight  f(lp_T)
    latest        w_t = f(lp_t), a rank, no target
    uniform       w_t = 1                                path weight  1

(written for weights; the code adds logarithms). `telescoping` and `terminal` have the
same target except at zeros. Under telescoping, which allows resampling, a prefix of
score zero stays dead. Under terminal, which does not allow resampling, the prefix may
get weight again.

A log potential of NaN or +inf is invalid. It counts as -inf, an impossible prefix, both
in the weights of particles and in the path weight.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.picklable import Recipe, describe, picklable, reduce_to_recipe
from tsi.weights import sanitise

Transform = Callable[[Array], Array]


def odds(log_potentials: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weight r / (1 - r): the log potential itself."""
    return log_potentials


def reward(log_potentials: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weight r."""
    return jax.nn.log_sigmoid(log_potentials)


def softmax(log_potentials: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weight exp(r), and zero if the log potential is -inf: an impossible prefix.

    Published code uses weight exp(0) for an impossible prefix. But a truncated solution
    or a forbidden step is not a solution of reward zero, and with exp(0) it would
    survive resampling.
    """
    return jnp.where(
        log_potentials == -jnp.inf, -jnp.inf, jax.nn.sigmoid(log_potentials)
    )


TRANSFORMS: dict[str, Transform] = {"odds": odds, "reward": reward, "softmax": softmax}


def get_transform(transform: str | Transform) -> Transform:
    """Look up a transform by name; a function is returned as it is.

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
        transform: maps log potentials to log scores.
        log_factor: maps `(log_scores, log_scores_before, step_mask)` to the log factor
            of this step, [N]. `step_mask` marks the particles that took the step; both
            scores of the others are their last scores.
        path_log_weight: the target, as in `tsi.sampler.Sampler`; None for a rank.
        evidence: "running": factors multiply the weights and the evidence. "terminal":
            the factor replaces the previous one, and the evidence is the mean of the
            current weights. "none": the factor is a rank, which replaces the weights.
        power: the exponent of all factors, positive; the path weight includes it.
        recipe: the call that made it, see `tsi.picklable`.
    """

    transform: Transform
    log_factor: Callable[..., Array]
    path_log_weight: Callable[..., Array] | None
    evidence: Literal["running", "terminal", "none"]
    power: Float[Array, ""] | float = 1.0
    recipe: Recipe | None = None

    def __repr__(self) -> str:
        return describe(self)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return reduce_to_recipe(self)


def log_scores(
    transform: Transform, log_potentials: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Scores of log potentials; NaN and +inf, before or after f, are -inf."""
    return sanitise(transform(sanitise(log_potentials)))


def require_running(potential: Potential, method: str) -> Potential:
    """Check that a potential has weights at every step, and return it.

    Raises:
        ConfigurationError: for a terminal potential or a rank.
    """
    if potential.evidence != "running":
        raise ConfigurationError(
            f"{method} weighs particles at every step, but this potential has weights "
            "only at the end, or only ranks. Use product, telescoping or uniform."
        )
    return potential


def last_value(
    values: Float[Array, "*batch T"], step_mask: Bool[Array, "*batch T"]
) -> Float[Array, "*batch"]:
    """The value at the last step that each path has taken."""
    last = jnp.sum(step_mask, axis=-1) - 1
    return jnp.take_along_axis(values, last[..., None], axis=-1)[..., 0]


@picklable
def product(transform: str | Transform = "odds") -> Potential:
    """The score of every prefix counts: path weight prod_t f(lp_t)."""
    f = get_transform(transform)

    def log_factor(scores: Array, before: Array, step_mask: Array) -> Array:
        return jnp.where(step_mask, scores, 0.0)

    def path_log_weight(log_potentials: Array, step_mask: Array) -> Array:
        scores = log_scores(f, log_potentials)
        return jnp.sum(jnp.where(step_mask, scores, 0.0), axis=-1)

    return Potential(f, log_factor, path_log_weight, "running")


@picklable
def telescoping(transform: str | Transform = "odds") -> Potential:
    """Each score replaces the previous one: path weight f(lp_T).

    A path with a prefix of score zero has weight zero.
    """
    f = get_transform(transform)

    def log_factor(scores: Array, before: Array, step_mask: Array) -> Array:
        # Scores may be in the thousands while their ratios are near one. Ratios are
        # taken first, so that weights do not inherit the rounding of scores. After a
        # recovery from zero weights the ratio restarts from f(lp_t).
        ratios = scores - jnp.where(before == -jnp.inf, 0.0, before)
        return jnp.where(scores == -jnp.inf, -jnp.inf, ratios)

    def path_log_weight(log_potentials: Array, step_mask: Array) -> Array:
        scores = log_scores(f, log_potentials)
        # A dead path stays dead. Otherwise the target would depend on whether a
        # resampling happens between a zero and the next score.
        dead = jnp.any(step_mask & (scores == -jnp.inf), axis=-1)
        return jnp.where(dead, -jnp.inf, last_value(scores, step_mask))

    return Potential(f, log_factor, path_log_weight, "running")


@picklable
def terminal(transform: str | Transform = "reward") -> Potential:
    """Only the last score counts, without resampling, as in best-of-N."""
    f = get_transform(transform)

    def log_factor(scores: Array, before: Array, step_mask: Array) -> Array:
        return scores

    def path_log_weight(log_potentials: Array, step_mask: Array) -> Array:
        return last_value(log_scores(f, log_potentials), step_mask)

    return Potential(f, log_factor, path_log_weight, "terminal")


@picklable
def latest(transform: str | Transform = "odds") -> Potential:
    """The latest score is a rank, as in beam search, DVTS and REBASE.

    Corrections of the proposal are ignored, since a rank is not an importance weight.
    """
    f = get_transform(transform)

    def log_factor(scores: Array, before: Array, step_mask: Array) -> Array:
        return scores

    return Potential(f, log_factor, None, "none")


@picklable
def uniform() -> Potential:
    """No score counts: the target is the policy itself."""

    def log_factor(scores: Array, before: Array, step_mask: Array) -> Array:
        return jnp.zeros_like(scores)

    def path_log_weight(log_potentials: Array, step_mask: Array) -> Array:
        return jnp.zeros(log_potentials.shape[:-1])

    return Potential(jnp.zeros_like, log_factor, path_log_weight, "running")
