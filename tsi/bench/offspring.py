"""The offspring that a sampler gives to particles of given weights, over many keys.

One compiled program serves all checks of the draw of ancestors. Each particle of the
first step gets a log potential and a finished flag. In a second step, if there is one,
a child gets the log potential of its ancestor again. The result is the number of
offspring of every particle of the first step, and their total weight.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from tsi.sampler import Sampler

NUM_KEYS = 4_000


class Offspring(NamedTuple):
    """The offspring of N particles, under each of K keys.

    Attributes:
        counts: number of offspring, [K, N].
        weights: their total weight, [K, N]; the N particles have weight N in total.
        before: weights of the last step's particles before the draw, [K, N].
    """

    counts: np.ndarray
    weights: np.ndarray
    before: np.ndarray


class Draws:
    """The compiled program, called with the log potentials of the particles.

    Args:
        sampler: the sampler.
        num_particles: N.
        num_keys: K.
        num_steps: number of steps, 1 or 2.
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
            # The first ancestors do not matter: all prefixes are empty.
            state, _ = sampler.ask(key_first, state)
            origins = jnp.arange(num_particles, dtype=jnp.int32)
            for key_tell, key_ask in zip(keys[::2], keys[1::2], strict=True):
                scores, finished = numbers[origins], ended[origins]
                # The numbers of a finished particle are arbitrary.
                scores = jnp.where(state.finished, 3.0 - scores, scores)
                state, _ = sampler.tell(key_tell, state, scores, 0.0 * scores, finished)
                before = jnp.exp(state.log_weights)
                state, ancestors = sampler.ask(key_ask, state)
                origins = origins[ancestors]
            zeros = jnp.zeros(num_particles)
            return (
                zeros.at[origins].add(1.0),
                zeros.at[origins].add(jnp.exp(state.log_weights)),
                before,
            )

        # Compiled separately, since XLA would evaluate the first draw at compile time.
        self.init = jax.jit(jax.vmap(lambda key: sampler.init(key, num_particles)))
        self.draw = jax.jit(jax.vmap(draw, in_axes=(0, 0, None, None)))

    def __call__(
        self,
        key: Key[Array, ""],
        numbers: Float[np.ndarray, "N"],
        ended: Bool[np.ndarray, "N"] | None = None,
    ) -> Offspring:
        """Offspring of particles with these log potentials."""
        ended = np.zeros(len(numbers), bool) if ended is None else ended
        key_init, key_draws = jax.random.split(key)
        keys = jax.random.split(key_draws, self.num_keys)
        state = self.init(jax.random.split(key_init, self.num_keys))
        scores = jnp.asarray(numbers, jnp.float32), jnp.asarray(ended)
        results = self.draw(keys, state, *scores)
        return Offspring(*(np.asarray(numbers, np.float64) for numbers in results))
