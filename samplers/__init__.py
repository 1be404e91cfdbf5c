"""Samplers: resampling schemes and one algorithm per file.

Every constructor returns a `tsi.Sampler` or a `tsi.Explorer`; see `docs/samplers.md`.
"""

from tsi.samplers.ab_mcts import ab_mcts
from tsi.samplers.annealed_resampling import annealed_resampling
from tsi.samplers.auxiliary_particle_filter import auxiliary_particle_filter
from tsi.samplers.beam_search import beam_search
from tsi.samplers.best_of_n import best_of_n, weighted_best_of_n
from tsi.samplers.contrastive_twist import fit_twist
from tsi.samplers.dvts import dvts
from tsi.samplers.entropic_particle_filter import entropic_particle_filter
from tsi.samplers.evidence_bounds import EvidenceBounds, evidence_bounds
from tsi.samplers.finished_branch_smc import finished_branch_smc
from tsi.samplers.greedy import greedy
from tsi.samplers.island_exchange import island_exchange
from tsi.samplers.lookahead_search import lookahead_search
from tsi.samplers.mcts import mcts, puct, uct
from tsi.samplers.parallel_tempering import parallel_tempering
from tsi.samplers.particle_filter import particle_filter
from tsi.samplers.particle_gibbs import particle_gibbs
from tsi.samplers.parts.allocation import (
    island_argmax,
    rebase_allocation,
    top_k_replicate,
)
from tsi.samplers.parts.optimal_resampling import optimal_resampling
from tsi.samplers.parts.potentials import (
    latest,
    product,
    telescoping,
    terminal,
    uniform,
)
from tsi.samplers.parts.reproduction import (
    Group,
    Offspring,
    Reproduction,
    at_mean_weight,
    by_priority,
)
from tsi.samplers.parts.resampling import (
    multinomial,
    residual,
    ssp,
    stratified,
    systematic,
)
from tsi.samplers.parts.schedules import ess_below, every_step, never
from tsi.samplers.pimh import pimh
from tsi.samplers.power_sampling import power_sampling
from tsi.samplers.power_smc import power_smc
from tsi.samplers.pruning import pruning
from tsi.samplers.quest import quest
from tsi.samplers.rebase import rebase
from tsi.samplers.self_consistency import self_consistency
from tsi.samplers.smc import SMCInfo, SMCState, smc
from tsi.samplers.smc_steering import expansion, smc_steering
from tsi.samplers.step_beam_search import step_beam_search
from tsi.samplers.suffix_metropolis import suffix_metropolis
from tsi.samplers.tempered_smc import tempered_smc
from tsi.samplers.twisted_smc import twisted_smc
from tsi.samplers.waste_free_smc import waste_free_smc

__all__ = [
    "EvidenceBounds",
    "Group",
    "Offspring",
    "Reproduction",
    "SMCInfo",
    "SMCState",
    "ab_mcts",
    "annealed_resampling",
    "at_mean_weight",
    "auxiliary_particle_filter",
    "beam_search",
    "best_of_n",
    "by_priority",
    "dvts",
    "entropic_particle_filter",
    "ess_below",
    "every_step",
    "evidence_bounds",
    "expansion",
    "finished_branch_smc",
    "fit_twist",
    "greedy",
    "island_argmax",
    "island_exchange",
    "latest",
    "lookahead_search",
    "mcts",
    "multinomial",
    "never",
    "optimal_resampling",
    "parallel_tempering",
    "particle_filter",
    "particle_gibbs",
    "pimh",
    "power_sampling",
    "power_smc",
    "product",
    "pruning",
    "puct",
    "quest",
    "rebase",
    "rebase_allocation",
    "residual",
    "self_consistency",
    "smc",
    "smc_steering",
    "ssp",
    "step_beam_search",
    "stratified",
    "suffix_metropolis",
    "systematic",
    "telescoping",
    "tempered_smc",
    "terminal",
    "top_k_replicate",
    "twisted_smc",
    "uct",
    "uniform",
    "waste_free_smc",
    "weighted_best_of_n",
]
