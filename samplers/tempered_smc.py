r"""Tempered SMC: a sequence of targets from the policy to the target, with MCMC moves.

    pi_k(x) \propto p(x) exp(lambda_k s(x)),    0 = lambda_0 < ... < lambda_K = 1

At each level k = 1, ..., K, n complete solutions are weighted by
exp((lambda_k - lambda_{k-1}) s(x)), at level 1 also by p / q, and resampled. Each then
makes m Metropolis-Hastings moves that propose a new end of the solution and leave pi_k
invariant. The product of the mean weights estimates the evidence,

    E[ Z (1/n) sum_i phi(x_K^i) ] = sum_x p(x) exp(s(x)) phi(x)    for every phi,

if the ladder is fixed. If the ladder is chosen by the effective sample size of the same
particles, the estimate is biased. With `exponents="ess"` an independent pilot run
chooses the ladder, which is then fixed.

References:
    [1] Del Moral, Doucet and Jasra 2006, Sequential Monte Carlo samplers, section 3.1.1
        (the algorithm) and 3.3.2.3 (MCMC moves, with the incremental weights above).
        Differs: resampling at every level.
    [2] Jasra, Stephens, Doucet and Tsagaris 2011, Inference for Lévy-driven stochastic
        volatility models via adaptive sequential Monte Carlo (the ladder by ESS).
    [3] Faria et al. 2024, QUEST, arXiv 2406.00049 (the move).
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
def tempered_smc(
    potential: Potential | None = None,
    *,
    num_levels: int = 3,
    exponents: Sequence[float] | str | None = None,
    ess_fraction: float = 0.5,
    num_moves: int = 1,
    resampling: Resampling = systematic,
    select: str = "posterior",
) -> Explorer:
    """SMC over a sequence of tempered targets, with suffix Metropolis moves.

    N = n (1 + K m) rollouts: n particles at level 0, and n proposals per move. The
    result has the n particles of the last level, with equal weights.

    Args:
        potential: its path weight is exp(s(x)); by default telescoping("odds").
        num_levels: K, unless the exponents are given as a sequence.
        exponents: None for lambda_k = k / K; a sequence that rises to 1; or "ess" for a
            pilot run on half of the rollouts. It chooses each lambda_k as the largest
            for which the weights keep their effective sample size; the last is 1.
            A pilot that reaches 1 early stays there.
        ess_fraction: effective sample size that the pilot keeps, as a fraction of the
            particles with weight.
        num_moves: m, moves per particle at each level.
        resampling: the scheme.
        select: how one answer is chosen.

    Returns:
        An `Explorer` that reports the effective sample size at each level and the
        acceptance rate of the moves; its state has the `exponents`.

    Raises:
        ConfigurationError: for a potential that is a rank, a ladder that does not rise
            to 1, no moves, or a fraction outside (0, 1); by `plan`, for an N that is
            not a multiple of 1 + K m (2 + 2 K m with a pilot).
    """
    if num_moves < 1:
        raise ConfigurationError(
            f"tempered_smc needs num_moves >= 1 at each level; got {num_moves}."
        )
    return tempered_explorer(
        "tempered_smc",
        telescoping("odds") if potential is None else potential,
        make_ladder("tempered_smc", num_levels, exponents, ess_fraction),
        num_states=1,
        num_moves=num_moves,
        resampling=resampling,
        select=select,
    )
