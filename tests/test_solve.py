"""What `tsi solve` shows of a genealogy."""

import numpy as np
import pytest
from fake_world import fake_world, vary

from tsi.experiments.plans.methods import METHODS, sampler_of
from tsi.experiments.solving.diagnostics import weights_figure
from tsi.experiments.solving.solve import genealogy, genealogy_text, solution_text
from tsi.results.estimand import estimand_of

# Four particles; at step 1 two survive, at step 2 three of the new generation do.
ANCESTORS = np.array([[0, 1, 2, 3], [1, 1, 3, 3], [0, 0, 2, 1]])


def _result():
    world = fake_world()
    result = world.engine.result(
        sampler_of("smc", 5), "smc", 0, world.problems[0], 4, None
    )
    particles = {
        "answers": ["7", "8", "9", None],
        "rewards": np.array([0.9, 0.8, 0.7, 0.6]),
        "log_weights": np.log([2.0, 1.0, 1.0, 1e-9]),
        "step_texts": [
            ["b\n", "ba\n", "baa"],
            ["b\n", "ba\n", "bab"],
            ["d\n", "dc"],
            ["b\n", "bb\n", "bba\n"],
        ],
    }
    steps = {"ancestors": ANCESTORS, "resampled": np.array([False, True, True])}
    return vary(result, particles=particles, steps=steps)


def test_genealogy_keeps_only_what_survived():
    first, second = genealogy(ANCESTORS)
    assert (first.particle, first.survivors) == (1, (0, 1, 3))
    assert [child.survivors for child in first.children] == [(0, 1), (3,)]
    assert (second.particle, second.survivors) == (3, (2,))
    assert genealogy(np.zeros((0, 4), int)) == ()


def test_tree_tells_descendants_answers_and_weights():
    lines = genealogy_text(_result()).splitlines()
    assert lines == [
        "├─ b   ×3",
        "│  ├─ ba   ×2",
        "│  │  ├─ baa   → 7   reward 0.900, weight 0.500",
        "│  │  └─ bab   → 8   reward 0.800, weight 0.250",
        "│  └─ bb",
        "│     └─ bba   → no answer   reward 0.600, weight 0.000",
        "└─ d",
        "   └─ dc   → 9   reward 0.700, weight 0.250",
    ]


def test_everything_asked_for_is_printed():
    text = solution_text(_result())
    for part in (
        "Effective sample size of 4 after each step: 4.0 4.0 4.0",
        "Resampled before step: 1, 2",
        "Distinct solutions of 4: ",
        "Surviving genealogy",
        "Answer posterior",
        "Selected answer",
        "rollouts",
    ):
        assert part in text


def test_an_evidence_that_is_a_product_says_so():
    assert "Log evidence: " in solution_text(_result())
    said = "Log evidence, times those of 3 other temperatures: "
    together = {"auxiliary_temperatures": (2.0, 4.0, 8.0)}
    assert said in solution_text(vary(_result(), estimand=together))


def test_a_search_has_no_evidence():
    text = solution_text(vary(_result(), estimand={"has_target": False}))
    assert "Log evidence: none, because the method has no target" in text
    assert "Answers by weight (the method has no target" in text
    assert "Answer posterior" not in text
    assert "Pareto" in solution_text(_result())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_number_is_shown_of_what_a_method_does_not_estimate(method):
    """Whatever has no target has no posterior, no errors and no tail of weights."""
    estimand = estimand_of(sampler_of(method, 5))
    result = vary(
        _result(),
        estimand=estimand._asdict(),
        posterior={"errors": dict.fromkeys("789", np.nan)},
        evidence={"log_estimate": -1.0 if estimand.has_target else np.nan},
    )
    text = solution_text(result)
    title = weights_figure(result).axes[0].get_title(loc="left")
    assert ("Pareto" in text) == ("Pareto" in title) == estimand.is_weighted_sample
    assert ("±" in text) == ("Answer posterior" in text) == estimand.has_target
    assert ("posterior leaves out" in text) == estimand.has_target
    assert "nan" not in text + title


def test_what_has_no_effective_size_shows_a_dash():
    chain = vary(
        _result(),
        steps={"ess": np.full(7, np.nan), "resampled": None},
        diagnostics={"acceptance_rate": 0.25},
    )
    text = solution_text(chain)
    assert "Effective sample size: –" in text
    assert "nan" not in text
    # Common texts are no resampling.
    assert "Resampled" not in text
    assert "share of moves accepted: 0.25" in text
    sweep = vary(
        chain,
        steps={"ess": np.array([2.0, np.nan])},
        diagnostics={"acceptance_rate": np.nan},
    )
    text = solution_text(sweep)
    assert "Effective sample size of the particles in use, by turn: 2.0 –" in text
    assert "accepted" not in text
