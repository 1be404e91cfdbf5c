r"""Power sampling: solutions from p(x)^alpha without any reward model.

Sharpening whole solutions is not sampling tokens at a low temperature: p^alpha weighs
what can follow. Metropolis-Hastings draws the end of a solution afresh from a proposal,
best the policy at temperature 1 / alpha, and accepts by both probabilities.

"exact", the default: moves on whole solutions, with the ratio of lengths that the
acceptance needs. "printed": prefixes of one, two, ... blocks are sampled in turn, all
as sequences of one length, a share of the moves each, and the last state is kept; exact
in the limit of many moves, but nothing is weighted, so no target is claimed.
"released": the same as the code runs it (`samplers.suffix_metropolis`), without a ratio
of lengths and with a comparison cut off where the proposal ends.

References:
    [1] Karan and Du 2025, arXiv 2510.14901, Algorithm 1, and its code,
        aakaran/reasoning-with-sampling, `mcmc_power_samp`: alpha = 4, 16 blocks of 192
        tokens, 10 moves for each block. Differs: texts are cut between steps, not
        tokens, and N rollouts are N - 1 moves in all.
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
        block_steps: steps of one block of the two latter.
        num_chains: chains that share the N rollouts.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: if a number is not positive, and by `plan` if the blocks
            are more than the moves.
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
