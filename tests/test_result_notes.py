"""What a result says of weight without an answer, of its reward, and of its limits."""

import math

import numpy as np
import pytest
from fake_world import FakeEngine, fake_world, vary

from tsi.experiments.plans.methods import sampler_of
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.reports.to_arviz import to_datatree
from tsi.experiments.reports.write_report import write_report
from tsi.experiments.rows.results import read_rows
from tsi.experiments.scaling.scale import run_plan
from tsi.experiments.solving.diagnostics import genealogy_figure, weights_figure
from tsi.experiments.solving.solve import solution_text
from tsi.results.notes import all_truncated, reward_spread
from tsi.results.selection import answer_posterior, unanswered_weight

DEAD = -np.inf
LIMIT, UNANSWERED, ALIKE = "limit cut every", "without an answer", "not discriminate"


def make(
    answers=("7", "8", "7", None),
    rewards=(0.9, 0.2, 0.5, 0.4),
    num_truncated=0,
    step_rewards=None,
    **changes,
):
    """A result in which nothing calls for a note, but for the changes."""
    size = len(answers)
    world = fake_world()
    result = world.engine.result(
        sampler_of("smc", 5), "smc", 0, world.problems[0], size, None
    )
    fields = {
        "texts": [f"solution {n}" for n in range(size)],
        "answers": list(answers),
        "rewards": np.asarray(rewards),
        "log_weights": np.log([1.5, 1.5, 0.9, 0.1] if size == 4 else np.ones(size)),
        "truncated": np.zeros(size, bool),
    } | changes
    posterior = answer_posterior(fields["answers"], fields["log_weights"])
    return vary(
        result,
        particles=fields,
        steps={"rewards": step_rewards},
        posterior={"probabilities": posterior},
        diagnostics={"num_truncated": num_truncated},
    )


@pytest.mark.parametrize(
    ("answers", "log_weights", "expected"),
    [
        (["a", None, "a"], np.log([1.0, 3.0, 2.0]), 0.5),
        (["a", None], [0.0, DEAD], 0.0),
        (["a", None], [DEAD, 0.0], 1.0),
        (["a", None, None], [DEAD] * 3, 2 / 3),
        (["a", "", None, None], [0.0, 0.0, math.nan, 0.0], 1 / 3),
        ([None], [-5.0], 1.0),
        (["a"], [3.0], 0.0),
        (["a", None], [7000.0, 7000.0], 0.5),
    ],
)
def test_unanswered_weight_and_posterior_are_the_whole(answers, log_weights, expected):
    log_weights = np.asarray(log_weights)
    assert unanswered_weight(answers, log_weights) == pytest.approx(expected)
    # Times the rest, the posterior is each answer's share of all the weight.
    if 0 < expected < 1:
        named = ["none" if answer is None else answer for answer in answers]
        of_all = answer_posterior(named, log_weights)
        for answer, share in answer_posterior(answers, log_weights).items():
            assert share * (1 - expected) == pytest.approx(of_all[answer])


def test_a_sound_result_has_no_notes():
    result = make()
    assert result.unanswered == pytest.approx(0.025)
    assert result.notes == ()


def test_weight_without_an_answer_is_said_and_shown():
    result = make(answers=("7", None, "8", None))
    assert result.unanswered == pytest.approx(0.4)
    (note,) = result.notes
    assert note.startswith("40 % of the weight is on particles without an answer")
    text = solution_text(result)
    assert "no answer  0.400 of the weight" in text
    assert f"Note: {note}" in text
    assert "no answer  " not in solution_text(make(answers=("7", "7", "8", "8")))
    for draw in (weights_figure, genealogy_figure):
        figure = draw(result)
        (axes,) = figure.axes
        assert "no answer: 0.400 of the weight" in axes.get_title(loc="left")


def test_arviz_has_the_weight_without_an_answer():
    pytest.importorskip("arviz_base")
    result = make(answers=("7", None, "8", None))
    stats = to_datatree([result])["sample_stats"].dataset
    assert float(stats.unanswered.sel(chain=0, problem=0)) == result.unanswered


