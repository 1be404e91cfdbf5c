"""Methods by name: their samplers, recorded settings and usable budgets.

A name may have a temperature of the policy: ``smc@0.4`` is the method ``smc`` at
temperature 0.4. Without one, a method runs at the temperature of the run.

One `Sampler` is built per method and settings, because compiled programs are cached by
sampler.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tsi.engine.islands import island_size
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.plans.method_list import METHODS, SHARED_SOURCE, STANDARD, Method
from tsi.explorer import Explorer
from tsi.sampler import Sampler

__all__ = ["METHODS", "SHARED_SOURCE", "STANDARD", "Method"]

AT = "@"
"""Between the name of a method and a temperature."""


def get_method(name: str) -> Method:
    """The method of that name, such as "smc" or "smc@0.4".

    Raises:
        UnknownNameError: there is no such method; the message lists the known ones.
        ConfigurationError: its temperature is not a positive number in its shortest
            form, or the method fixes another.
    """
    base, at, number = name.partition(AT)
    if base not in METHODS:
        raise UnknownNameError("method", base, METHODS)
    return _at_temperature(name, base, number) if at else METHODS[base]


def _at_temperature(name: str, base: str, number: str) -> Method:
    try:
        temperature = float(number)
    except ValueError:
        temperature = math.nan
    # In float32, in which it is used, it may be zero or infinite.
    is_positive = 0.0 < float(np.float32(temperature)) < math.inf
    if not is_positive or name != name_at(base, temperature):
        raise ConfigurationError(
            f"The method {name!r} needs a positive temperature after {AT}, in its "
            f"shortest form of at most six digits, as in {base}{AT}0.4."
        )
    method = METHODS[base]
    if method.temperature is not None:
        raise ConfigurationError(
            f"The method {base} has the temperature {method.temperature:g}, and cannot "
            f"run as {name!r}. Use {base}."
        )
    label = f"{method.label}, T = {number}"
    return method._replace(temperature=temperature, label=label)


def name_at(base: str, temperature: float) -> str:
    """The name of a method at a temperature of the policy."""
    return f"{base}{AT}{temperature:g}"


def base_of(name: str) -> str:
    """The name of a method without a temperature."""
    return name.partition(AT)[0]


def shared_source_of(name: str) -> str:
    """The method whose run has the rollouts of an independent method."""
    return SHARED_SOURCE + name.removeprefix(base_of(name))


def sort_methods(names: Iterable[str]) -> list[str]:
    """Different names of methods in the order of tables, then by temperature."""
    places = {name: place for place, name in enumerate(METHODS)}

    def key(name: str) -> tuple[int, float]:
        return places[base_of(name)], get_method(name).temperature or 0.0

    return sorted(set(names), key=key)


def get_methods(names: Iterable[str]) -> dict[str, Method]:
    """The methods of these names, in the order of tables.

    Args:
        names: of methods; or only "all" for every method, or only "standard" for those
            of the published comparison.

    Raises:
        UnknownNameError: there is no method of a name.
        ConfigurationError: see `get_method`.
    """
    names = list(names)
    groups = {"all": tuple(METHODS), "standard": STANDARD}
    selected_names = groups.get(names[0], names) if len(names) == 1 else names
    methods = {name: get_method(name) for name in selected_names}
    return {name: methods[name] for name in sort_methods(methods)}


def expand_temperatures(
    names: Iterable[str], temperatures: Iterable[float]
) -> list[str]:
    """Each method at each temperature; one with its own is unchanged.

    Raises:
        ConfigurationError: a temperature is not a positive number.
    """
    temperatures = list(temperatures)
    for temperature in temperatures:
        if float(f"{temperature:g}") != temperature:
            raise ConfigurationError(
                f"The temperature {temperature} has more than six digits. Round it, as "
                f"to {temperature:g}, because it becomes a part of names."
            )
    expanded_names = []
    for name in names:
        if get_method(name).temperature is None:
            expanded_names += [
                name_at(name, temperature) for temperature in temperatures
            ]
        else:
            expanded_names.append(name)
    return list(get_methods(expanded_names))


def method_settings(
    name: str, max_steps: int, *, is_served: bool = False
) -> dict[str, Any]:
    """Settings that a row of the method records besides the settings of the run.

    Args:
        name: of the method.
        max_steps: the target's step limit.
        is_served: whether the policy is behind a server.
    """
    method = get_method(name)
    settings = dict(method.settings)
    if method.takes_max_steps:
        settings["max_steps"] = max_steps
    row_settings: dict[str, Any] = {"sampler": settings}
    if method.temperature is not None:
        row_settings["temperature"] = method.temperature
    proposal = method.proposal_over(is_served)
    if proposal is not None:
        row_settings["proposal_temperature"] = proposal
    return row_settings


class MethodSettings(Mapping[str, dict[str, Any]]):
    """The settings of every method in a run, by name; names without temperature first.

    Args:
        max_steps: the target's step limit.
        is_served: whether the policy is behind a server.
    """

    def __init__(self, max_steps: int, *, is_served: bool = False) -> None:
        self.max_steps, self.is_served = max_steps, is_served

    def __getitem__(self, name: str) -> dict[str, Any]:
        return method_settings(name, self.max_steps, is_served=self.is_served)

    def __iter__(self) -> Iterator[str]:
        return iter(METHODS)

    def __len__(self) -> int:
        return len(METHODS)


def sampler_of(name: str, max_steps: int) -> Sampler | Explorer:
    """The method's sampler; the same object for the same arguments.

    Args:
        name: of the method; its temperature does not matter.
        max_steps: the target's step limit.

    Raises:
        UnknownNameError: there is no such method.
        ConfigurationError: see `get_method`.
    """
    get_method(name)
    return _sampler_of(base_of(name), max_steps)


@functools.cache
def _sampler_of(name: str, max_steps: int) -> Sampler | Explorer:
    settings = method_settings(name, max_steps)["sampler"]
    return METHODS[name].constructor(**settings)


def particles_per_run(name: str, num_particles: int, num_islands: int) -> int:
    """Particles of a problem that one run of the engine has: of a round or an island.

    Args:
        name: of a method.
        num_particles: N.
        num_islands: islands among which N is divided.

    Raises:
        ConfigurationError: the islands cannot have equal numbers of particles.
    """
    method = get_method(name)
    if method.rounds is not None:
        return method.rounds(num_particles).size
    if method.is_divisible:
        return island_size(num_particles, num_islands)
    return num_particles


def budgets_of(name: str, budgets: Iterable[int], num_islands: int = 1) -> list[int]:
    """The budgets at which a method is run: 1 for greedy, from `min_particles`.

    Args:
        name: of a method.
        budgets: of the plan.
        num_islands: islands, each of which has at least `min_particles`.
    """
    method = get_method(name)
    if method.is_deterministic:
        return [1]
    smallest = method.min_particles * (num_islands if method.is_divisible else 1)
    return sorted({budget for budget in budgets if budget >= smallest})
