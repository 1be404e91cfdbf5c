"""Good and Turing's estimate of the probability that is missing from a sample.

Frequencies show whether the server truncates by default. Among K drawn tokens, let S be
the set of distinct tokens and f1 the number of tokens that were drawn exactly once. The
tokens outside S have a total probability of about f1 / K (Good 1953), so the model's
probability of S is about 1 - f1 / K. If a server draws only from a part of the
vocabulary with total probability Z, the model's probability of S is Z times that.
"""

import math
from collections import Counter
from collections.abc import Sequence

from tsi.serving.step import ServedStep


def kept_mass_is_one(draws: Sequence[ServedStep], failed: int = 0) -> bool | None:
    """Whether tokens are drawn from the whole vocabulary; see the module docstring.

    Args:
        draws: steps of one token.
        failed: draws whose log-probability is not known.

    Returns:
        None if the most likely tokens have nearly all of the probability, so that a
        truncation could not be detected.
    """
    counts = Counter(step.tokens for step in draws)
    log_probs = {step.tokens: step.log_prob for step in draws}
    ones = sum(count == 1 for count in counts.values())
    twos = sum(count == 2 for count in counts.values())
    total = len(draws) + failed
    if any(math.isnan(x) for x in log_probs.values()):
        return None
    covered = sum(map(math.exp, log_probs.values()))
    # A small f1 is a poor estimate of its mean: an added constant keeps false alarms
    # rare.
    error = math.sqrt(ones + 2 * twos + 4) / total
    is_whole = covered > 1 - (ones + failed) / total - 4 * error
    return None if is_whole and len(counts) < 3 else is_whole
