"""The keys of a run's steps, and how many steps it may take.

`key_init, key_steps = split(key)`; step t uses `key_ask, key_propose, key_tell =
split(fold_in(key_steps, t), 3)`. A step's randomness is therefore a function of
(key, t) alone, and every driver that follows the rule gives the same samples.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from tsi.errors import ConfigurationError

DEFAULT_MAX_STEPS = 64


def typed_key(key: Any) -> Key[Array, "*batch"]:
    """The key as a typed one; old-style keys, uint32 [..., 2], are wrapped.

    Both styles draw the same numbers, so `jax.random.PRNGKey(0)` and
    `jax.random.key(0)` give the same run.
    """
    if jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(jnp.asarray(key))


class StepKeys(NamedTuple):
    """The three keys of one step."""

    ask: Key[Array, ""]
    propose: Key[Array, ""]
    tell: Key[Array, ""]


def step_keys(key_steps: Key[Array, ""], t: Int[Array, ""] | int) -> StepKeys:
    """The keys of step t: a function of (key_steps, t) alone."""
    key_ask, key_propose, key_tell = jax.random.split(
        jax.random.fold_in(key_steps, t), 3
    )
    return StepKeys(key_ask, key_propose, key_tell)


def step_limit(target: Any, max_steps: int | None) -> int:
    """The number of steps a run may take: `max_steps`, the target's own, or 64.

    Raises:
        ConfigurationError: if it is less than one.
    """
    limit = getattr(target, "max_steps", None) if max_steps is None else max_steps
    limit = DEFAULT_MAX_STEPS if limit is None else int(limit)
    if limit < 1:
        raise ConfigurationError(
            f"A run needs at least one step, and max_steps is {limit}. Give max_steps "
            "a positive number."
        )
    return limit
