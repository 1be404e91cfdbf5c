"""Self-consistency: N independent samples of the policy, and a vote.

Scores are not used. The target is the policy itself; if the proposal is another
distribution, samples are weighted by its correction.

References:
    [1] Wang et al. 2022, arXiv 2203.11171.
"""

from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import uniform
from tsi.samplers.parts.schedules import never
from tsi.samplers.smc import smc


@picklable
def self_consistency() -> Sampler:
    """N independent samples; the most frequent answer."""
    return smc(schedule=never, potential=uniform(), select="vote")
