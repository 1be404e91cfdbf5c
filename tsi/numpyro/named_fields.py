"""Kernel states that answer a wrong field name with a sentence.

MCMC looks up `extra_fields` by attribute and then by index, which of a tuple is a bare
TypeError and of a dict a bare KeyError. States are therefore handed to MCMC with every
NamedTuple in them replaced by a subclass, and every dict by a `NamedValues`, that say
which names there are.
"""

import functools
from typing import Any

import jax

from tsi.errors import UnknownNameError


@jax.tree_util.register_pytree_with_keys_class
class NamedValues(dict):
    """A dict, in particular of what a chain collects; a wrong name is a sentence.

    Raises:
        UnknownNameError: for a name that is not in it, by index or `pop`.
    """

    def __missing__(self, name: Any) -> Any:
        raise UnknownNameError("collected value", name, self)

    def pop(self, name: Any, *default: Any) -> Any:
        """As of a dict."""
        return super().pop(name, *default) if name in self or default else self[name]

    def copy(self) -> "NamedValues":
        """As of a dict."""
        return NamedValues(self)

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """As a pytree: the values in the order of their names."""
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: Any, values: Any) -> "NamedValues":
        """The inverse."""
        return cls(zip(names, values, strict=True))


def _lookup(self: Any, index: Any) -> Any:
    if isinstance(index, str):
        raise UnknownNameError(
            f"field of {type(self).__name__}", index, type(self)._fields
        )
    return tuple.__getitem__(self, index)


@functools.cache
def _talking(kind: type) -> type:
    """The subclass of a NamedTuple; it pickles as what it was made of."""
    return type(
        kind.__name__,
        (kind,),
        {
            "__slots__": (),
            "__doc__": kind.__doc__,
            "__getitem__": _lookup,
            "__reduce__": lambda self: (_made, (kind, tuple(self))),
            "silent": kind,
        },
    )


def _made(kind: type, values: tuple) -> Any:
    return _talking(kind)(*values)


def with_names(tree: Any) -> Any:
    """The same values in containers that answer a wrong name with a sentence."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        kind = getattr(type(tree), "silent", type(tree))
        return _talking(kind)(*map(with_names, tree))
    if type(tree) in (dict, NamedValues):
        return NamedValues({name: with_names(value) for name, value in tree.items()})
    if type(tree) in (list, tuple):
        return type(tree)(map(with_names, tree))
    return tree


def without_names(tree: Any) -> Any:
    """The same values in the containers that `with_names` was given."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        kind = getattr(type(tree), "silent", type(tree))
        return kind(*map(without_names, tree))
    if type(tree) in (dict, NamedValues):
        return {name: without_names(value) for name, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map(without_names, tree))
    return tree
