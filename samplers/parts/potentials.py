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

A log potential of NaN or +inf is no weight. It counts as -inf, an impossible prefix,
wherever it is read: in the weights of particles and in the path weight alike.
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
        log_factor: `(log_scores, log_scores_before, live)` to the log factor of this
            step, [N]. `live` marks the particles that took it; the scores of the others
            are their last ones, before as after.
        path_log_weight: the target, as in `tsi.sampler.Sampler`; None for a rank.
        evidence: "running": factors multiply the weights and the evidence. "terminal":
            the factor replaces the one before, and the evidence is the mean of the
            present weights. "none": the factor is a rank, which replaces everything.
        power: the exponent of all factors, positive; the path weight includes it.
        recipe: how it was made, see `tsi.picklable`.
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
    """Scores of log potentials; what is no weight, before or after f, is -inf."""
    return sanitise(transform(sanitise(log_potentials)))


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

    def log_factor(scores: Array, before: Array, live: Array) -> Array:
        return jnp.where(live, scores, 0.0)

    def path_log_weight(log_potentials: Array, live: Array) -> Array:
        scores = log_scores(f, log_potentials)
        return jnp.sum(jnp.where(live, scores, 0.0), axis=-1)

    return Potential(f, log_factor, path_log_weight, "running")


@picklable
def telescoping(transform: str | Transform = "odds") -> Potential:
    """Each score replaces the one before: path weight f(lp_T).

    A path with a prefix of score zero has weight zero: its particle dies there.
    """
    f = transform_named(transform)

    def log_factor(scores: Array, before: Array, live: Array) -> Array:
        # Scores may be thousands where their ratios are near one: ratios come first,
        # so that weights never hold a score, whose rounding would be theirs.
        # After recovery from zero weights everywhere the ratio restarts from f(lp_t).
        ratios = scores - jnp.where(before == -jnp.inf, 0.0, before)
        return jnp.where(scores == -jnp.inf, -jnp.inf, ratios)

    def path_log_weight(log_potentials: Array, live: Array) -> Array:
        scores = log_scores(f, log_potentials)
        # Death must be for good, or the target would depend on whether a resampling
        # happened to fall between a zero and the score that follows it.
        dead = jnp.any(live & (scores == -jnp.inf), axis=-1)
        return jnp.where(dead, -jnp.inf, last_live(scores, live))

    return Potential(f, log_factor, path_log_weight, "running")


@picklable
def terminal(transform: str | Transform = "reward") -> Potential:
    """Only the last score counts, and nothing is resampled: best-of-N."""
    f = transform_named(transform)

    def log_factor(scores: Array, before: Array, live: Array) -> Array:
        return scores

    def path_log_weight(log_potentials: Array, live: Array) -> Array:
        return last_live(log_scores(f, log_potentials), live)

    return Potential(f, log_factor, path_log_weight, "terminal")


@picklable
def latest(transform: str | Transform = "odds") -> Potential:
    """The present score is a rank: beam search, DVTS, REBASE.

    Corrections of the proposal are ignored, for a rank is not an importance weight.
    """
    f = transform_named(transform)

    def log_factor(scores: Array, before: Array, live: Array) -> Array:
        return scores

    return Potential(f, log_factor, None, "none")


@picklable
def uniform() -> Potential:
    """No score counts: the target is the policy itself."""

    def log_factor(scores: Array, before: Array, live: Array) -> Array:
        return jnp.zeros_like(scores)

    def path_log_weight(log_potentials: Array, live: Array) -> Array:
        return jnp.zeros(log_potentials.shape[:-1])

    return Potential(jnp.zeros_like, log_factor, path_log_weight, "running")
