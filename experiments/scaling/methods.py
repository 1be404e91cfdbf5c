"""Methods by name: their samplers, recorded settings and usable budgets.

One `Sampler` is built per method and settings, because compiled programs are cached by
sampler.
"""

import functools
from collections.abc import Iterable
from typing import Any

from tsi.errors import UnknownNameError
from tsi.experiments.scaling.method_list import METHODS, SHARED_SOURCE, STANDARD, Method
from tsi.explorer import Explorer
from tsi.sampler import Sampler

__all__ = ["METHODS", "SHARED_SOURCE", "STANDARD", "Method"]


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UnknownNameError: there is no such method; the message lists the known ones.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]


def get_methods(names: Iterable[str]) -> dict[str, Method]:
    """The methods of these names, in the order of tables.

    Args:
        names: of methods; or "all" alone for every method, or "standard" alone for
            those of the published comparison.

    Raises:
        UnknownNameError: there is no method of a name.
    """
    names = list(names)
    groups = {"all": tuple(METHODS), "standard": STANDARD}
    selected_names = groups.get(names[0], names) if len(names) == 1 else names
    for name in selected_names:
        get_method(name)
    return {name: method for name, method in METHODS.items() if name in selected_names}


def method_settings(name: str, max_steps: int) -> dict[str, Any]:
    """Settings that a row of the method records besides the settings of the run."""
    method = get_method(name)
    settings = dict(method.settings)
    if method.annealed:
        settings["max_steps"] = max_steps
    recorded: dict[str, Any] = {"sampler": settings}
    if method.temperature is not None:
        recorded["temperature"] = method.temperature
    if method.proposal_temperature is not None:
        recorded["proposal_temperature"] = method.proposal_temperature
    return recorded


@functools.cache
def sampler_of(name: str, max_steps: int) -> Sampler | Explorer:
    """The method's sampler; the same object for the same arguments.

    Args:
        name: of the method.
        max_steps: the target's step limit.

    Raises:
        UnknownNameError: there is no such method.
    """
    settings = method_settings(name, max_steps)["sampler"]
    return get_method(name).constructor(**settings)


def budgets_of(name: str, budgets: Iterable[int]) -> list[int]:
    """The budgets at which a method is run: 1 for greedy, none below its `smallest`."""
    method = get_method(name)
    if method.deterministic:
        return [1]
    return sorted({budget for budget in budgets if budget >= method.smallest})
