"""Twisted SMC: weigh prefixes by what is still to come.

A twist psi_t(x_{1:t}) > 0 estimates the score that a prefix will have earned in the
end. Put around a target by `tsi.twists.twisted_target.TwistedTarget`, it gives a prefix
the potential G_{1:t} psi_t, and particles the increments

    w_t = w_{t-1} G_t psi_t / psi_{t-1} p/q,    psi_T = 1,

so that all of psi cancels along a path: the target is p(x) G_{1:T} whatever the twist,
which decides only the variance. With psi the conditional expectation of the potentials
to come, and steps proposed in proportion to p G psi, the evidence has no variance.

The sampler knows none of this. It is SMC with telescoping potentials, which cancel in
the way that the twist needs; on a target without a twist it is plain SMC.

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
    """The setting of SMC for a `tsi.twists.twisted_target.TwistedTarget`.

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
