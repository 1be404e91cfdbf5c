"""The target contract: a Feynman-Kac model from which samplers sample.

A target is a Feynman-Kac model in steps. `propose` draws x_t from the proposal q given
the particle so far, and also returns log p - log q, where p is the policy.
`log_potential` is log G_t of the extended prefix.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import CapabilityError

Particles = Any
"""Any pytree whose leaves have a leading axis N."""


@runtime_checkable
class Target(Protocol):
    """The methods of a target that `tsi.run` and the engine call; all are pure.

    If there is an attribute `max_steps`, drivers use it as the default step limit.
    Particle i uses only `fold_in(key, i)`, so that its random stream does not depend on
    the number of particles. The step t is one number, or [N] if rows have different
    depths: the number of steps of each row.
    """

    def init(self, key: Key[Array, ""], num_particles: int, params: Any) -> Particles:
        """N particles before their first step, none of them finished."""

    def propose(
        self,
        key: Key[Array, ""],
        t: Int[Array, ""] | Int[Array, "N"] | int,
        particles: Particles,
        params: Any,
    ) -> tuple[Particles, Float[Array, "N"]]:
        """Extend every unfinished particle by one step; also log p - log q, [N]."""

    def log_potential(
        self,
        t: Int[Array, ""] | Int[Array, "N"] | int,
        particles: Particles,
        params: Any,
    ) -> Float[Array, "N"]:
        """The log potential of each prefix after step t; ignored for finished ones."""

    def finished(self, particles: Particles) -> Bool[Array, "N"]:
        """Whether each particle takes no further step; a finished particle stays so."""

    def gather(self, particles: Particles, ancestors: Int[Array, "N"]) -> Particles:
        """The particles at `ancestors`, caches included."""


CAPABILITIES = {
    "truncate": "cut prefixes back to an earlier step",
    "replay": "extend a prefix by the step of another one, with its log-probability",
    "log_prob": "the policy's log-probability of a prefix",
    "log_proposal": "the proposal's log-probability of a prefix",
}
"""Optional methods of a target that explorers may need, and their purpose:

    truncate(particles, depths [N], params) -> particles
    replay(t, particles, sources, params) -> (particles, log_probs [N])
    log_prob(particles, params) -> [N]
    log_proposal(particles, params) -> [N]

A target with `replay` whose proposal is not its policy must have `log_proposal`;
without it repeated steps get wrong weights. A row that is cut is unfinished; a row of
at most `depths` steps is not changed. `sources` has a row for each particle. Two more
methods only save work: `put(stored, slots [W], rows)` writes rows over stored ones, and
`propose_some(key, t, particles, params, active [N])` proposes for some rows only.
"""


def require(target: Any, capability: str, needed_by: str) -> Any:
    """The target's optional method.

    Args:
        target: any target.
        capability: one of `CAPABILITIES`.
        needed_by: the sampler that needs it, for the message.

    Raises:
        CapabilityError: the target does not have the method.
    """
    method = getattr(target, capability, None)
    if method is None:
        purpose = CAPABILITIES.get(capability, "an optional capability")
        raise CapabilityError(
            f"{needed_by} needs a target with `{capability}` ({purpose}), and "
            f"{type(target).__name__} has none. Add the method to the target, or "
            "choose a sampler that does not need it."
        )
    return method


def where_rows(flags: Bool[Array, "N"], yes: Particles, no: Particles) -> Particles:
    """Rows of the first tree where the flags are set, and of the second elsewhere."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(flags.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, yes, no)
