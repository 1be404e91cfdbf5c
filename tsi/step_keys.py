"""The keys of a run and of its steps, and the step limit.

`key_init, key_steps = split(key)`; step t uses `key_ask, key_propose, key_tell =
split(fold_in(key_steps, t), 3)`. A step's randomness therefore depends only on (key,
t), and every driver that follows this rule draws the same samples.

JAX has two styles of keys: typed arrays (`jax.random.key`), and uint32 arrays
(`jax.random.PRNGKey`). Public functions accept both and convert them to typed keys.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from tsi.errors import ConfigurationError

DEFAULT_MAX_STEPS = 64

P = ParamSpec("P")
R = TypeVar("R")

AnyKey = Any
"""A key of either style; `typed_key` checks it, with a better message."""


def typed_key(keys: AnyKey) -> Key[Array, "*batch"]:
    """Convert keys of either style to typed keys.

    Args:
        keys: typed, [...]; or uint32 [..., 2] (threefry) or [..., 4] (rbg).

    Raises:
        ConfigurationError: for any other argument, such as a seed.
    """
    is_array = isinstance(keys, jax.Array | np.ndarray)
    if is_array and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        return keys
    words = keys.shape[-1] if is_array and keys.ndim else 0
    if not is_array or keys.dtype != jnp.uint32 or words not in (2, 4):
        description = f"{keys.dtype}{list(keys.shape)}" if is_array else repr(keys)[:60]
        raise ConfigurationError(
            f"A key must be one of JAX's keys, and it is {description}. Give "
            "jax.random.key(seed), or an old-style jax.random.PRNGKey(seed)."
        )
    kind = {2: "threefry2x32", 4: "rbg"}[words]
    # Two implementations have keys of four words; the default decides for a raw key.
    default = jax.config.jax_default_prng_impl  # type: ignore[attr-defined]
    if words == 4 and default == "unsafe_rbg":
        kind = default
    return jax.random.wrap_key_data(jnp.asarray(keys), impl=kind)


def single_key(key: AnyKey) -> Key[Array, ""]:
    """Convert one key of either style to a typed key.

    Args:
        key: typed, or uint32 [2] or [4].

    Raises:
        ConfigurationError: for any other argument, such as a seed or several keys.
    """
    one = typed_key(key)
    if one.ndim:
        raise ConfigurationError(
            f"One key is needed, and an array of {one.shape} keys was given. Map over "
            "keys with jax.vmap, or give one of them."
        )
    return one


def with_typed_key(function: Callable[P, R]) -> Callable[P, R]:
    """Allow the first argument `key` of a function to have either style.

    Raises:
        ConfigurationError: when called, for anything but one key.
    """

    @functools.wraps(function)
    def convert(key: AnyKey, *args: Any, **kwargs: Any) -> R:
        return function(single_key(key), *args, **kwargs)  # type: ignore[arg-type]

    return convert  # type: ignore[return-value]


class StepKeys(NamedTuple):
    """The three keys of one step."""

    ask: Key[Array, ""]
    propose: Key[Array, ""]
    tell: Key[Array, ""]


def step_keys(key_steps: AnyKey, t: Int[Array, ""] | int) -> StepKeys:
    """The keys of step t: a function only of (key_steps, t)."""
    key_ask, key_propose, key_tell = jax.random.split(
        jax.random.fold_in(single_key(key_steps), t), 3
    )
    return StepKeys(key_ask, key_propose, key_tell)


def step_limit(target: Any, max_steps: int | None) -> int:
    """The step limit of a run: `max_steps`, the target's own, or 64.

    Raises:
        ConfigurationError: the limit is less than one.
    """
    limit = getattr(target, "max_steps", None) if max_steps is None else max_steps
    limit = DEFAULT_MAX_STEPS if limit is None else int(limit)
    if limit < 1:
        raise ConfigurationError(
            f"A run needs at least one step, and max_steps is {limit}. Give a positive "
            "max_steps."
        )
    return limit
