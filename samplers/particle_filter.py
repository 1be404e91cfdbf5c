"""The particle filter for inference-time scaling.

Multinomial resampling before every step by the score of the prefix:

    target(x_{1:T}) = p(x_{1:T}) prod_t f(r_t),    r_t = r(c, x_{1:t}).

The weight f is, by default, the odds r / (1 - r), as in the released code; or exp(r),
as printed in Algorithm 1 (theta = softmax(r)); or r, as in the model that motivates the
method (every step is judged correct). These are different targets.

Variants: "corrected", the default: a finished particle is resampled with the weight
that it has, and its last score counts once, as the stated target requires. "released"
and "printed" draw by the last reward only and count it again for finished particles at
every later step (`samplers.parts.published`). They have no target.

References:
    [1] Puri et al. 2025, arXiv 2502.01618, Algorithm 1.
"""

from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import Transform
from tsi.samplers.parts.published import choose_potential
from tsi.samplers.parts.resampling import Resampling, multinomial
from tsi.samplers.parts.schedules import every_step
from tsi.samplers.smc import smc


@picklable
def particle_filter(
    weights: str | Transform | None = None,
    *,
    variant: str = "corrected",
    resampling: Resampling = multinomial,
    select: str = "argmax",
    num_islands: int = 1,
) -> Sampler:
    """The particle filter of Puri et al. 2025.

    Args:
        weights: "odds", "reward", "softmax", or a function of the log potential; by
            default "softmax" for the variant "printed" and "odds" otherwise.
        variant: "corrected"; "released", as in the paper's code; or "printed", as in
            its Algorithm 1.
        resampling: the scheme; the paper and its code use multinomial.
        select: "argmax" of the last reward, as in the code, or "posterior".
        num_islands: independent filters of N / num_islands particles, weighted by their
            evidence, or equally if the variant has none. "released" with M islands is
            the paper's M parallel chains.

    Raises:
        UnknownNameError: for an unknown variant or unknown weights.
        ConfigurationError: for weights that the published variant does not use.
    """
    return smc(
        resampling=resampling,
        schedule=every_step,
        potential=choose_potential(variant, weights, "particle_filter"),
        select=select,
        num_islands=num_islands,
    )
