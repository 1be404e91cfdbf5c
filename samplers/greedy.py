"""Greedy decoding: one particle that is never weighed.

The sampler is trivial; what makes it greedy is a target whose policy has temperature
zero. It asks for exactly one particle, so that a budget of N cannot be mistaken for N
different samples.
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
    one = smc(schedule=never, potential=uniform(), select="argmax")

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int) -> Any:
        if num_particles != 1:
            raise ConfigurationError(
                f"greedy decodes one particle, not {num_particles}: at temperature "
                "zero they would all be the same. Use num_particles=1, or "
                "self_consistency for a budget."
            )
        return one.init(key, num_particles)

    return one._replace(init=init)
