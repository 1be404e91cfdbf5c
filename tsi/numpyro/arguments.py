"""The arguments of `mcmc.run(key, *args, **kwargs)` for the programs of a target.

A target takes one pytree, `params`, while a numpyro model takes any arguments. Several
arguments, or keyword arguments, are therefore passed as one `ModelArguments`, which is
unpacked when a program is called.
"""

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError


class ModelArguments(NamedTuple):
    """Arguments of a program after `t` and `carry`, passed as the `params` of a target.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple
    kwargs: dict[str, Any]


def model_arguments(*args: Any, **kwargs: Any) -> Any:
    """Pack arguments into the `params` of a target.

    A single argument, positional or named `params`, is passed unchanged. Without
    arguments, a program receives None if its own argument is `params`, or a name that
    begins with an underscore, and nothing otherwise.
    """
    if not args and set(kwargs) == {"params"}:
        return kwargs["params"]
    if len(args) == 1 and not kwargs:
        return args[0]
    return ModelArguments(args, kwargs)


def params_of(target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The `params` that a numpyro kernel passes to its target.

    Raises:
        ConfigurationError: for several arguments, or keyword arguments, if the target
            is not made of programs and so takes only `params`.
    """
    params = model_arguments(*args, **kwargs)
    if getattr(target, "takes_arguments", False):
        return params
    if not args and not kwargs:
        return None
    if isinstance(params, ModelArguments):
        raise ConfigurationError(
            f"{type(target).__name__} takes one argument, `params`, but mcmc.run got "
            f"{len(args)} positional arguments and the keywords {sorted(kwargs)}. Pass "
            "one pytree; only targets of `program_target` take several arguments."
        )
    return params


def call(program: Callable[..., Any], *leading: Any, params: Any) -> Any:
    """Call a program with its leading arguments and the arguments packed in `params`.

    Raises:
        ConfigurationError: if the program does not take these arguments, or needs one
            that is not among them.
    """
    args, kwargs = (params,), {}
    if isinstance(params, ModelArguments):
        args, kwargs = params.args, params.kwargs
    try:
        signature = inspect.signature(program)
    except (TypeError, ValueError):
        signature = None
    if not args and not kwargs and _takes_params(signature, len(leading)):
        args = (None,)
    if signature is not None:
        try:
            signature.bind(*leading, *args, **kwargs)
        except TypeError as error:
            name = getattr(program, "__name__", type(program).__name__)
            raise ConfigurationError(
                f"{name}{signature} cannot be called with {len(leading)} arguments of "
                f"the step, {len(args)} positional arguments of the run and the "
                f"keywords {sorted(kwargs)}: {error}. Every program of a target gets "
                "the arguments of the run after those of the step, so give the run "
                "what all of its programs need."
            ) from error
    return program(*leading, *args, **kwargs)


def _takes_params(signature: inspect.Signature | None, place: int) -> bool:
    """Whether the argument at this index is `params`, which is None if not given."""
    if signature is None:
        return True
    name = next(itertools.islice(signature.parameters, place, None), "")
    return name == "params" or name.startswith("_")
