"""Reproductions of published claims, one file per claim.

A module's docstring has the claim, its source, the expected numbers, the cost and the
command. ``FULL`` are the experiments of the claim on the published models. ``SMALL``
tests the same claim on the models of this package, in minutes on two cores. The
outcomes may differ: the small models are not those of the claim.
"""

import importlib
from typing import NamedTuple

from tsi.errors import UnknownNameError
from tsi.experiments.experiment import Drawing, Experiment, Summary, check_experiments

NAMES = (
    "main_figure",
    "headline",
    "reward_choice",
    "aggregation",
    "policy_temperature",
    "particle_gibbs",
    "parallel_chains",
    "weights",
    "overconfident_reward",
    "difficulty",
    "tuned_temperature",
    "self_certainty",
    "power_sampling",
)


class Reproduction(NamedTuple):
    """A claim and its experiments.

    Attributes:
        name: of the module.
        claim: its docstring.
        full: experiments on the published models.
        small: experiments on embedded models.
        summarise: what the small experiments say about the claim; None for their
            comparison alone.
        draw: their figures, in addition to those of each experiment.
    """

    name: str
    claim: str
    full: list[Experiment]
    small: list[Experiment]
    summarise: Summary | None = None
    draw: Drawing | None = None

    @property
    def is_small(self) -> bool:
        """Whether nothing was published, so that all runs are on embedded models."""
        return self.full == self.small


def get_reproduction(name: str) -> Reproduction:
    """The reproduction of that name.

    Raises:
        UnknownNameError: there is none; the message lists the known ones.
    """
    if name not in NAMES:
        raise UnknownNameError("reproduction", name, NAMES)
    module = importlib.import_module(f"{__name__}.{name}")
    return Reproduction(
        name,
        (module.__doc__ or "").strip(),
        check_experiments(module.FULL),
        check_experiments(module.SMALL),
        getattr(module, "summarise", None),
        getattr(module, "draw", None),
    )
