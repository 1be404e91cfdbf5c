"""What a sampler makes of weights that it is told: offspring of each, over many keys.

One compiled program for all that is asked about a draw of ancestors. Each particle of
the first step is told a number and whether it has finished; in a second step, if there
is one, a child is told its ancestor's number again. So every particle of the first step
ends with a number of offspring and the weight that they have together.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from tsi.sampler import Sampler

NUM_KEYS = 4_000


class Offspring(NamedTuple):
    """Of N particles, under each of K keys.

    Attributes:
        counts: offspring, [K, N].
        weights: what they weigh together, [K, N]; all N particles weigh N.
        before: what the particles of the last step weighed before the draw, [K, N].
    """

    counts: np.ndarray
    weights: np.ndarray
    before: np.ndarray


class Draws:
    """The compiled program; called with what the particles are told.

    Args:
        sampler: the sampler.
        num_particles: N.
        num_keys: K.
        num_steps: how often the particles are told.
    """

    def __init__(
        self,
        sampler: Sampler,
        num_particles: int,
        num_keys: int = NUM_KEYS,
        num_steps: int = 2,
    ) -> None:
        self.num_keys = num_keys

        def draw(
            key: Key[Array, ""],
            state: Any,
            numbers: Float[Array, "N"],
            ended: Bool[Array, "N"],
        ) -> tuple[Array, Array, Array]:
            key_first, *keys = jax.random.split(key, 1 + 2 * num_steps)
            # Whom they extend first means nothing: all prefixes are empty.
            state, _ = sampler.ask(key_first, state)
            origins = jnp.arange(num_particles, dtype=jnp.int32)
            for key_tell, key_ask in zip(keys[::2], keys[1::2], strict=True):
                told, done = numbers[origins], ended[origins]
                # A finished particle is told whatever comes to hand.
                told = jnp.where(state.finished, 3.0 - told, told)
                state, _ = sampler.tell(key_tell, state, told, 0.0 * told, done)
                before = jnp.exp(state.log_weights)
                state, ancestors = sampler.ask(key_ask, state)
                origins = origins[ancestors]
            nobody = jnp.zeros(num_particles)
            return (
                nobody.at[origins].add(1.0),
                nobody.at[origins].add(jnp.exp(state.log_weights)),
                before,
            )

        # Apart, or the first draw from equal weights is worked out by the compiler.
        self.init = jax.jit(jax.vmap(lambda key: sampler.init(key, num_particles)))
        self.draw = jax.jit(jax.vmap(draw, in_axes=(0, 0, None, None)))

    def __call__(
        self,
        key: Key[Array, ""],
        numbers: Float[np.ndarray, "N"],
        ended: Bool[np.ndarray, "N"] | None = None,
    ) -> Offspring:
        """Offspring of particles that were told these numbers."""
        ended = np.zeros(len(numbers), bool) if ended is None else ended
        key_init, key_draws = jax.random.split(key)
        keys = jax.random.split(key_draws, self.num_keys)
        state = self.init(jax.random.split(key_init, self.num_keys))
        told = jnp.asarray(numbers, jnp.float32), jnp.asarray(ended)
        found = self.draw(keys, state, *told)
        return Offspring(*(np.asarray(numbers, np.float64) for numbers in found))
