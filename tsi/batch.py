"""Batch a sampler of one problem over P independent problems.

An engine keeps the particles of many problems as rows of one array. `batch` maps the
sampler over problems and offsets the ancestors, so that they index those rows. Each
problem gets exactly the result of a separate run.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.errors import ConfigurationError
from tsi.sampler import Sampler
from tsi.step_keys import AnyKey, typed_key


def batch(sampler: Sampler, num_problems: int) -> Sampler:
    """A sampler of P problems, whose rows are flat and ordered by problem.

    Args:
        sampler: a sampler of one problem.
        num_problems: P, static.

    Returns:
        A `Sampler` whose functions take one key per problem:
        `init(keys [P], N)` gives a state whose leaves have a leading axis P;
        `ask(keys [P], state)` gives ancestors [P * N] into the flat rows;
        `tell(keys [P], state, log_potentials [P * N], log_corrections [P * N],
        finished [P * N])` gives infos with a leading axis P, whose ancestors count
        within the problem.

    Raises:
        ConfigurationError: P is less than one.
    """
    if num_problems < 1:
        raise ConfigurationError(
            f"batch needs at least one problem, and num_problems is {num_problems}."
        )

    def init(keys: AnyKey, num_particles: int) -> Any:
        keys = typed_key(keys)
        return jax.vmap(lambda key: sampler.init(key, num_particles))(keys)

    def ask(keys: AnyKey, state: Any) -> tuple[Any, Int[Array, "PN"]]:
        state, ancestors = jax.vmap(sampler.ask)(typed_key(keys), state)
        num_particles = ancestors.shape[1]
        offsets = jnp.arange(num_problems, dtype=ancestors.dtype) * num_particles
        return state, (ancestors + offsets[:, None]).reshape(-1)

    def tell(
        keys: AnyKey,
        state: Any,
        log_potentials: Float[Array, "PN"],
        log_corrections: Float[Array, "PN"],
        finished: Bool[Array, "PN"],
    ) -> tuple[Any, Any]:
        rows = [
            array.reshape(num_problems, -1)
            for array in (log_potentials, log_corrections, finished)
        ]
        return jax.vmap(sampler.tell)(typed_key(keys), state, *rows)

    return sampler._replace(init=init, ask=ask, tell=tell)
