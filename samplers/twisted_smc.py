"""Twisted SMC: weight prefixes by an estimate of their future score.

A twist psi_t(x_{1:t}) > 0 estimates the product of the potentials that a prefix will
get after step t. `tsi.twists.twisted_target.TwistedTarget` adds it to a
target: the potential of a prefix becomes G_{1:t} psi_t, and particles have the
increments

    w_t = w_{t-1} G_t psi_t / psi_{t-1} p/q,    psi_T = 1,

so psi cancels along a path: the target is p(x) G_{1:T} for any twist, which affects
only the variance. If psi is the conditional expectation of the future potentials, and
steps are proposed in proportion to p G psi, the evidence estimate has no variance.

The sampler itself does not depend on the twist. It is SMC with telescoping potentials,
in which psi cancels. For a target without a twist it is plain SMC.

References:
    [1] Zhao, Brekelmans, Makhzani and Grosse 2024, arXiv 2404.17546, Section 3.
    [2] Feng et al. 2024, arXiv 2410.01920 (twists for reasoning).
    [3] Whiteley and Lee 2014, arXiv 1210.0220 (twisted particle filters).
"""

from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import telescoping
from tsi.samplers.parts.resampling import Resampling, systematic
from tsi.samplers.parts.schedules import ess_below
from tsi.samplers.smc import smc


@picklable
def twisted_smc(
    *,
    ess_fraction: float = 0.5,
    resampling: Resampling = systematic,
    select: str = "posterior",
    num_islands: int = 1,
) -> Sampler:
    """SMC for a `tsi.twists.twisted_target.TwistedTarget`.

    Args:
        ess_fraction: resample when the ESS falls below this fraction of N.
        resampling: the scheme.
        select: how one answer is chosen.
        num_islands: groups that resample among themselves.

    Raises:
        ConfigurationError: if the fraction is not in [0, 1].
    """
    return smc(
        resampling=resampling,
        schedule=ess_below(ess_fraction),
        potential=telescoping("odds"),
        select=select,
        num_islands=num_islands,
    )
