r"""QUEST: Metropolis-Hastings for a Gibbs target, by drawing the end of a text afresh.

    pi(x) \propto p(x) exp(r(x) / beta)

with r(x) the reward of the whole solution. The policy proposes, so its probabilities
cancel, and what remains of the acceptance is exp((r(x') - r(x)) / beta) L(x) / L(x').

References:
    [1] Faria et al. 2024, arXiv 2406.00049, Algorithm 1. Differs: texts are cut between
        steps, not tokens; a start from weighted rollouts (see `suffix_metropolis`).
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
        beta: temperature of the Gibbs target; the smaller, the more the reward counts.
        num_chains: chains that share the N rollouts.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: if beta is not positive.
    """
    if not beta > 0.0:
        raise ConfigurationError(
            f"QUEST divides rewards by beta, and {beta} is not positive. For the best "
            "reward alone use best_of_n()."
        )

    def gibbs(log_potentials: Float[Array, "..."]) -> Float[Array, "..."]:
        # A cut or forbidden solution has no reward at all, rather than a reward of 0.
        dead = log_potentials == -jnp.inf
        return jnp.where(dead, -jnp.inf, jax.nn.sigmoid(log_potentials) / beta)

    return suffix_metropolis(telescoping(gibbs), num_chains=num_chains, select=select)