@pytest.mark.parametrize(
    ("changes", "spread"),
    [
        ({"rewards": (0.5, 0.5, 0.5, 0.5)}, 0.0),
        ({"rewards": (0.5, 0.51, 0.505, 0.5)}, 0.01),
        ({"rewards": (0.5, 0.53, 0.5, 0.5)}, 0.03),
        ({"rewards": (0.5, math.nan, 0.5, 0.5)}, 0.0),
        ({"rewards": (math.nan,) * 4}, math.nan),
        # What was killed on the way was told apart, too.
        (
            {
                "rewards": (0.5,) * 4,
                "step_rewards": np.array([[0.5, 0.1, 0.5, 0.5], [0.5] * 4]),
            },
            0.4,
        ),
        # A limit's zeros are no judgement; the reward's own are.
        (
            {
                "rewards": (0.5,) * 4,
                "step_rewards": np.array([[0.5] * 4, [0.5, 0.0, 0.5, 0.5]]),
                "num_truncated": 1,
            },
            0.0,
        ),
        (
            {
                "rewards": (0.5,) * 4,
                "step_rewards": np.array([[0.5] * 4, [0.5, 0.0, 0.5, 0.5]]),
            },
            0.5,
        ),
        # Rewards of different steps are not compared.
        (
            {"rewards": (0.5,) * 4, "step_rewards": np.array([[0.2] * 4, [0.5] * 4])},
            0.0,
        ),
        # Copies of one solution have one reward, whatever the reward can tell.
        ({"rewards": (0.5,) * 4, "texts": ["a"] * 4}, math.nan),
    ],
)
def test_a_reward_that_tells_nothing_apart_is_said_to(changes, spread):
    result = make(**changes)
    assert reward_spread(result) == pytest.approx(spread, nan_ok=True)
    alike = spread <= 0.01
    assert [ALIKE in note for note in result.notes] == [True] * alike
    assert (ALIKE in solution_text(result)) == alike
    blind = vary(result, estimand={"reads_reward": False})
    assert blind.notes == ()
    assert ALIKE not in solution_text(blind)


@pytest.mark.parametrize(
    ("truncated", "log_weights", "all_cut"),
    [
        ([True] * 4, np.zeros(4), True),
        ([True] * 4, np.full(4, DEAD), True),
        # Members that pad an explorer's answer do not count.
        ([True, True, False, False], [0.0, 0.0, DEAD, DEAD], True),
        ([True, True, False, False], np.zeros(4), False),
        ([False] * 4, np.full(4, DEAD), False),
        (None, np.zeros(4), True),
    ],
)
def test_a_limit_that_cuts_everything_is_said_and_nothing_else_is(
    truncated, log_weights, all_cut
):
    result = make(
        answers=(None,) * 4,
        truncated=None if truncated is None else np.array(truncated),
        num_truncated=4 if truncated is None else sum(truncated),
        log_weights=np.asarray(log_weights),
    )
    assert all_truncated(result) == all_cut
    (note,) = result.notes
    assert (LIMIT in note) == all_cut
    assert (UNANSWERED in note) != all_cut
    assert f"Note: {note}" in solution_text(result)


def test_a_solution_that_lost_its_weight_is_whole_all_the_same():
    result = make(
        answers=(None, None, "7", "8"),
        truncated=np.array([True, True, False, False]),
        num_truncated=2,
        log_weights=np.array([0.0, 0.0, DEAD, DEAD]),
    )
    assert not all_truncated(result)


class Blind(FakeEngine):
    """Rewards that tell nothing apart; a limit cuts a part of the problems."""

    def result(self, sampler, name, seed, problem, num_particles, temperature):
        result = super().result(
            sampler, name, seed, problem, num_particles, temperature
        )
        size, cut = len(result.texts), problem.id % 4 == 0
        particles = {
            "rewards": np.full(size, 0.5) + 0.001 * np.arange(size) / size,
            "texts": [f"solution {n}" for n in range(size)],
            "truncated": np.full(size, cut),
        }
        particles |= {"answers": [None] * size} if cut else {}
        counts = {"num_truncated": size * cut}
        return vary(result, particles=particles, diagnostics=counts)


@pytest.mark.long
def test_a_run_says_each_thing_once_and_old_rows_have_nothing_to_say(tmp_path):
    plan = make_plan(["smc", "self_consistency"], [2, 4], 1)
    sound = fake_world()
    rows = run_plan(plan, sound, tmp_path / "a" / "rows.jsonl", progress=False)
    clean = write_report(plan, sound, rows, tmp_path / "a")
    assert ALIKE not in clean
    assert LIMIT not in clean

    world = fake_world()._replace(engine=Blind())
    path = tmp_path / "b" / "rows.jsonl"
    run_plan(plan, world, path, progress=False)
    text = write_report(plan, world, read_rows(path), tmp_path / "b")
    table = (tmp_path / "b" / "table.md").read_text()
    for shown in (text, table):
        # Two budgets of the one method that looks at the reward, 20 problems.
        assert shown.count("In 40 of 40 runs all rewards lie within 0.01") == 1
        assert shown.count("In 20 of 80 runs the token or step limit") == 1
        assert shown.count("of the weight is on particles without an answer") == 1
    # Rows of earlier versions have neither number.
    for row in rows.values():
        row.pop("unanswered")
        row.pop("reward_spread")
    assert "Note" not in write_report(plan, sound, rows, tmp_path / "a")
