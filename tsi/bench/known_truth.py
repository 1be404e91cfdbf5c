"""Targets with a known evidence, and the tests of runs on them.

Such a target has a method

    truth(path_log_weight, *, power=1.0) -> object, or None if unknown

The object has an attribute `log_evidence`, the logarithm of

    Z = sum_x p(x)^power exp(path_log_weight(x)),

and optionally `features` and `means`: functions of a particle and their means under
p(x)^power exp(path_log_weight(x)) / Z. `features(particles)` returns [..., N, G] for
particles with leading axes [..., N], and `means` are [G], none of them zero.
`path_log_weight` maps log potentials [..., T] and the step mask [..., T] to [...], as
in `tsi.sampler.Sampler`. If a target has an attribute `params`, it is passed to its
methods.

`TabularTarget` and `LinearGaussianTarget` are such targets; their features are built
in.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from tsi.bench.unbiasedness import (
    MeasureTest,
    judge_features,
    judge_linear_gaussian,
    judge_tabular,
)
from tsi.errors import ConfigurationError
from tsi.explorer import Explorer
from tsi.sampler import Sampler
from tsi.targets.linear_gaussian import LinearGaussianTarget
from tsi.targets.tabular import TabularTarget


@runtime_checkable
class KnownTarget(Protocol):
    """A `tsi.target.Target` that has a `truth`; see the module docstring."""

    def truth(self, path_log_weight: Callable[..., Any]) -> Any:
        """Evidence and means of p(x)^power exp(path_log_weight(x)), or None."""


def truth_of(
    target: Any, path_log_weight: Callable[..., Any], power: float = 1.0
) -> Any:
    """The target's truth; None if it is unknown.

    Raises:
        ConfigurationError: the target has no `truth`.
    """
    method = getattr(target, "truth", None)
    if method is None:
        raise ConfigurationError(
            f"check_sampler compares runs with the exact evidence of a target, and "
            f"{type(target).__name__} has no truth(path_log_weight, power=...). Add "
            "the method; see tsi.bench.known_truth."
        )
    if power == 1.0:
        return method(path_log_weight)
    if "power" not in inspect.signature(method).parameters:
        return None
    return method(path_log_weight, power=power)


def measure(
    target: KnownTarget, sampler: Sampler | Explorer, particles: Any, state: Any
) -> MeasureTest | None:
    """Compare many runs on a target with its truth; None if the truth is unknown.

    Args:
        target: the target.
        sampler: a sampler that claims a target.
        particles: particles of all runs, leading axes [R, N].
        state: the sampler's state after each run, leading axis [R].
    """
    claim = sampler.path_log_weight
    assert claim is not None
    truth = truth_of(target, claim, getattr(sampler, "power", 1.0))
    others = [truth_of(target, w) for w in getattr(sampler, "auxiliary", ())]
    if truth is None or any(other is None for other in others):
        return None
    # The reported evidence is the product over all targets sampled jointly.
    log_truth = float(truth.log_evidence + sum(o.log_evidence for o in others))
    weights = state.log_weights, state.log_evidence
    if isinstance(target, TabularTarget):
        truth = truth._replace(log_evidence=log_truth)
        return judge_tabular(target, truth, particles.symbols, *weights)
    if isinstance(target, LinearGaussianTarget):
        truth = truth._replace(log_evidence=log_truth)
        return judge_linear_gaussian(truth, particles.x, *weights)
    features = getattr(truth, "features", None)
    if features is None:
        return judge_features(log_truth, None, None, *weights)
    return judge_features(log_truth, features(particles), truth.means, *weights)
