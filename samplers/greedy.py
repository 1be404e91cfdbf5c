"""Greedy decoding: one unweighted particle.

The decoding is greedy because the policy of the target has temperature zero. The
sampler accepts exactly one particle, since N particles at temperature zero would all be
equal.
"""

from typing import Any

from jaxtyping import Array, Key

from tsi.errors import ConfigurationError
from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import uniform
from tsi.samplers.parts.schedules import never
from tsi.samplers.smc import smc
from tsi.step_keys import with_typed_key


@picklable
def greedy() -> Sampler:
    """One particle of a policy at temperature zero.

    Returns:
        A `Sampler` whose `init` raises `ConfigurationError` unless N = 1.
    """
    sampler = smc(schedule=never, potential=uniform(), select="argmax")

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int) -> Any:
        if num_particles != 1:
            raise ConfigurationError(
                f"greedy decodes one particle, not {num_particles}: at temperature "
                "zero all particles would be equal. Use num_particles=1, or "
                "self_consistency for a larger budget."
            )
        return sampler.init(key, num_particles)

    return sampler._replace(init=init)
