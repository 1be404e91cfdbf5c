r"""Stopping rules: when a problem has had enough rollouts.

A rule is a function of the results of independent rounds of one problem. Rules on
answers count votes or masses; rules on errors use the rounds as replicates. A stopping
time that depends on the data introduces a bias, since a run may stop when the spread is
small by chance. The bias vanishes with the bound.

References:
    [1] Aggarwal et al. 2023, Let's sample step by step, arXiv 2305.11860 (Beta and
        Dirichlet stopping of self-consistency, confidence 0.95).
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

from tsi.accuracy.replicates import evidence_from_replicates
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.results.result import Result
from tsi.results.rounds import answer_errors_between, answer_shares

Stop = Callable[[Sequence[Result]], bool]
"""`(results of the rounds so far) -> bool`."""

NUM_NODES = 400


def beta_confidence(first: int, second: int) -> float:
    """P(p_1 > p_2) of the two leading answers under Beta(first + 1, second + 1) [1]."""
    return float(special.betainc(second + 1, first + 1, 0.5))


def dirichlet_confidence(counts: Sequence[int]) -> float:
    r"""P(p_1 is the largest) under a Dirichlet with parameters counts + 1 [1].

    Gamma variables normalised by their sum are Dirichlet, so the probability is the
    integral of g_1(x) \prod_j F_j(x), computed by Gauss-Legendre quadrature over
    quantiles of g_1.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    x = special.gammaincinv(counts[0] + 1, 0.5 * (nodes + 1.0))
    others = np.prod([special.gammainc(count + 1, x) for count in counts[1:]], axis=0)
    return float(np.sum(0.5 * weights * others))


def sure_majority(confidence: float = 0.95, rule: str = "beta") -> Stop:
    """Stop when the leading answer is, at some confidence, the most probable one.

    Args:
        confidence: the required confidence in the leading answer, in (0.5, 1).
        rule: "beta" compares it only with the runner-up, "dirichlet" with all answers
            seen.

    Raises:
        ConfigurationError: for a confidence outside (0.5, 1).
        UnknownNameError: for another rule.
    """
    if not 0.5 < confidence < 1.0:
        raise ConfigurationError(
            f"The confidence of a majority must be in (0.5, 1), and it is {confidence}."
        )
    if rule not in ("beta", "dirichlet"):
        raise UnknownNameError("stopping rule", rule, ("beta", "dirichlet"))

    def stop(rounds: Sequence[Result]) -> bool:
        votes = Counter(a for r in rounds for a in r.answers if a is not None)
        counts = [count for _, count in votes.most_common()]
        if not counts:
            return False
        counts = [*counts, 0] if len(counts) == 1 else counts
        if rule == "beta":
            return beta_confidence(counts[0], counts[1]) >= confidence
        return dirichlet_confidence(counts) >= confidence

    return stop


def answer_error_below(bound: float, min_rounds: int = 4) -> Stop:
    """Stop when the leading answer's probability has a standard error below a bound.

    Args:
        bound: upper bound of the standard error.
        min_rounds: the minimum number of rounds before the rule applies, at least two.

    Raises:
        ConfigurationError: if the bound is not positive or there are too few rounds.
    """
    _check_bound(bound, min_rounds)

    def stop(rounds: Sequence[Result]) -> bool:
        if len(rounds) < min_rounds:
            return False
        answers, masses, totals = answer_shares(rounds)
        if not answers or totals.sum() == 0.0:
            return False
        leader = answers[int(np.argmax(masses.sum(axis=0)))]
        return answer_errors_between(rounds)[leader] <= bound

    return stop


def evidence_error_below(bound: float, min_rounds: int = 4) -> Stop:
    """Stop when the log evidence has a standard error below a bound.

    Arguments and errors as in `answer_error_below`.
    """
    _check_bound(bound, min_rounds)

    def stop(rounds: Sequence[Result]) -> bool:
        if len(rounds) < min_rounds:
            return False
        values = np.array([r.log_evidence for r in rounds])
        return evidence_from_replicates(values).standard_error <= bound

    return stop


def _check_bound(bound: float, min_rounds: int) -> None:
    if not bound > 0.0 or min_rounds < 2:
        raise ConfigurationError(
            "Stopping at a standard error needs a positive bound and at least two "
            f"rounds to estimate it from; got bound={bound}, min_rounds={min_rounds}."
        )
