"""The target that each sampler states, for the conformance table and the mutations."""

from collections.abc import Callable
from typing import NamedTuple

from tsi import samplers
from tsi.explorer import Explorer
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import product, telescoping

P_LAST = "p(x) f(r_T)"
P_ALL = "p(x) prod f(r_t)"


class Claim(NamedTuple):
    """A sampler and the target that it states.

    Attributes:
        make: constructs the sampler.
        target: the target density, "none" for a search.
        num_particles: N of the checks.
    """

    make: Callable[[], Sampler | Explorer]
    target: str
    num_particles: int = 8


CLAIMS: dict[str, Claim] = {
    "greedy": Claim(samplers.greedy, "p(x)", 1),
    "self_consistency": Claim(samplers.self_consistency, "p(x)"),
    "best_of_n": Claim(samplers.best_of_n, P_LAST),
    "weighted_best_of_n": Claim(samplers.weighted_best_of_n, P_LAST),
    "particle_filter": Claim(samplers.particle_filter, P_ALL),
    "particle_filter, softmax": Claim(
        lambda: samplers.particle_filter("softmax"), P_ALL
    ),
    "smc": Claim(samplers.smc, P_LAST),
    "smc, 2 islands": Claim(lambda: samplers.smc(num_islands=2), P_LAST),
    "entropic_particle_filter": Claim(samplers.entropic_particle_filter, P_ALL),
    "annealed_resampling": Claim(samplers.annealed_resampling, P_LAST),
    "island_exchange": Claim(samplers.island_exchange, P_LAST),
    "smc_steering": Claim(samplers.smc_steering, P_LAST),
    "pruning": Claim(lambda: samplers.pruning(0.7), P_LAST),
    "twisted_smc": Claim(samplers.twisted_smc, P_LAST),
    "auxiliary_particle_filter": Claim(samplers.auxiliary_particle_filter, P_LAST),
    "auxiliary_particle_filter, product": Claim(
        lambda: samplers.auxiliary_particle_filter(product()), P_ALL
    ),
    "finished_branch_smc": Claim(samplers.finished_branch_smc, P_LAST),
    "finished_branch_smc, product": Claim(
        lambda: samplers.finished_branch_smc(product()), P_ALL
    ),
    "tempered_smc": Claim(samplers.tempered_smc, P_LAST),
    "tempered_smc, product": Claim(
        lambda: samplers.tempered_smc(
            product(), exponents=(0.2, 0.6, 1.0), num_moves=1
        ),
        P_ALL,
        16,
    ),
    "tempered_smc, pilot": Claim(
        lambda: samplers.tempered_smc(exponents="ess"), P_LAST, 32
    ),
    "waste_free_smc": Claim(
        lambda: samplers.waste_free_smc(num_levels=2, chain_length=2), P_LAST
    ),
    "waste_free_smc, product": Claim(
        lambda: samplers.waste_free_smc(product()), P_ALL, 32
    ),
    "waste_free_smc, pilot": Claim(
        lambda: samplers.waste_free_smc(num_levels=2, chain_length=2, exponents="ess"),
        P_LAST,
        32,
    ),
    "particle_gibbs": Claim(samplers.particle_gibbs, P_ALL),
    "particle_gibbs, telescoping": Claim(
        lambda: samplers.particle_gibbs(potential=telescoping()), P_LAST
    ),
    "particle_gibbs_ancestor": Claim(
        lambda: samplers.particle_gibbs(ancestor_sampling=True), P_ALL
    ),
    "particle_gibbs_backward": Claim(
        lambda: samplers.particle_gibbs(backward_sampling=True), P_ALL
    ),
    "pimh": Claim(samplers.pimh, P_ALL),
    "parallel_tempering": Claim(
        lambda: samplers.parallel_tempering(num_temperatures=2, num_sweeps=2), P_ALL
    ),
    "suffix_metropolis": Claim(lambda: samplers.suffix_metropolis(product()), P_ALL),
    "quest": Claim(lambda: samplers.quest(0.5), "p(x) exp(r_T / beta)"),
    "power_sampling": Claim(lambda: samplers.power_sampling(2.0), "p(x)^alpha"),
    "power_smc": Claim(lambda: samplers.power_smc(2.0, ramp_steps=3), "p(x)^alpha"),
    "power_smc, product": Claim(
        lambda: samplers.power_smc(2.0, ramp_steps=2, potential=product()),
        "p(x)^alpha prod f(r_t)",
    ),
    "beam_search": Claim(samplers.beam_search, "none"),
    "dvts": Claim(samplers.dvts, "none"),
    "rebase": Claim(samplers.rebase, "none"),
    "step_beam_search": Claim(samplers.step_beam_search, "none"),
    "lookahead_search": Claim(samplers.lookahead_search, "none"),
    "mcts": Claim(samplers.mcts, "none"),
    "ab_mcts": Claim(samplers.ab_mcts, "none"),
    "particle_filter_released": Claim(
        lambda: samplers.particle_filter(variant="released"), "none"
    ),
    "particle_filter_printed": Claim(
        lambda: samplers.particle_filter(variant="printed"), "none"
    ),
    "entropic_particle_filter_released": Claim(
        lambda: samplers.entropic_particle_filter(variant="released"), "none"
    ),
    "particle_gibbs_released": Claim(
        lambda: samplers.particle_gibbs(variant="released"), "none"
    ),
    "particle_gibbs_printed": Claim(
        lambda: samplers.particle_gibbs(variant="printed"), "none"
    ),
    "parallel_tempering_printed": Claim(
        lambda: samplers.parallel_tempering(
            variant="printed", num_temperatures=2, num_sweeps=2
        ),
        "none",
    ),
    "power_sampling_released": Claim(
        lambda: samplers.power_sampling(2.0, variant="released", block_steps=2), "none"
    ),
    "power_sampling_printed": Claim(
        lambda: samplers.power_sampling(2.0, variant="printed", block_steps=2), "none"
    ),
    "rebase_released": Claim(lambda: samplers.rebase(variant="released"), "none"),
    "step_beam_search_released": Claim(
        lambda: samplers.step_beam_search(variant="released"), "none"
    ),
}
"""Every constructor, in the order of the tables."""
