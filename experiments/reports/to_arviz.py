"""Results as an ArviZ object: an `xarray.DataTree` with posterior and sample_stats.

Dimensions follow ArviZ: chain, draw, problem. Particles are draws, and independent runs
on one problem (with different seeds) are chains. ArviZ gives every draw the same
weight, so the posterior has draws that are resampled in proportion to the weights; with
``weighted=True`` it has the particles themselves and their log weights. Statistics of
the run are in sample_stats; those of particles are indexed by particle, not by draw.

Needs `pip install -e '.[arviz]'`; ArviZ 1 itself, for plots, needs Python 3.12.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from tsi.accuracy.diagnostics import probabilities_of
from tsi.errors import ConfigurationError
from tsi.results.result import Result

NO_ANSWER, NO_PARENT = -1, -1
SCALARS = {
    "log_evidence": "log_evidence",
    "log_evidence_variance": "evidence.variance",
    "pareto_k": "diagnostics.pareto_k",
    "acceptance_rate": "diagnostics.acceptance_rate",
    "num_recoveries": "diagnostics.num_recoveries",
    "num_invalid": "diagnostics.num_invalid",
    "num_truncated": "diagnostics.num_truncated",
    "unanswered": "unanswered",
}
"""Scalar statistics of a run, and the attributes of a result that hold them."""


def to_datatree(
    results: Sequence[Result], *, weighted: bool = False, seed: int = 0
) -> Any:
    """Results of runs with equally many particles as one `xarray.DataTree`.

    Args:
        results: of any problems; those with the same `problem_id` become chains, in
            order, and every problem needs the same number of them.
        weighted: keep particles and weights instead of resampling draws.
        seed: of the systematic resampling, which uses one random number per run.

    Returns:
        Groups, with coordinates problem, answer and step:
        posterior [chain, draw, problem]: reward, num_steps, num_characters,
        answer_index (into its attribute `answers`, -1 for none), particle (the index of
        the draw's particle) and log_weight (of the draw: 0 after resampling).
        sample_stats [chain, problem, ...]: log_weight by particle; ess,
        unique_ancestors by step; ancestors by step and particle; log_evidence,
        log_evidence_variance, pareto_k, acceptance_rate, num_recoveries, num_invalid,
        num_truncated; answer_posterior, answer_error by answer, among particles with an
        answer; unanswered, the share of the weight without one. Its attribute
        `log_evidence_of` says what the log evidence estimates. Steps that a run did not
        take are NaN, and their ancestors -1.

    Raises:
        ConfigurationError: ArviZ is not installed, there is no result, or the number of
            particles or of runs per problem differs.
    """
    try:
        from arviz_base import dict_to_dataset
        from xarray import DataTree
    except ImportError as error:
        raise ConfigurationError(
            "Export to ArviZ needs arviz-base; run `pip install -e '.[arviz]'`."
        ) from error
    runs, problems = _by_problem(results)
    answers = sorted({a for result in results for a in result.answers if a is not None})
    num_steps = max(len(result.steps.ancestors) for result in results)
    draws = _draws(runs, weighted, seed)
    estimands = dict.fromkeys(result.estimand.evidence for result in results)

    def per_run(value: Callable[[Result], Any]) -> np.ndarray:
        return np.array([[value(result) for result in row] for row in runs])

    def per_draw(value: Callable[[Result], Any]) -> np.ndarray:
        by_particle = np.moveaxis(per_run(value), 1, 2)
        return np.take_along_axis(by_particle, draws, axis=1)

    coords = {
        "problem": _labels(problems),
        "answer": answers,
        "step": np.arange(num_steps),
    }
    posterior = {
        "reward": per_draw(lambda result: result.rewards),
        "num_steps": per_draw(_lengths),
        "num_characters": per_draw(lambda result: [len(t) for t in result.texts]),
        "answer_index": per_draw(
            lambda result: [
                NO_ANSWER if a is None else answers.index(a) for a in result.answers
            ]
        ),
        "particle": draws,
        "log_weight": (
            per_draw(lambda result: result.log_weights)
            if weighted
            else np.zeros(draws.shape)
        ),
    }
    stats = {
        "log_weight": per_run(lambda result: result.log_weights),
        "ess": per_run(lambda r: _pad(r.steps.ess, num_steps, np.nan)),
        "unique_ancestors": per_run(
            lambda r: _pad(r.steps.unique_ancestors, num_steps, np.nan)
        ),
        "ancestors": per_run(lambda r: _pad(r.steps.ancestors, num_steps, NO_PARENT)),
        "answer_posterior": per_run(
            lambda r: [r.answer_posterior.get(a, 0.0) for a in answers]
        ),
        "answer_error": per_run(
            lambda r: [r.posterior.errors.get(a, math.nan) for a in answers]
        ),
    }
    for name, place in SCALARS.items():
        stats[name] = per_run(operator.attrgetter(place))
    dims = {
        "log_weight": ["problem", "particle"],
        "ess": ["problem", "step"],
        "unique_ancestors": ["problem", "step"],
        "ancestors": ["problem", "step", "particle"],
        "answer_posterior": ["problem", "answer"],
        "answer_error": ["problem", "answer"],
    }
    dims = {name: ["problem"] for name in stats} | dims
    return DataTree.from_dict(
        {
            "posterior": dict_to_dataset(
                posterior,
                coords=coords,
                dims={name: ["problem"] for name in posterior},
                sample_dims=["chain", "draw"],
                attrs={"answers": answers, "weighted": int(weighted)},
            ),
            "sample_stats": dict_to_dataset(
                stats,
                coords=coords,
                dims=dims,
                sample_dims=["chain"],
                attrs={"log_evidence_of": "; ".join(estimands)},
            ),
        }
    )


def _labels(ids: list[int | str]) -> Any:
    """Ids as a coordinate; as objects if kinds are mixed, since 7 and "7" differ."""
    has_both_kinds = len({isinstance(id, str) for id in ids}) > 1
    return np.asarray(ids, object) if has_both_kinds else ids


def _by_problem(
    results: Sequence[Result],
) -> tuple[list[list[Result]], list[int | str]]:
    """Results as [chain][problem], and the problems in order of appearance."""
    groups: dict[int | str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.problem_id, []).append(result)
    sizes = {len(result.log_weights) for result in results}
    counts = {len(group) for group in groups.values()}
    if len(sizes) != 1 or len(counts) != 1:
        raise ConfigurationError(
            "An ArviZ object is rectangular: all results need the same number of "
            f"particles (got {sorted(sizes)}), and all problems the same number of "
            f"runs (got {sorted(counts)}). Export groups that differ separately."
        )
    runs = [list(row) for row in zip(*groups.values(), strict=True)]
    return runs, list(groups)


def _draws(
    runs: list[list[Result]], weighted: bool, seed: int
) -> Int[np.ndarray, "chain draw problem"]:
    """The index of each draw's particle."""
    rng = np.random.default_rng(seed)
    indices = []
    for row in runs:
        for result in row:
            size = len(result.log_weights)
            if weighted:
                indices.append(np.arange(size))
                continue
            edges = np.cumsum(probabilities_of(result.log_weights))
            places = (np.arange(size) + rng.random()) / size
            # The last edge may be below one by rounding, so divide by it.
            indices.append(np.searchsorted(edges / edges[-1], places, side="right"))
    shape = (len(runs), len(runs[0]), -1)
    return np.moveaxis(np.array(indices).reshape(shape), 1, 2)


def _lengths(result: Result) -> list[float]:
    step_texts = result.particles.step_texts
    if step_texts is None:
        return [math.nan] * len(result.texts)
    return [float(len(steps)) for steps in step_texts]


def _pad(values: Any, num_steps: int, fill: float | int) -> np.ndarray:
    values = np.asarray(values)
    padded_values = np.full((num_steps, *values.shape[1:]), fill)
    padded_values[: len(values)] = values
    return padded_values
