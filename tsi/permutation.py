"""The order of particles means nothing: told backwards, a sampler decides backwards.

Particles are told in two orders, one the reverse of the other. Over many keys the
offspring of each must on average carry the same weight in both. A reversal maps islands
of neighbours onto islands, so that methods with islands are judged as well.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from tsi.robustness import Check
from tsi.sampler import Sampler

NUM_KEYS = 4_000
MAX_Z = 5.0
"""Of the largest of N scores, hence more than for one."""


def permutation_check(
    sampler: Sampler, num_particles: int, key: Key[Array, ""]
) -> Check:
    """Whether offspring weights follow the particles and not their places."""
    key_told, *keys = jax.random.split(key, 3)
    # Not sorted, so that their reverse is another order of the same kind.
    told = 1.5 * jax.random.normal(key_told, (num_particles,))

    @jax.jit
    @jax.vmap
    def shares(key: Key[Array, ""], numbers: Float[Array, "N"]) -> Float[Array, "N"]:
        key_init, key_first, key_tell, key_ask = jax.random.split(key, 4)
        state = sampler.init(key_init, num_particles)
        state, _ = sampler.ask(key_first, state)
        nobody = jnp.zeros(num_particles, bool)
        state, _ = sampler.tell(key_tell, state, numbers, 0.0 * numbers, nobody)
        state, ancestors = sampler.ask(key_ask, state)
        weights = jnp.exp(state.log_weights)
        return jnp.zeros(num_particles).at[ancestors].add(weights / num_particles)

    def many(key: Key[Array, ""], numbers: Float[Array, "N"]) -> np.ndarray:
        tiled = jnp.tile(numbers, (NUM_KEYS, 1))
        return np.asarray(shares(jax.random.split(key, NUM_KEYS), tiled), np.float64)

    forward = many(keys[0], told)
    backward = many(keys[1], told[::-1])[:, ::-1]
    variance = (forward.var(0) + backward.var(0)) / NUM_KEYS
    gap = forward.mean(0) - backward.mean(0)
    # Shares that do not vary must agree to rounding.
    scores = np.abs(gap) / np.sqrt(variance + 1e-12)
    worst = int(np.argmax(scores))
    kept = bool(scores[worst] < MAX_Z)
    detail = (
        "offspring follow the particles, not their places"
        if kept
        else f"particle {worst} has offspring of weight {forward.mean(0)[worst]:.4g}, "
        f"and {backward.mean(0)[worst]:.4g} when all stand in reverse order "
        f"(z = {scores[worst]:.1f})"
    )
    return Check("permutation", kept, detail)
