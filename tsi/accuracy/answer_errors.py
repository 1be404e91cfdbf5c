"""Standard errors of the answer posterior, from the weights and genealogy of a run.

The posterior probability of answer a is a ratio of sums of normalised weights,

    p_a = sum_i W_i [a_i = a] / sum_i W_i [i has an answer],

whose first-order error is that of the sum of the residuals of particles with an answer,

    r_i = W_i ([a_i = a] - p_a) / sum_j W_j.

For independent particles se^2 = sum_i r_i^2, the delta method of self-normalised
importance sampling [1]. After resampling, particles with the same first ancestor (Eve)
are dependent, so residuals are summed within each family before they are squared [2].
The factor corrects for pairs of families that R resamplings have removed [3]:

    se^2 = (N / (N - 1))^(R + 1) sum_e (sum_{i: E_i = e} r_i)^2.

With R = 0 every particle is its own Eve, and the factor replaces N by N - 1 as in a
sample variance.

Accuracy. The estimate is first-order. On the tables of `tsi.targets.tabular`, the mean
of se^2 is 0.86 to 1.01 times the variance over runs at N = 64, and 0.3 to 1.1 times at
N = 8, where it is too small mainly for answers that were decided in early steps. The
theorem does not cover systematic and other low-variance resampling. With systematic
resampling the ratio is 0.95 to 1.05 at N = 64, and 0.5 to 1.4 at N = 8. The estimate is
zero if all answers agree, even where other answers are possible.

References:
    [1] Owen 2013, Monte Carlo theory, methods and examples, equation 9.9.
    [2] Chan and Lai 2013, arXiv 1312.5114.
    [3] Lee and Whiteley 2018, arXiv 1509.00394, equation 8 with a centred function.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def answer_errors(
    answers: Sequence[str | None],
    shares: Float[np.ndarray, "N"],
    eves: Int[np.ndarray, "N"],
    num_resamplings: int,
) -> dict[str, float]:
    """Standard error of the posterior probability of each answer.

    Args:
        answers: canonical answers, None for a particle without one.
        shares: normalised weights.
        eves: index of each particle's first ancestor; 0, 1, 2, ... without resampling.
        num_resamplings: R, number of resamplings of the run.

    Returns:
        The errors, in the order in which answers appear. NaN if they cannot be
        estimated: no answer has weight, N = 1, or one family has all the weight.
    """
    size = len(answers)
    answered = np.array([answer is not None for answer in answers])
    distinct = list(dict.fromkeys(a for a in answers if a is not None))
    mass = float(shares[answered].sum())
    families = len(set(eves[shares > 0].tolist()))
    if mass == 0 or size == 1 or families == 1:
        return dict.fromkeys(distinct, math.nan)
    growth = (size / (size - 1)) ** (num_resamplings + 1)
    weights = np.where(answered, shares, 0.0) / mass
    numbers = {answer: k for k, answer in enumerate(distinct)}
    label = np.array([-1 if a is None else numbers[a] for a in answers])
    has_answer = label[:, None] == np.arange(len(distinct))
    residuals = weights[:, None] * (has_answer - weights @ has_answer)
    by_family = np.zeros_like(residuals)
    np.add.at(by_family, eves, residuals)
    errors = np.sqrt(growth * np.sum(by_family**2, axis=0))
    return dict(zip(distinct, errors.tolist(), strict=True))
