r"""Waste-free SMC: every state of the MCMC chains is a particle.

    pi_k(x) \propto p(x) exp(lambda_k s(x)),    0 = lambda_0 < ... < lambda_K = 1

The method differs from `tempered_smc`: at each level only M ancestors are drawn from
the N = M P particles. Each starts a chain of P states, the ancestor and the states
after P - 1 moves, and all M P states are the next particles:

    w^n = exp((lambda_k - lambda_{k-1}) s(x^n)),    Z_k = Z_{k-1} (1/N) sum_n w^n,
        (w^n is also multiplied by p / q at level 1)
    a_m ~ w,    x^{m,1} = x^{a_m},    x^{m,p} ~ K_k(x^{m,p-1}, .)  for p = 2, ..., P.

Weighted by Z_k, an ancestor has the unnormalised density of pi_k in expectation. K_k
leaves pi_k invariant, so every state of its chain has that density too. Hence
E[ Z (1/N) sum_n phi(x^n) ] = sum_x p(x) exp(s(x)) phi(x) for every phi, if the ladder
is fixed. If the ladder is chosen by the effective sample size of the same particles,
the estimate is biased; with `exponents="ess"` an independent pilot run chooses it.

References:
    [1] Dau and Chopin 2022, Waste-free Sequential Monte Carlo, arXiv 2011.02328,
        Algorithm 2. The last target is repeated (with a constant potential), so that
        the particles of the result are moved as well, and have equal weights.
    [2] Faria et al. 2024, QUEST, arXiv 2406.00049 (the move).
"""

from collections.abc import Sequence

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer
from tsi.picklable import picklable
from tsi.samplers.parts.annealing import make_ladder
from tsi.samplers.parts.potentials import Potential, telescoping
from tsi.samplers.parts.resampling import Resampling, systematic
from tsi.samplers.parts.tempered_targets import tempered_explorer


@picklable
def waste_free_smc(
    potential: Potential | None = None,
    *,
    num_levels: int = 4,
    exponents: Sequence[float] | str | None = None,
    ess_fraction: float = 0.5,
    chain_length: int = 4,
    resampling: Resampling = systematic,
    select: str = "posterior",
) -> Explorer:
    """Waste-free SMC over a sequence of tempered targets.

    The budget is M (P + K (P - 1)) rollouts: M P at level 0, and one proposal per move.
    The result has the M P particles of the last level, with equal weights.

    Args:
        potential: its path weight is exp(s(x)); by default telescoping("odds").
        num_levels: K, unless the exponents are given as a sequence.
        exponents: None for lambda_k = k / K; a sequence that rises to 1; or "ess" for a
            pilot run on half of the rollouts. It chooses each lambda_k as the largest
            for which the weights keep their effective sample size; the last is 1.
            A pilot that reaches 1 early stays there.
        ess_fraction: effective sample size that the pilot keeps, as a fraction of the
            particles with weight.
        chain_length: P, states per chain.
        resampling: the scheme, which draws M of M P particles.
        select: how one answer is chosen.

    Returns:
        An `Explorer` that reports the effective sample size at each level and the
        acceptance rate of the moves; its state has the `exponents`.

    Raises:
        ConfigurationError: for a potential that is a rank, a ladder that does not rise
            to 1, chains of one state, or a fraction outside (0, 1); by `plan`, for a
            budget that is not a multiple of P + K (P - 1), or twice that with a pilot.
    """
    if chain_length < 2:
        raise ConfigurationError(
            "waste_free_smc needs chains of at least two states, the ancestor and one "
            f"move; got chain_length={chain_length}."
        )
    return tempered_explorer(
        "waste_free_smc",
        telescoping("odds") if potential is None else potential,
        make_ladder("waste_free_smc", num_levels, exponents, ess_fraction),
        num_states=chain_length,
        num_moves=chain_length - 1,
        resampling=resampling,
        select=select,
    )
