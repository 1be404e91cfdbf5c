"""Kernel states whose error for a wrong field name lists the known names.

MCMC looks up `extra_fields` by attribute and then by index. For a wrong name a tuple
raises a bare TypeError, and a dict a bare KeyError. In the states that MCMC gets, every
NamedTuple is therefore replaced by a subclass, and every dict by a `NamedValues`, whose
errors list the known names. Names are checked before a new run
(`tsi.numpyro.extra_fields`); these containers serve chains that are continued, and
names of sites that are left out.
"""

import functools
from typing import Any

import jax

from tsi.errors import UnknownNameError


@jax.tree_util.register_pytree_with_keys_class
class NamedValues(dict):
    """A dict of collected values whose error for a wrong name lists the known names.

    Raises:
        UnknownNameError: for an unknown name, by index or `pop`.
    """

    def __missing__(self, name: Any) -> Any:
        raise UnknownNameError("collected value", name, self)

    def pop(self, name: Any, *default: Any) -> Any:
        """As `dict.pop`."""
        return super().pop(name, *default) if name in self or default else self[name]

    def copy(self) -> "NamedValues":
        """As `dict.copy`."""
        return NamedValues(self)

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Flatten into the values, in order of their names."""
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: Any, values: Any) -> "NamedValues":
        """Inverse of `tree_flatten_with_keys`."""
        return cls(zip(names, values, strict=True))


def _lookup(self: Any, index: Any) -> Any:
    if isinstance(index, str):
        raise UnknownNameError(
            f"field of {type(self).__name__}", index, type(self)._fields
        )
    return tuple.__getitem__(self, index)


@functools.cache
def _named_subclass(kind: type) -> type:
    """A picklable subclass of a NamedTuple whose errors list the field names."""
    return type(
        kind.__name__,
        (kind,),
        {
            "__slots__": (),
            "__doc__": kind.__doc__,
            "__getitem__": _lookup,
            "__reduce__": lambda self: (_reconstruct, (kind, tuple(self))),
            "plain_type": kind,
        },
    )


def _reconstruct(kind: type, values: tuple) -> Any:
    return _named_subclass(kind)(*values)


def with_names(tree: Any) -> Any:
    """Replace containers by ones whose errors list the known names."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        kind = getattr(type(tree), "plain_type", type(tree))
        return _named_subclass(kind)(*map(with_names, tree))
    if type(tree) in (dict, NamedValues):
        return NamedValues({name: with_names(value) for name, value in tree.items()})
    if type(tree) in (list, tuple):
        return type(tree)(map(with_names, tree))
    return tree


def without_names(tree: Any) -> Any:
    """Inverse of `with_names`."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        kind = getattr(type(tree), "plain_type", type(tree))
        return kind(*map(without_names, tree))
    if type(tree) in (dict, NamedValues):
        return {name: without_names(value) for name, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map(without_names, tree))
    return tree
