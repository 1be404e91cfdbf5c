"""Figures of a result, and what `tsi solve` says of its errors."""

import matplotlib.image
import numpy as np
import pytest
from fake_world import fake_world, vary
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from tsi.accuracy.degeneracy import lineages
from tsi.accuracy.diagnostics import diagnose, eves
from tsi.errors import ConfigurationError
from tsi.experiments.plans.methods import sampler_of
from tsi.experiments.solving import diagnostics
from tsi.experiments.solving.merged_tree import merged_tree
from tsi.experiments.solving.solve import solution_text


def make_result(size=16, num_steps=12, seed=0):
    """A run of random parents, long step texts, and particles that end early."""
    world = fake_world()
    result = world.engine.result(
        sampler_of("smc", 5), "smc", 0, world.problems[0], size, None
    )
    rng = np.random.default_rng(seed)
    ancestors = np.tile(np.arange(size), (num_steps, 1))
    resampled = np.zeros(num_steps, bool)
    for t in (2, 5, 6, 9):
        if t < num_steps:
            shares = rng.dirichlet(np.ones(size))
            ancestors[t] = np.sort(rng.choice(size, size, p=shares))
            resampled[t] = True
    slots = lineages(ancestors)
    step_texts = [
        [f"step {t}, slot {slots[t, n]}, $and \\more" for t in range(num_steps - n % 3)]
        for n in range(size)
    ]
    answers = [str(a) if a < 4 else None for a in rng.integers(0, 5, size)]
    log_weights = 1.5 * rng.normal(size=size)
    diagnosis = diagnose(
        answers, log_weights, -1.0, eves(ancestors), int(resampled.sum())
    )
    return vary(
        result,
        particles={
            "step_texts": step_texts,
            "answers": answers,
            "log_weights": log_weights,
        },
        steps={
            "ancestors": ancestors,
            "ess": rng.uniform(1, size, num_steps),
            "rewards": rng.random((num_steps, size)),
        },
        posterior={
            "selected": "2",
            "probabilities": dict.fromkeys(sorted({a for a in answers if a}), 0.25),
            "errors": diagnosis.answer_errors,
        },
        evidence={"variance": diagnosis.log_evidence_variance},
        diagnostics={"pareto_k": diagnosis.pareto_k},
    )


