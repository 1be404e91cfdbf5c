"""Samplers that can be pickled, as the call that made them.

A sampler is a tuple of nested functions, which cannot be pickled. Its constructor and
arguments can, and make the same sampler again:

    @picklable
    def my_sampler(width: int = 4) -> Sampler:
        ...
        return Sampler(init, ask, tell, path_log_weight)
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Recipe:
    """The call that made a tuple of functions.

    Args:
        constructor: the function that was called, defined in a module.
        args: its positional arguments.
        kwargs: its keyword arguments.
        fields: of the tuple that it returned, without the recipe.
    """

    def __init__(
        self,
        constructor: Callable[..., Any],
        args: tuple,
        kwargs: dict[str, Any],
        fields: dict[str, Any],
    ) -> None:
        self.constructor, self.args, self.kwargs = constructor, args, kwargs
        self.fields = fields


def picklable(constructor: Callable[P, R]) -> Callable[P, R]:
    """Let the samplers, explorers or potentials of a constructor be pickled.

    Args:
        constructor: a function of a module, which pickle finds by its name. Its
            arguments must be picklable.
    """

    @functools.wraps(constructor)
    def construct(*args: P.args, **kwargs: P.kwargs) -> R:
        value: Any = constructor(*args, **kwargs)
        fields = value._replace(recipe=None)._asdict()
        return value._replace(recipe=Recipe(construct, args, kwargs, fields))

    return construct


def reduce_to_recipe(value: Any) -> tuple[Callable[..., Any], tuple]:
    """The result of `__reduce__` for a NamedTuple with a field `recipe`.

    A tuple that differs from the result of its recipe is pickled field by field.
    """
    recipe = value.recipe
    fields = value._replace(recipe=None)._asdict()
    if recipe is None or any(fields[n] is not v for n, v in recipe.fields.items()):
        return type(value), tuple(fields.values())
    return _reconstruct, (recipe.constructor, recipe.args, recipe.kwargs)


def _reconstruct(constructor: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    return constructor(*args, **kwargs)
