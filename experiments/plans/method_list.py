"""The methods that experiments compare, with their settings.

Settings are the constructor's arguments, so that rows record exactly what was run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from tsi import samplers
from tsi.engine.adaptive import Rounds
from tsi.engine.stopping import answer_error_below, sure_majority
from tsi.explorer import Explorer
from tsi.sampler import Sampler


class Method(NamedTuple):
    """How a method is run.

    Args:
        constructor: makes the sampler from the settings.
        settings: the constructor's arguments; JSON types only.
        label: for tables and plots.
        temperature: of the policy, if the method fixes it; None for the run's own.
        proposal_temperature: factor on the policy's temperature at which tokens are
            drawn; weights are corrected for it. None to draw from the policy.
        fixes_proposal: whether the proposal is a part of the method. Without it, the
            method has the same target with the policy itself as the proposal.
        never_resamples: whether the sampler never resamples. All such methods share
            rollouts, and smaller budgets are the first particles of larger ones.
        reads_reward: False for a method whose answer does not depend on the reward.
        takes_max_steps: whether the constructor also takes the target's `max_steps`.
        min_particles: the smallest N of the method; smaller budgets are left out.
        rounds: ``N -> Rounds`` for a method that stops early and uses at most N
            particles; None for the others.
    """

    constructor: Callable[..., Sampler | Explorer]
    settings: dict[str, Any]
    label: str
    temperature: float | None = None
    proposal_temperature: float | None = None
    fixes_proposal: bool = False
    never_resamples: bool = False
    reads_reward: bool = True
    takes_max_steps: bool = False
    min_particles: int = 1
    rounds: Callable[[int], Rounds] | None = None

    def proposal_over(self, is_served: bool) -> float | None:
        """The factor `proposal_temperature` for a policy behind a server or here.

        A server gives the probabilities of one distribution, so the policy proposes.
        """
        factor = self.proposal_temperature
        return 1.0 if factor and is_served and not self.fixes_proposal else factor

    @property
    def is_divisible(self) -> bool:
        """Whether its particles may be divided among islands; rounds are islands."""
        return self.rounds is None and not self.is_deterministic

    @property
    def is_deterministic(self) -> bool:
        """Whether all seeds and particles are the same, at temperature zero."""
        return self.temperature == 0.0


def _bind_telescoping(constructor: Callable[..., Any]) -> Callable[..., Any]:
    """A constructor with the telescoping potential, which takes `weights` by name."""

    def make(weights: str, **settings: Any) -> Sampler | Explorer:
        return constructor(potential=samplers.telescoping(weights), **settings)

    return make


def _smc_below_ess(ess_fraction: float, weights: str) -> Sampler:
    return samplers.smc(
        schedule=samplers.ess_below(ess_fraction),
        potential=samplers.telescoping(weights),
    )


def _divisor(budget: int, max_size: int) -> int:
    """The largest divisor of the budget that is at most `max_size`."""
    return next(size for size in range(max(max_size, 1), 0, -1) if budget % size == 0)


def _majority_rounds(budget: int) -> Rounds:
    size = _divisor(budget, 4)
    return Rounds(size, budget // size, sure_majority(0.95))


def _island_rounds(budget: int) -> Rounds:
    # Eight rounds or more, because errors are estimated from the fourth round on.
    size = _divisor(budget, min(4, budget // 8))
    return Rounds(size, budget // size, answer_error_below(0.1))


def _uct(width: int, c: float) -> Explorer:
    return samplers.mcts(width, bonus=samplers.uct(c))


def _power_sampling_by_blocks(
    num_blocks: int, max_steps: int, **settings: Any
) -> Explorer:
    # The released code divides every text into 16 blocks; budgets here allow fewer.
    return samplers.power_sampling(block_steps=-(-max_steps // num_blocks), **settings)


ODDS = {"weights": "odds"}

METHODS: dict[str, Method] = {
    "greedy": Method(
        samplers.greedy, {}, "greedy", temperature=0.0, reads_reward=False
    ),
    "self_consistency": Method(
        samplers.self_consistency,
        {},
        "self-consistency",
        never_resamples=True,
        reads_reward=False,
    ),
    "best_of_n": Method(
        samplers.best_of_n, {"weights": "reward"}, "best-of-N", never_resamples=True
    ),
    "weighted_best_of_n": Method(
        samplers.weighted_best_of_n,
        {"weights": "reward"},
        "weighted best-of-N",
        never_resamples=True,
    ),
    "beam_search": Method(
        samplers.beam_search, {"width": 4, "select": "argmax"}, "beam search"
    ),
    "dvts": Method(samplers.dvts, {"width": 4, "select": "weighted_vote"}, "DVTS"),
    "rebase": Method(samplers.rebase, {"temperature": 0.2}, "REBASE"),
    "rebase_released": Method(
        samplers.rebase, {"temperature": 0.2, "variant": "released"}, "REBASE, released"
    ),
    "step_beam_search": Method(
        samplers.step_beam_search, {"width": 4}, "step-level beam search"
    ),
    "step_beam_search_released": Method(
        samplers.step_beam_search,
        {"width": 4, "variant": "released"},
        "step-level beam search, released",
    ),
    "lookahead_search": Method(
        samplers.lookahead_search, {"width": 4, "k": 1}, "lookahead search"
    ),
    "mcts": Method(samplers.mcts, {"width": 4}, "MCTS (PUCT)"),
    "mcts_uct": Method(_uct, {"width": 4, "c": 1.0}, "MCTS (UCT)"),
    "ab_mcts": Method(samplers.ab_mcts, {"posterior": "gaussian"}, "AB-MCTS"),
    "particle_filter": Method(
        samplers.particle_filter,
        {"weights": "odds", "select": "argmax"},
        "particle filter",
    ),
    "particle_filter_released": Method(
        samplers.particle_filter, {"variant": "released"}, "particle filter, released"
    ),
    "particle_filter_printed": Method(
        samplers.particle_filter, {"variant": "printed"}, "particle filter, printed"
    ),
    "smc": Method(_smc_below_ess, {"ess_fraction": 0.5, "weights": "odds"}, "SMC"),
    "entropic_particle_filter": Method(
        samplers.entropic_particle_filter,
        {"weights": "odds", "variant": "corrected"},
        "entropic particle filter",
        takes_max_steps=True,
    ),
    "entropic_particle_filter_released": Method(
        samplers.entropic_particle_filter,
        {"variant": "released"},
        "entropic particle filter, released",
        takes_max_steps=True,
    ),
    "annealed_resampling": Method(
        samplers.annealed_resampling,
        {"schedule": "ess", "weights": "odds"},
        "annealed resampling",
    ),
    "auxiliary_particle_filter": Method(
        _bind_telescoping(samplers.auxiliary_particle_filter),
        {"epsilon": 0.1, **ODDS},
        "auxiliary particle filter",
    ),
    "smc_steering": Method(
        _bind_telescoping(samplers.smc_steering), {"width": 4, **ODDS}, "SMC steering"
    ),
    "finished_branch_smc": Method(
        _bind_telescoping(samplers.finished_branch_smc),
        dict(ODDS),
        "finished-branch SMC",
    ),
    "island_exchange": Method(
        _bind_telescoping(samplers.island_exchange),
        {"num_islands": 4, **ODDS},
        "islands with exchange",
        min_particles=4,
    ),
    "pruning": Method(
        _bind_telescoping(samplers.pruning), {"epsilon": 0.1, **ODDS}, "pruning SMC"
    ),
    "particle_gibbs": Method(
        _bind_telescoping(samplers.particle_gibbs),
        {"num_sweeps": 4, **ODDS},
        "particle Gibbs",
        min_particles=8,
    ),
    "particle_gibbs_ancestor": Method(
        _bind_telescoping(samplers.particle_gibbs),
        {"num_sweeps": 4, "ancestor_sampling": True, **ODDS},
        "particle Gibbs, ancestor sampling",
        min_particles=8,
    ),
    "particle_gibbs_backward": Method(
        _bind_telescoping(samplers.particle_gibbs),
        {"num_sweeps": 4, "backward_sampling": True, **ODDS},
        "particle Gibbs, backward sampling",
        min_particles=8,
    ),
    "particle_gibbs_released": Method(
        samplers.particle_gibbs,
        {"num_sweeps": 4, "variant": "released"},
        "particle Gibbs, released",
        min_particles=8,
    ),
    "particle_gibbs_printed": Method(
        samplers.particle_gibbs,
        {"num_sweeps": 4, "variant": "printed"},
        "particle Gibbs, printed",
        min_particles=8,
    ),
    "pimh": Method(
        _bind_telescoping(samplers.pimh),
        {"num_iterations": 4, **ODDS},
        "PIMH",
        min_particles=4,
    ),
    "parallel_tempering": Method(
        _bind_telescoping(samplers.parallel_tempering),
        {"num_temperatures": 2, "num_sweeps": 2, **ODDS},
        "parallel tempering",
        min_particles=8,
    ),
    "parallel_tempering_printed": Method(
        samplers.parallel_tempering,
        {"num_temperatures": 2, "num_sweeps": 2, "variant": "printed"},
        "parallel tempering, printed",
        min_particles=8,
    ),
    "tempered_smc": Method(
        _bind_telescoping(samplers.tempered_smc),
        {"num_levels": 3, "num_moves": 1, **ODDS},
        "tempered SMC",
        min_particles=8,
    ),
    "waste_free_smc": Method(
        _bind_telescoping(samplers.waste_free_smc),
        {"num_levels": 2, "chain_length": 2, **ODDS},
        "waste-free SMC",
        min_particles=8,
    ),
    "quest": Method(samplers.quest, {"beta": 0.1}, "QUEST"),
    "power_sampling": Method(
        samplers.power_sampling,
        {"alpha": 4.0},
        "power sampling",
        proposal_temperature=0.25,
        reads_reward=False,
    ),
    "power_sampling_released": Method(
        _power_sampling_by_blocks,
        {"alpha": 4.0, "variant": "released", "num_blocks": 4},
        "power sampling, released",
        proposal_temperature=0.25,
        fixes_proposal=True,
        reads_reward=False,
        takes_max_steps=True,
        min_particles=8,
    ),
    "power_sampling_printed": Method(
        _power_sampling_by_blocks,
        {"alpha": 4.0, "variant": "printed", "num_blocks": 4},
        "power sampling, printed",
        proposal_temperature=0.25,
        fixes_proposal=True,
        reads_reward=False,
        takes_max_steps=True,
        min_particles=8,
    ),
    "power_smc": Method(
        samplers.power_smc,
        {"alpha": 4.0, "ramp_steps": 4},
        "power SMC",
        proposal_temperature=0.25,
        reads_reward=False,
    ),
    "adaptive_consistency": Method(
        samplers.self_consistency,
        {},
        "adaptive self-consistency",
        reads_reward=False,
        rounds=_majority_rounds,
    ),
    "adaptive_smc": Method(
        _smc_below_ess,
        {"ess_fraction": 0.5, "weights": "odds"},
        "adaptive SMC",
        rounds=_island_rounds,
    ),
}
"""By name, in the order of tables."""

STANDARD = (
    "greedy",
    "self_consistency",
    "best_of_n",
    "weighted_best_of_n",
    "beam_search",
    "dvts",
    "rebase",
    "particle_filter",
    "smc",
)
"""The methods that `tsi scale` compares by default: a few minutes on two cores."""

SHARED_SOURCE = "weighted_best_of_n"
"""The method whose run gives the rows of all independent methods."""