def overlaps(figure):
    """Pairs of texts of the tree whose boxes meet."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    return [
        (texts[i].get_text(), texts[j].get_text())
        for i in range(len(boxes))
        for j in range(i)
        if boxes[i].overlaps(boxes[j])
    ]


def test_every_surviving_step_is_labelled_once_and_no_texts_overlap():
    result = make_result()
    figure = diagnostics.genealogy_figure(result)
    labels = [text.get_text() for text in figure.axes[0].texts]
    slots = lineages(result.steps.ancestors)
    steps = {
        f"step {t}, slot {slots[t, n]}, \\$and \\mo"[:26]
        for n, texts in enumerate(result.particles.step_texts)
        for t in range(len(texts))
    }
    shown = [label for label in labels if label.startswith("step ")]
    assert len(shown) == len(set(shown)) == len(steps)
    assert sum("weight" in label for label in labels) == 16
    assert not overlaps(figure)


def make_small():
    """Four particles, of which 0 and 1 write the same, and 2 dies after one step."""
    return vary(
        make_result(4, 3),
        steps={
            "ancestors": np.array([[0, 1, 2, 3], [0, 1, 3, 3], [0, 1, 2, 3]]),
            "rewards": np.array([[0.2, 0.4, 0.9, 0.5]] * 3),
        },
        particles={
            "step_texts": [
                ["a", "b", "c"],
                ["a", "b", "c"],
                ["d", "e", "f"],
                ["d", "g"],
            ],
            "answers": ["7", "7", "8", None],
            "log_weights": np.log([0.1, 0.2, 0.3, 0.4]),
        },
        posterior={"selected": "7"},
    )


def test_equal_branches_are_merged_with_their_rewards_and_ends():
    result = make_small()
    steps, particles = result.steps, result.particles
    nodes = merged_tree(steps.ancestors, particles.step_texts, steps.rewards)
    found = [(n.step, n.text, n.slots, n.finals, n.ends) for n in nodes]
    assert found == [
        (0, "a", (0, 1), (0, 1), ()),
        (1, "b", (0, 1), (0, 1), ()),
        (2, "c", (0, 1), (0, 1), (0, 1)),
        (0, "d", (3,), (2, 3), ()),
        (1, "e", (2,), (2,), ()),
        (2, "f", (2,), (2,), (2,)),
        (1, "g", (3,), (3,), (3,)),
        (0, None, (2,), (), ()),
    ]
    assert nodes[0].reward == pytest.approx(0.3)
    assert nodes[-1].reward == pytest.approx(0.9)
    assert [node.row for node in nodes] == [0, 0, 0, 1, 1, 1, 2, 3]
    bare = merged_tree(steps.ancestors, particles.step_texts, None)
    assert np.isnan(bare[0].reward)


def test_a_solution_that_is_a_prefix_of_another_ends_on_a_line_of_its_own():
    ancestors = np.array([[0, 1], [0, 0]])
    nodes = merged_tree(ancestors, [["a"], ["a", "b"]], None)
    # Particle 0 has ended with its first step, which particle 1 continues.
    assert [(n.text, n.ends, n.row) for n in nodes] == [
        ("a", (0,), 0),
        ("b", (1,), 1),
        (None, (), 2),
    ]


def test_branches_have_the_colours_of_what_became_of_them_and_a_legend():
    (axes,) = diagnostics.genealogy_figure(make_small()).axes
    colours = [to_hex(line.get_color()).upper() for line in axes.lines]
    assert colours == [diagnostics.SELECTED] * 3 + [diagnostics.ALIVE] * 4 + [
        diagnostics.DEAD
    ]
    labels = [text.get_text() for text in axes.texts]
    for label in (
        "×2 r 0.30",
        "7   weight 0.300",
        "no answer   weight 0.400",
        "r 0.90",
    ):
        assert label in labels
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend[0] == "leads to the selected answer"
    assert len(legend) == 3


@pytest.mark.parametrize("seed", range(5))
def test_no_two_branches_cross(seed):
    result = make_result(16, 12, seed)
    nodes = merged_tree(result.steps.ancestors, result.particles.step_texts, None)
    for t in range(12):
        here = [node for node in nodes if node.step == t]
        here.sort(key=lambda node: node.row)
        assert len({node.row for node in here}) == len(here)
        parents = [nodes[n.parent].row for n in here if n.parent is not None]
        assert parents == sorted(parents)
    # Every particle that exists at a step, and has not ended, is in one node.
    assert sorted(n for node in nodes for n in node.ends) == list(range(16))


@pytest.mark.long
def test_figures_are_files_that_can_be_read(tmp_path):
    paths = diagnostics.save_figures(make_result(5, 2), tmp_path / "deep" / "er")
    assert [p.name for p in paths] == [
        f"{name}.{suffix}"
        for name in ("ess", "weights", "genealogy")
        for suffix in ("png", "pdf")
    ]
    for path in paths[::2]:
        assert matplotlib.image.imread(path).std() > 0.01
    bare = vary(make_result(5, 2), particles={"step_texts": None})
    assert len(diagnostics.save_figures(bare, tmp_path)) == 4


def test_many_particles_are_drawn_without_texts():
    figure = diagnostics.genealogy_figure(make_result(200, 3))
    assert not figure.axes[0].texts


def test_rewards_by_step_are_drawn_where_they_were_kept():
    result = make_result()
    assert len(diagnostics.ess_figure(result).axes) == 2
    without = vary(result, steps={"rewards": None})
    assert len(diagnostics.ess_figure(without).axes) == 1


@pytest.mark.parametrize(
    ("k", "part"),
    [(0.9, "0.90 (unreliable"), (0.5, "0.50 (fine"), (np.nan, "not estimated")],
)
def test_weights_figure_tells_pareto_k(k, part):
    result = vary(make_result(), diagnostics={"pareto_k": k})
    figure = diagnostics.weights_figure(result)
    assert part in figure.axes[0].get_title(loc="left")


def test_figures_of_what_has_no_effective_size_say_so():
    sizes = {"ess": np.full(9, np.nan), "resampled": None}
    result = vary(make_result(), steps=sizes)
    axes = diagnostics.ess_figure(result).axes
    assert "no weighted sample" in axes[0].get_title(loc="left")
    assert axes[-1].get_xlabel() == "turn"
    title = diagnostics.weights_figure(result).axes[0].get_title(loc="left")
    assert "ESS –" in title


def test_a_result_without_texts_of_steps_cannot_be_drawn():
    bare = vary(make_result(), particles={"step_texts": None})
    with pytest.raises(ConfigurationError, match="does not keep the texts"):
        diagnostics.genealogy_figure(bare)


def test_solve_prints_errors_tail_and_degeneracy():
    ancestors = np.stack([np.arange(16), np.zeros(16, int)])
    result = vary(
        make_result(16, 2),
        posterior={"errors": {"2": 0.123, "1": np.nan}},
        evidence={"log_estimate": -1.0, "variance": 0.25},
        diagnostics={"pareto_k": 0.91},
        steps={"ancestors": ancestors},
    )
    text = solution_text(result)
    assert "2  0.250 ± 0.123" in text
    assert "1  0.250 ± unknown" in text
    assert "Log evidence: -1.000 ± 0.500" in text
    assert "Pareto k of the weights: 0.91. Above 0.7 a few particles have" in text
    assert "by step: 1 16" in text
    calm = vary(result, diagnostics={"pareto_k": 0.69}, evidence={"variance": -0.1})
    assert "Above 0.7" not in solution_text(calm)
    assert "Log evidence: -1.000 ± unknown" in solution_text(calm)
