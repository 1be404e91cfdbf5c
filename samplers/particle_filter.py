"""The particle filter for inference-time scaling.

Multinomial resampling before every step, by the score of the prefix, so that

    target(x_{1:T}) = p(x_{1:T}) prod_t f(r_t),    r_t = r(c, x_{1:t}).

f is the odds r / (1 - r) by default, which the released code weighs by; exp(r), which
Algorithm 1 prints (theta = softmax(r)); or r, the model that motivates it (every step
was judged right). They are different targets, offered under their names.

"corrected", the default: a finished particle takes part in resampling with the weight
it has, and its last score counts once, which the stated target needs. "released" and
"printed" draw by the last reward alone, finished particles again in every step
(`samplers.published`), and target nothing.

References:
    [1] Puri et al. 2025, arXiv 2502.01618, Algorithm 1.
"""

from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import Transform
from tsi.samplers.parts.published import potential_of
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
    """The paper's particle filter.

    Args:
        weights: "odds", "reward", "softmax", or a function of the log potential; by
            default the variant's, which is odds but for "printed".
        variant: "corrected"; "released" as the paper's code runs it; or "printed", as
            its Algorithm 1 says.
        resampling: the scheme; multinomial in code and print.
        select: "argmax" of the last reward as in the code, or "posterior".
        num_islands: independent filters of N / num_islands particles, weighed by their
            evidence; alike if the variant has none. "released" with M of them is the
            paper's M parallel chains.

    Raises:
        UnknownNameError: for an unknown variant or name of weights.
        ConfigurationError: for weights that are not those of a published variant.
    """
    return smc(
        resampling=resampling,
        schedule=every_step,
        potential=potential_of(variant, weights, "particle_filter"),
        select=select,
        num_islands=num_islands,
    )
