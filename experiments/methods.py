"""The methods that experiments compare, by name, with the settings they run under.

Settings are the constructor's arguments, so what a row records is what was run. One
`Sampler` is built for each method and settings: compiled programs hang on it.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tsi.errors import UnknownNameError
from tsi.sampler import Sampler
from tsi.samplers.beam import beam
from tsi.samplers.best_of_n import best_of_n, weighted_best_of_n
from tsi.samplers.dvts import dvts
from tsi.samplers.entropic import entropic_particle_filter
from tsi.samplers.greedy import greedy
from tsi.samplers.particle_filter import particle_filter
from tsi.samplers.potentials import telescoping
from tsi.samplers.rebase import rebase
from tsi.samplers.schedules import ess_below
from tsi.samplers.self_consistency import self_consistency
from tsi.samplers.smc import smc


class Method(NamedTuple):
    """How a method is run.

    Args:
        constructor: makes the sampler from the settings.
        settings: the constructor's arguments; JSON types only.
        label: for tables and plots.
        temperature: of the policy, where the method fixes it; None for the run's own.
        independent: the sampler never resamples, so that all such methods share
            rollouts and smaller budgets are the first particles of larger ones.
        reads_reward: False for a method whose answer depends on no reward.
        annealed: the constructor also takes the target's `max_steps`.
    """

    constructor: Callable[..., Sampler]
    settings: dict[str, Any]
    label: str
    temperature: float | None = None
    independent: bool = False
    reads_reward: bool = True
    annealed: bool = False

    @property
    def deterministic(self) -> bool:
        """At temperature zero every seed and every particle is the same."""
        return self.temperature == 0.0


def _ess_triggered(ess_fraction: float, weights: str) -> Sampler:
    return smc(schedule=ess_below(ess_fraction), potential=telescoping(weights))


METHODS: dict[str, Method] = {
    "greedy": Method(greedy, {}, "greedy", temperature=0.0, reads_reward=False),
    "self_consistency": Method(
        self_consistency, {}, "self-consistency", independent=True, reads_reward=False
    ),
    "best_of_n": Method(
        best_of_n, {"weights": "reward"}, "best-of-N", independent=True
    ),
    "weighted_best_of_n": Method(
        weighted_best_of_n,
        {"weights": "reward"},
        "weighted best-of-N",
        independent=True,
    ),
    "beam": Method(beam, {"width": 4, "select": "argmax"}, "beam search"),
    "dvts": Method(dvts, {"width": 4, "select": "weighted_vote"}, "DVTS"),
    "rebase": Method(rebase, {"temperature": 0.2}, "REBASE"),
    "particle_filter": Method(
        particle_filter, {"weights": "odds", "select": "argmax"}, "particle filter"
    ),
    "smc": Method(_ess_triggered, {"ess_fraction": 0.5, "weights": "odds"}, "SMC"),
    "entropic": Method(
        entropic_particle_filter,
        {"weights": "odds", "variant": "corrected"},
        "entropic particle filter",
        annealed=True,
    ),
}
"""By name, in the order of tables."""

# What `tsi scale` compares unless told otherwise: it must fit a few minutes on 2 cores.
STANDARD = tuple(name for name in METHODS if name != "entropic")

# The sampler whose particles and weights all independent methods are read off.
SHARED_SOURCE = "weighted_best_of_n"


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UnknownNameError: there is none; the message lists the known ones.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]


def get_methods(names: Iterable[str]) -> dict[str, Method]:
    """The methods of those names in the order of tables.

    Args:
        names: of methods; "all" alone is every one, "standard" alone all but the
            entropic particle filter.

    Raises:
        UnknownNameError: one does not exist.
    """
    names = list(names)
    groups = {"all": tuple(METHODS), "standard": STANDARD}
    chosen = groups.get(names[0], names) if len(names) == 1 else names
    for name in chosen:
        get_method(name)
    return {name: method for name, method in METHODS.items() if name in chosen}


def method_settings(name: str, max_steps: int) -> dict[str, Any]:
    """What a row of the method records besides the run's settings."""
    method = get_method(name)
    settings = dict(method.settings)
    if method.annealed:
        settings["max_steps"] = max_steps
    recorded: dict[str, Any] = {"sampler": settings}
    if method.temperature is not None:
        recorded["temperature"] = method.temperature
    return recorded


@functools.cache
def sampler_of(name: str, max_steps: int) -> Sampler:
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
    """The budgets at which a method is run: greedy decoding has only one rollout."""
    return [1] if get_method(name).deterministic else sorted(set(budgets))
