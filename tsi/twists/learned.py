"""A twist with parameters: log psi_t(x_{1:t}) = f_theta(t, features of x_{1:t}).

Features are computed from particles and do not depend on theta, the learned parameters:
the last symbol of a table, the state of a program, a hidden state of a language model.
`apply` is any function of them, such as a log-linear one or a network. Theta is a
pytree in `tsi.twists.twisted_target.TwistedParams`, so that one compiled program serves
every theta; `tsi.samplers.contrastive_twist` fits it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.target import Particles
from tsi.twists.twisted_target import TwistedParams


class LearnedTwist(NamedTuple):
    """A family of twists; `log_twist` is what `tsi.twists.twisted_target.TwistedTarget`
    takes.

    Attributes:
        apply: `(theta, t, features [N, D]) -> [N]`, log psi_t, differentiable in theta.
        features: `(t, particles, params) -> [N, D]`, of the target's particles after
            step t, given the target's parameters.
    """

    apply: Callable[..., Array]
    features: Callable[..., Array]

    def log_twist(
        self, t: Int[Array, "..."] | int, particles: Particles, params: TwistedParams
    ) -> Float[Array, "N"]:
        """log psi_t of each particle under `params.theta`."""
        return self.apply(params.theta, t, self.features(t, particles, params.target))


def log_linear(
    theta: Float[Array, "T D"],
    t: Int[Array, "..."] | int,
    features: Float[Array, "N D"],
) -> Float[Array, "N"]:
    """log psi_t = theta_t . features, with weights per step; theta = 0 is no twist."""
    step = jnp.minimum(t, theta.shape[0] - 1)
    return jnp.sum(theta[step] * features, axis=-1)


def last_symbol(num_symbols: int) -> Callable[..., Array]:
    """Features of a table's paths: the last of K symbols, one-hot.

    Every twist of a table is log-linear in these, including the exact one.
    """

    def features(
        t: Int[Array, "..."] | int, particles: Any, params: Any = None
    ) -> Float[Array, "N K"]:
        rows = jnp.arange(particles.symbols.shape[0])
        last = particles.symbols[rows, jnp.maximum(particles.length - 1, 0)]
        return jax.nn.one_hot(last, num_symbols)

    return features
