"""Figures of a result, and what `tsi solve` says of its errors."""

import matplotlib.image
import numpy as np
import pytest
from fake_world import fake_world
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from tsi.accuracy.degeneracy import lineages
from tsi.accuracy.diagnostics import diagnose
from tsi.errors import ConfigurationError
from tsi.experiments.scaling.methods import sampler_of
from tsi.experiments.solving import diagnostics
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
    diagnosis = diagnose(answers, log_weights, -1.0, ancestors, resampled)
    return result._replace(
        ancestors=ancestors,
        step_texts=step_texts,
        answers=answers,
        log_weights=log_weights,
        ess=rng.uniform(1, size, num_steps),
        selected="2",
        answer_posterior=dict.fromkeys(sorted({a for a in answers if a}), 0.25),
        step_rewards=rng.random((num_steps, size)),
        **diagnosis._asdict(),
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
    slots = lineages(result.ancestors)
    steps = {
        (t, int(slots[t, n]))
        for n, texts in enumerate(result.step_texts)
        for t in range(len(texts))
    }
    assert len(labels) == len(steps) + 16
    assert not overlaps(figure)


def test_branches_have_the_colours_of_what_became_of_them():
    result = make_result(4, 3)._replace(
        ancestors=np.array([[0, 1, 2, 3], [1, 1, 3, 3], [0, 0, 2, 1]]),
        answers=["7", "8", "2", None],
    )
    (axes,) = diagnostics.genealogy_figure(result).axes
    count = {
        to_hex(lines.get_colors()[0]).upper(): len(lines.get_paths())
        for lines in axes.collections
        if isinstance(lines, LineCollection) and lines.get_paths()
    }
    # Selected: 3, 2, 2. Alive: 1; 0 and 1; 0, 1 and 3. Dead: 0 and 2; 3; none.
    assert count == {
        diagnostics.SELECTED: 3,
        diagnostics.ALIVE: 6,
        diagnostics.DEAD: 3,
    }


@pytest.mark.parametrize("seed", range(5))
def test_no_two_branches_cross(seed):
    result = make_result(16, 12, seed)
    slots = lineages(result.ancestors)
    alive = diagnostics._marked(slots, np.ones(16, bool))
    rows = diagnostics._planar_rows(result.ancestors, alive)
    for t in range(1, 12):
        assert sorted(rows[t]) == list(range(16))
        parents = rows[t - 1][result.ancestors[t]][np.argsort(rows[t])]
        assert np.all(np.diff(parents) >= 0)


def test_figures_are_files_that_can_be_read(tmp_path):
    paths = diagnostics.save_figures(make_result(5, 2), tmp_path / "deep" / "er")
    assert [p.name for p in paths] == ["ess.png", "weights.png", "genealogy.png"]
    for path in paths:
        assert matplotlib.image.imread(path).std() > 0.01
    unrelated = make_result(5, 2)._replace(unique_ancestors=None)
    assert len(diagnostics.save_figures(unrelated, tmp_path)) == 2


def test_many_particles_are_drawn_without_texts():
    figure = diagnostics.genealogy_figure(make_result(70, 3))
    assert not figure.axes[0].texts


def test_rewards_by_step_are_drawn_where_they_were_kept():
    result = make_result()
    assert len(diagnostics.ess_figure(result).axes) == 2
    assert len(diagnostics.ess_figure(result._replace(step_rewards=None)).axes) == 1


@pytest.mark.parametrize(
    ("k", "part"),
    [(0.9, "0.90 (unreliable"), (0.5, "0.50 (fine"), (np.nan, "not estimated")],
)
def test_weights_figure_tells_pareto_k(k, part):
    figure = diagnostics.weights_figure(make_result()._replace(pareto_k=k))
    assert part in figure.axes[0].get_title(loc="left")


def test_figures_of_what_has_no_effective_size_say_so():
    result = make_result()._replace(ess=np.full(9, np.nan), resampled=None)
    axes = diagnostics.ess_figure(result).axes
    assert "no weighted sample" in axes[0].get_title(loc="left")
    assert axes[-1].get_xlabel() == "turn"
    title = diagnostics.weights_figure(result).axes[0].get_title(loc="left")
    assert "ESS –" in title


def test_a_result_without_genealogy_cannot_be_drawn():
    with pytest.raises(ConfigurationError, match="keeps no genealogy"):
        diagnostics.genealogy_figure(make_result()._replace(unique_ancestors=None))


def test_solve_prints_errors_tail_and_degeneracy():
    result = make_result()._replace(
        answer_errors={"2": 0.123, "1": np.nan},
        log_evidence=-1.0,
        log_evidence_variance=0.25,
        pareto_k=0.91,
        unique_ancestors=np.array([1, 16]),
    )
    text = solution_text(result)
    assert "2  0.250 ± 0.123" in text
    assert "1  0.250 ± unknown" in text
    assert "Log evidence: -1.000 ± 0.500" in text
    assert "Pareto k of the weights: 0.91. Above 0.7 a few particles carry" in text
    assert "by step: 1 16" in text
    calm = result._replace(pareto_k=0.69, log_evidence_variance=-0.1)
    assert "Above 0.7" not in solution_text(calm)
    assert "Log evidence: -1.000 ± unknown" in solution_text(calm)
