r"""Power sampling: solutions from p(x)^alpha without any reward model.

Sampling complete solutions from p^alpha differs from sampling tokens at a low
temperature, because p^alpha takes into account how a prefix can continue.
Metropolis-Hastings draws a new end of a solution from a proposal, ideally the policy at
temperature 1 / alpha, and accepts it with a probability that depends on p and on the
proposal.

Variants:

"exact", the default: moves on complete solutions, with the ratio of lengths that the
acceptance probability needs.

"printed": prefixes of one, two, ... blocks are sampled in turn, as sequences of one
length, with an equal share of the moves each. The last state is kept. This is exact in
the limit of many moves, but states are not weighted, so the explorer states no target.

"released": as in the code (`samplers.suffix_metropolis`): without the ratio of lengths,
and the current path is compared only up to the length of the proposal.

References:
    [1] Karan and Du 2025, arXiv 2510.14901, Algorithm 1, and its code,
        aakaran/reasoning-with-sampling, `mcmc_power_samp`: alpha = 4, 16 blocks of 192
        tokens, 10 moves for each block. Differs: texts are cut between
        steps, not between tokens, and N rollouts are N - 1 moves in total.
"""

from tsi.errors import UnknownNameError
from tsi.explorer import Explorer
from tsi.picklable import picklable
from tsi.samplers.parts.potentials import uniform
from tsi.samplers.suffix_metropolis import Blocks, suffix_metropolis

VARIANTS = ("exact", "printed", "released")


@picklable
def power_sampling(
    alpha: float = 4.0,
    *,
    variant: str = "exact",
    block_steps: int = 4,
    num_chains: int = 1,
    select: str = "vote",
) -> Explorer:
    """Metropolis-Hastings for p^alpha.

    Args:
        alpha: the power.
        variant: "exact", "printed" or "released".
        block_steps: steps per block, for "printed" and "released".
        num_chains: number of chains, which divide the N rollouts.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: if a number is not positive; by `plan` if there are more
            blocks than moves.
        UnknownNameError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise UnknownNameError("power sampling variant", variant, VARIANTS)
    blocks = None if variant == "exact" else Blocks(block_steps, variant == "released")
    return suffix_metropolis(
        uniform(),
        power=alpha,
        num_chains=num_chains,
        blocks=blocks,
        select=select,
    )
