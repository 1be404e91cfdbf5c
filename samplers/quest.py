r"""QUEST: Metropolis-Hastings for a Gibbs target, with new ends of a text as proposals.

    pi(x) \propto p(x) exp(r(x) / beta)

where r(x) is the reward of the complete solution. The policy is the proposal, so its
probabilities cancel, and the acceptance ratio is exp((r(x') - r(x)) / beta) L(x) /
L(x').

References:
    [1] Faria et al. 2024, arXiv 2406.00049, Algorithm 1. Differs: texts are cut between
        steps, not between tokens; chains start from weighted rollouts (see
        `suffix_metropolis`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer
from tsi.picklable import picklable
from tsi.samplers.parts.potentials import telescoping
from tsi.samplers.suffix_metropolis import suffix_metropolis


@picklable
def quest(
    beta: float = 0.1, *, num_chains: int = 1, select: str = "posterior"
) -> Explorer:
    """QUEST with temperature beta for rewards in (0, 1).

    Args:
        beta: temperature of the Gibbs target; a smaller beta gives the reward more
            influence.
        num_chains: number of chains, which divide the N rollouts.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: if beta is not positive.
    """
    if not beta > 0.0:
        raise ConfigurationError(
            f"QUEST divides rewards by beta, which must be positive; got {beta}. To "
            "select by the best reward only, use best_of_n()."
        )

    def scale_rewards(log_potentials: Float[Array, "..."]) -> Float[Array, "..."]:
        # A truncated or forbidden solution has no reward, which differs from reward 0.
        dead = log_potentials == -jnp.inf
        return jnp.where(dead, -jnp.inf, jax.nn.sigmoid(log_potentials) / beta)

    return suffix_metropolis(
        telescoping(scale_rewards), num_chains=num_chains, select=select
    )
