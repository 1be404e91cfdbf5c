"""Samplers that pickle: what is kept is how they were made.

A sampler is a tuple of functions within a function, which pickle does not take. Its
constructor and arguments do pickle, and make the same sampler again:

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
        constructor: what was called; a function of a module.
        args: its positional arguments.
        kwargs: its named arguments.
        made: what it returned, without the recipe.
    """

    def __init__(
        self,
        constructor: Callable[..., Any],
        args: tuple,
        kwargs: dict[str, Any],
        made: dict[str, Any],
    ) -> None:
        self.constructor, self.args, self.kwargs = constructor, args, kwargs
        self.made = made


def picklable(constructor: Callable[P, R]) -> Callable[P, R]:
    """A constructor whose samplers, explorers or potentials pickle.

    Args:
        constructor: a function of a module, so that pickle finds it by its name. What
            it is given must pickle too.
    """

    @functools.wraps(constructor)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
        value: Any = constructor(*args, **kwargs)
        made = value._replace(recipe=None)._asdict()
        return value._replace(recipe=Recipe(recorded, args, kwargs, made))

    return recorded


def reduced(value: Any) -> tuple[Callable[..., Any], tuple]:
    """What `__reduce__` of a NamedTuple with a field `recipe` returns.

    A tuple that was changed since it was made is no longer what its recipe makes, and
    is pickled field by field.
    """
    recipe = value.recipe
    fields = value._replace(recipe=None)._asdict()
    if recipe is None or any(fields[n] is not v for n, v in recipe.made.items()):
        return type(value), tuple(fields.values())
    return _again, (recipe.constructor, recipe.args, recipe.kwargs)


def _again(constructor: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    return constructor(*args, **kwargs)
