"""Pickle and print samplers as the call that made them.

A sampler is a tuple of nested functions. These cannot be pickled, and printing them
shows only addresses. The constructor and its arguments can be pickled, make the same
sampler again, and print as one line:

    @picklable
    def my_sampler(width: int = 4) -> Sampler:
        ...
        return Sampler(init, ask, tell, path_log_weight)

    my_sampler(width=8)    # prints my_sampler(width=8)
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
        fields: fields of the tuple that it returned, without the recipe.
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
    """Make the samplers, explorers or potentials of a constructor picklable.

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


def describe(value: Any) -> str:
    """The result of `__repr__` for a NamedTuple with a field `recipe`: one line.

    The line is the call that made the tuple, with the arguments that were given:
    `smc(potential=telescoping('odds'), schedule=every_step)`. Fields that were changed
    later follow as `._replace(...)`. A tuple without a recipe prints the fields that
    differ from their defaults.
    """
    recipe = value.recipe
    fields = value._replace(recipe=None)._asdict()
    if recipe is None:
        defaults = type(value)._field_defaults
        given = {
            name: field
            for name, field in fields.items()
            if name not in defaults or field is not defaults[name]
        }
        return _call(type(value).__name__, (), given)
    changed_fields = {n: v for n, v in fields.items() if recipe.fields[n] is not v}
    line = _call(recipe.constructor.__name__, recipe.args, recipe.kwargs)
    return line + (_call("._replace", (), changed_fields) if changed_fields else "")


def _call(name: str, args: tuple, kwargs: dict[str, Any]) -> str:
    named = (f"{key}={_argument(value)}" for key, value in kwargs.items())
    return f"{name}({', '.join([*map(_argument, args), *named])})"


def _argument(value: Any) -> str:
    """A value in one line: functions by name, arrays by type and shape."""
    if isinstance(value, functools.partial):
        # `ess_below(0.5)` is a partial of the private function `_ess_below`.
        function = value.func.__name__.lstrip("_")
        return _call(function, value.args, value.keywords)
    if hasattr(value, "shape") and hasattr(value, "dtype") and value.shape:
        return f"{value.dtype}{list(value.shape)}"
    name = getattr(value, "__name__", None)
    return name if isinstance(name, str) else " ".join(repr(value).split())


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
