"""The particle filter for inference-time scaling.

Multinomial resampling before every step, by the score of the prefix, so that

    target(x_{1:T}) = p(x_{1:T}) prod_t f(r_t),    r_t = r(c, x_{1:t}).

f is the odds r / (1 - r) in the released code, exp(r) in the printed Algorithm 1
(theta = softmax(r)) and r in the model that motivates it (every step was judged right).
They are different targets, offered under their names; the default follows the code that
produced the published numbers.

References:
    [1] Puri et al. 2025, arXiv 2502.01618, Algorithm 1. Differs: a finished particle
        keeps its weight and takes part in resampling, which the stated target needs;
        the released code leaves this to an option. It also clips a reward of exactly 1,
        whose odds are infinite; here such a particle weighs nothing and is counted.
"""

from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.potentials import Transform, product
from tsi.samplers.resampling import Resampling, multinomial
from tsi.samplers.schedules import every_step
from tsi.samplers.smc import smc


@picklable
def particle_filter(
    weights: str | Transform = "odds",
    *,
    resampling: Resampling = multinomial,
    select: str = "argmax",
    num_islands: int = 1,
) -> Sampler:
    """The paper's particle filter.

    Args:
        weights: "odds", "reward", "softmax", or a function of the log potential.
        resampling: the scheme; multinomial as published.
        select: "argmax" of the last reward as published, or "posterior".
        num_islands: independent filters of N / num_islands particles, weighed by their
            evidence.

    Raises:
        UnknownNameError: for an unknown name of weights.
    """
    return smc(
        resampling=resampling,
        schedule=every_step,
        potential=product(weights),
        select=select,
        num_islands=num_islands,
    )
