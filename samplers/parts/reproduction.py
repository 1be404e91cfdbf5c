"""Reproduction rules: how offspring are drawn and weighted.

Draw ancestors in proportion to any priority v that is positive where the weight w is,
and give an offspring of i the weight

    mean(v) w_i / v_i.

Particle i has n v_i / sum(v) offspring on average, whose total weight is w_i on average
for any v. The weighted empirical measure therefore keeps its expectation for any choice
of v: v = w makes all offspring equal, a flatter v keeps more particles, and a v that
looks ahead favours promising particles. A rule without this balance has no target.

References:
    [1] Liu, Chen and Logvinenko 2001, A theoretical framework for sequential importance
        sampling with resampling (priority scores).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.picklable import Recipe, describe, picklable, reduce_to_recipe
from tsi.samplers.parts.allocation import Deterministic
from tsi.samplers.parts.resampling import Resampling
from tsi.step_keys import with_typed_key
from tsi.weights import log_mean_exp


class Group(NamedTuple):
    """One island before a step: the input of a rule.

    Attributes:
        log_weights: [n]; -inf for a dead particle. If all are dead, the draw is not
            used.
        log_scores: last log potentials after the potential's transform, [n].
        finished: particles that take no further step, [n].
        t: number of steps so far, at least one.
    """

    log_weights: Float[Array, "n"]
    log_scores: Float[Array, "n"]
    finished: Bool[Array, "n"]
    t: Int[Array, ""]


class Offspring(NamedTuple):
    """Ancestors within the island, int32 [n], and the offspring's log weights, [n]."""

    ancestors: Int[Array, "n"]
    log_weights: Float[Array, "n"]


class Reproduction(NamedTuple):
    """A rule `(key, group) -> offspring`.

    Attributes:
        draw: the rule. A dead particle has no offspring but itself.
        exact: whether the weighted measure keeps its expectation.
        recipe: the call that made it, see `tsi.picklable`.
    """

    draw: Callable[..., Offspring]
    exact: bool
    recipe: Recipe | None = None

    def __repr__(self) -> str:
        return describe(self)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return reduce_to_recipe(self)


@picklable
def by_priority(
    resampling: Resampling, log_priority: Callable[..., Array] | None = None
) -> Reproduction:
    """Draw ancestors in proportion to v; exact unless the scheme is deterministic.

    Args:
        resampling: a scheme `(key, log_weights, num_samples) -> ancestors`.
        log_priority: `group -> log v [n]`, finite if the weight is positive and -inf if
            it is zero; None for v = w.
    """

    @with_typed_key
    def draw(key: Key[Array, ""], group: Group) -> Offspring:
        log_w = group.log_weights
        size = log_w.shape[0]
        if log_priority is None:
            mean = jnp.broadcast_to(log_mean_exp(log_w), log_w.shape)
            return Offspring(resampling(key, log_w, size), mean)
        log_v = log_priority(group)
        ancestors = resampling(key, log_v, size)
        # The sign matters: w / v, since v has been used for the draw.
        ratio = jnp.where(log_v > -jnp.inf, log_w - log_v, -jnp.inf)
        return Offspring(ancestors, log_mean_exp(log_v) + ratio[ancestors])

    return Reproduction(draw, exact=not isinstance(resampling, Deterministic))


@picklable
def at_mean_weight(choose: Callable[..., Array]) -> Reproduction:
    """Give every offspring the mean weight of the island: a rule for searches.

    Args:
        choose: `(key, group) -> ancestors [n]`.
    """

    @with_typed_key
    def draw(key: Key[Array, ""], group: Group) -> Offspring:
        log_w = group.log_weights
        mean = jnp.broadcast_to(log_mean_exp(log_w), log_w.shape)
        return Offspring(choose(key, group), mean)

    return Reproduction(draw, exact=False)
