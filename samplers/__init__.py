"""Samplers: resampling schemes and one algorithm per file.

Every constructor returns a `tsi.Sampler`; see `docs/samplers.md` for the table.
"""

from tsi.samplers.allocation import (
    island_argmax,
    rebase_allocation,
    top_k_replicate,
)
from tsi.samplers.beam import beam
from tsi.samplers.best_of_n import best_of_n, weighted_best_of_n
from tsi.samplers.dvts import dvts
from tsi.samplers.entropic import entropic_particle_filter
from tsi.samplers.greedy import greedy
from tsi.samplers.parallel_tempering import parallel_tempering
from tsi.samplers.particle_filter import particle_filter
from tsi.samplers.particle_gibbs import particle_gibbs
from tsi.samplers.pimh import pimh
from tsi.samplers.potentials import (
    latest,
    product,
    telescoping,
    terminal,
    uniform,
)
from tsi.samplers.rebase import rebase
from tsi.samplers.resampling import (
    multinomial,
    residual,
    ssp,
    stratified,
    systematic,
)
from tsi.samplers.schedules import ess_below, every_step, never
from tsi.samplers.self_consistency import self_consistency
from tsi.samplers.smc import SMCInfo, SMCState, smc

__all__ = [
    "SMCInfo",
    "SMCState",
    "beam",
    "best_of_n",
    "dvts",
    "entropic_particle_filter",
    "ess_below",
    "every_step",
    "greedy",
    "island_argmax",
    "latest",
    "multinomial",
    "never",
    "parallel_tempering",
    "particle_filter",
    "particle_gibbs",
    "pimh",
    "product",
    "rebase",
    "rebase_allocation",
    "residual",
    "self_consistency",
    "smc",
    "ssp",
    "stratified",
    "systematic",
    "telescoping",
    "terminal",
    "top_k_replicate",
    "uniform",
    "weighted_best_of_n",
]
