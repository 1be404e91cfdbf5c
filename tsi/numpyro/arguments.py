"""What `mcmc.run(key, *args, **kwargs)` hands on to the programs of a target.

A target takes one pytree, `params`. A numpyro model takes whatever it likes, so that
several arguments, or named ones, travel as one `ModelArguments` and are spread out
again where a program is called.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError


class ModelArguments(NamedTuple):
    """Arguments of a program behind `t` and `carry`, given as one target's `params`.

    Attributes:
        args: positional arguments.
        kwargs: named arguments.
    """

    args: tuple
    kwargs: dict[str, Any]


def model_arguments(*args: Any, **kwargs: Any) -> Any:
    """The `params` that stand for these arguments.

    One argument, positional or called `params`, stands for itself, and no argument for
    None, which every program is then given.
    """
    if not args and set(kwargs) <= {"params"}:
        return kwargs.get("params")
    if len(args) == 1 and not kwargs:
        return args[0]
    return ModelArguments(args, kwargs)


def params_of(target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The `params` that a numpyro kernel passes on to its target.

    Raises:
        ConfigurationError: for several arguments, or named ones, of a target that is
            made of no programs and so takes `params` alone.
    """
    params = model_arguments(*args, **kwargs)
    several = isinstance(params, ModelArguments)
    if several and not getattr(target, "takes_arguments", False):
        raise ConfigurationError(
            f"{type(target).__name__} takes one argument, `params`, and mcmc.run was "
            f"given {len(args)} positional and {sorted(kwargs)}. Give it one pytree; "
            "targets of `program_target` take the arguments of their programs."
        )
    return params


def call(program: Callable[..., Any], *leading: Any, params: Any) -> Any:
    """The program run with its leading arguments and those that `params` stands for.

    Raises:
        ConfigurationError: the program cannot be called so.
    """
    args, kwargs = (params,), {}
    if isinstance(params, ModelArguments):
        args, kwargs = params.args, params.kwargs
    try:
        signature = inspect.signature(program)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            signature.bind(*leading, *args, **kwargs)
        except TypeError as error:
            name = getattr(program, "__name__", type(program).__name__)
            raise ConfigurationError(
                f"{name}{signature} cannot be called with {len(leading)} arguments of "
                f"the step, {len(args)} positional ones of the run and "
                f"{sorted(kwargs)}: {error}. Every program of a target is given the "
                "arguments of the run behind those of the step."
            ) from error
    return program(*leading, *args, **kwargs)
