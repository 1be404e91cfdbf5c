"""Check the `extra_fields` of a run of MCMC before its first move.

MCMC does not tell a kernel which fields it will collect, and collects any attribute of
that name, even a method. It cannot collect typed keys, nor a part of the state that
holds some. `check_extra_fields` therefore finds the call of `MCMC.run` that asks the
kernel for its first state, and walks each name through this state.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer import MCMC

from tsi.errors import ConfigurationError, UnknownNameError


def check_extra_fields(state: Any, sample_field: str) -> None:
    """Reject names that are not fields of the state, and fields that hold typed keys.

    Args:
        state: the first state of a kernel.
        sample_field: of the kernel; names that begin with "~" and this name exclude
            sites.

    Raises:
        UnknownNameError: a name is not a field; the message lists the existing ones.
        ConfigurationError: a field holds typed keys, or a name continues after a field
            without fields.
    """
    for name in _requested_fields():
        if not name.startswith(f"~{sample_field}."):
            _check(state, name)


def _requested_fields() -> tuple[str, ...]:
    """The `extra_fields` of the innermost call of `MCMC.run`; none outside of one."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is MCMC.run.__code__:
            return tuple(frame.f_locals["extra_fields"])
        frame = frame.f_back
    return ()


def _check(state: Any, name: str) -> None:
    value, path = state, ""
    for part in name.split("."):
        fields = _fields_of(value)
        if not fields:
            raise ConfigurationError(
                f"There is no extra field {name!r}, because {path} has no fields. "
                f"Remove the part after {path}."
            )
        if part not in fields:
            kind = f"field of {path}" if path else "extra field"
            raise UnknownNameError(kind, part, _without_keys(value))
        value, path = fields[part], f"{path}.{part}" if path else part
    if _has_keys(value):
        within = [f"{path}.{inner}" for inner in _without_keys(value)]
        known_names = within or list(_without_keys(state))
        raise ConfigurationError(
            f"The extra field {name!r} holds random keys, which MCMC cannot collect. "
            f"Give fields without keys: {', '.join(sorted(known_names))}."
        )


def _fields_of(value: Any) -> dict[str, Any]:
    """The fields of a container by the names with which MCMC finds them."""
    if hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, dict):
        # MCMC finds a method of the same name first.
        return {
            key: item
            for key, item in value.items()
            if isinstance(key, str) and not hasattr(dict, key)
        }
    if isinstance(value, tuple | list):
        return {str(place): item for place, item in enumerate(value)}
    return {}


def _has_keys(value: Any) -> bool:
    return any(
        jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        for leaf in jax.tree.leaves(value)
    )


def _without_keys(value: Any) -> Iterator[str]:
    """Names of the fields of a container that hold no keys, those of tuples opened."""
    for name, item in _fields_of(value).items():
        if hasattr(item, "_fields") or _has_keys(item):
            yield from (f"{name}.{inner}" for inner in _without_keys(item))
        else:
            yield name
