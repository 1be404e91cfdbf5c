"""What the weights and the evidence of a result estimate."""

import math
from typing import NamedTuple

from tsi.explorer import Explorer
from tsi.sampler import Sampler, Select


class Estimand(NamedTuple):
    """What the numbers of a result estimate, as stated by its sampler.

    Args:
        has_target: whether the weights are importance weights of a target and the log
            evidence estimates its normalising constant. False for a search, whose
            weights are ranks.
        power: the target's density is p(path)^power exp(path_log_weight).
        auxiliary_temperatures: temperatures of further targets that were sampled
            jointly, as in parallel tempering; their evidences are factors of the
            reported one. NaN for a target that is not a tempered version of the first.
        chain: the particles are states of Markov chains, which depend on each other.
        select: the rule that chooses one answer; see `tsi.results.selection.select`.
        reads_reward: False for a method whose answer does not depend on the reward. The
            caller sets it, since it depends on weights and selection rule; the engine
            leaves it True.
    """

    has_target: bool = True
    power: float = 1.0
    auxiliary_temperatures: tuple[float, ...] = ()
    chain: bool = False
    select: Select = "posterior"
    reads_reward: bool = True

    @property
    def is_weighted_sample(self) -> bool:
        """Whether the weights alone give effective sample sizes and errors."""
        return self.has_target and not self.chain

    @property
    def evidence(self) -> str:
        """The quantity whose logarithm is the log evidence, as a formula in words."""
        if not self.has_target:
            return "none, because the method has no target"
        power = "" if self.power == 1.0 else f"^{self.power:g}"
        formula = f"sum of p(path){power} exp(path log weight)"
        count = len(self.auxiliary_temperatures)
        if not count:
            return formula
        temperatures = [t for t in self.auxiliary_temperatures if not math.isnan(t)]
        which = (
            f" ({', '.join(f'{t:g}' for t in temperatures)})" if temperatures else ""
        )
        return f"{formula}, times those of {count} other temperatures{which}"


def estimand_of(sampler: Sampler | Explorer, *, reads_reward: bool = True) -> Estimand:
    """The estimand of the results of a sampler.

    Args:
        sampler: the sampler of the run.
        reads_reward: False for a method whose answer does not depend on the reward.
    """
    has_target = sampler.path_log_weight is not None
    if isinstance(sampler, Sampler):
        return Estimand(has_target, select=sampler.select, reads_reward=reads_reward)
    count = len(sampler.auxiliary)
    return Estimand(
        has_target,
        sampler.power,
        sampler.auxiliary_temperatures or (math.nan,) * count,
        sampler.chain,
        sampler.select,
        reads_reward,
    )
