r"""Power sampling: solutions from p(x)^alpha without any reward model.

Sharpening whole solutions is not sampling tokens at a low temperature: p^alpha weighs
what can follow. Metropolis-Hastings draws the end of a solution afresh from a proposal,
best the policy at temperature 1 / alpha, and accepts by both probabilities.

"exact": moves on whole solutions, with the ratio of lengths that the acceptance needs.
"published": prefixes of one, two, ... blocks are sampled in turn, a share of the moves
each; only the last state is kept; and the ratio of lengths is dropped, so that what the
chain leaves invariant favours solutions of few steps.

References:
    [1] Karan and Du 2025, arXiv 2510.14901, Algorithm 1: alpha = 4, blocks of 192
        tokens, 10 moves a block. Differs: texts are cut between steps, not tokens.
"""

from tsi.errors import UnknownNameError
from tsi.explorer import Explorer
from tsi.picklable import picklable
from tsi.samplers.potentials import uniform
from tsi.samplers.suffix_metropolis import suffix_metropolis

VARIANTS = ("exact", "published")


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
        variant: "exact" or "published".
        block_steps: steps of one block of the published variant.
        num_chains: chains that share the N rollouts.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: if a number is not positive.
        UnknownNameError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise UnknownNameError("power sampling variant", variant, VARIANTS)
    published = variant == "published"
    return suffix_metropolis(
        uniform(),
        power=alpha,
        num_chains=num_chains,
        lengths=not published,
        block_steps=block_steps if published else None,
        select=select,
    )
