"""Forced ends from the command line to the rows."""

import doctest

import jax
import numpy as np
import pytest

from tsi.decoding.forced_end import ForcedEnd
from tsi.errors import ConfigurationError
from tsi.experiments.cli import main
from tsi.experiments.plans.run_method import run_method
from tsi.experiments.plans.shared_rollouts import first_rollouts
from tsi.experiments.rows.results import read_rows
from tsi.experiments.worlds import forced_text as module
from tsi.experiments.worlds.embedded_world import embedded_world
from tsi.experiments.worlds.forced_text import ForcedText, forced_text
from tsi.experiments.worlds.step_ends import StepEnds, step_ends


def test_the_examples_of_the_docstrings_are_true():
    assert doctest.testmod(module).failed == 0


def test_options_say_what_is_forced():
    assert forced_text(False, None, None) is None
    assert forced_text(True, None, None) == ForcedText()
    assert forced_text(False, "So", 3) == ForcedText("So", 3)
    said = step_ends([], [], 1, forced_end_string=r"\n+5")
    assert said.forced == ForcedText("\n+5")


@pytest.mark.parametrize(
    ("options", "words"),
    [((True, "", None), "is empty"), ((True, None, 4), "--forced-end-string")],
)
def test_options_that_say_nothing_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=rf"{words}.*\.$"):
        forced_text(*options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ForcedText("=12345"), "has 6 tokens, 1 are reserved"),
        (ForcedText("=1", 9), "has 2 tokens, 9 are reserved"),
        (ForcedText("The answer is"), "cannot spell all of"),
    ],
)
def test_a_string_that_does_not_fit_the_task_is_refused(text, words):
    with pytest.raises(ConfigurationError, match=rf"{words}.*\.$"):
        embedded_world("chain", 1, ends=StepEnds(forced=text))


def test_a_string_without_tokens_is_refused():
    with pytest.raises(ConfigurationError, match=r"has no tokens .*\.$"):
        module.forced_end_of(ForcedText("\u200b"), lambda text: [], 8, 16)


@pytest.fixture(scope="module")
def forced_world():
    # So hot that solutions seldom end by themselves.
    ends = StepEnds(forced=ForcedText("+5=", 2))
    return embedded_world("chain", 2, ends=ends, temperature=3.0)


@pytest.mark.long
def test_a_world_forces_what_is_asked_for_and_says_so(forced_world):
    world = forced_world
    assert world.settings["forced_end"] == {"string": "+5=", "answer_tokens": 2}
    assert world.engine.target.forced_end == ForcedEnd(
        tuple(world.engine.encode("1+5=2:")[1:4]), 2
    )
    results = run_method(world, "smc", jax.random.key(0), world.problems, 32)
    forced = 0
    for result in results:
        assert result.diagnostics.num_truncated == 0
        assert np.isfinite(result.log_weights).all()
        assert np.isfinite(result.log_evidence)
        for text, steps in zip(result.texts, result.particles.step_texts, strict=True):
            if len(steps) == 7 and result.particles.log_corrections is not None:
                forced += 1
                assert "+5=" in text
    assert forced > 5
    plain = embedded_world("chain", 2, temperature=3.0)
    cut = run_method(plain, "smc", jax.random.key(0), plain.problems, 32)
    assert any(result.diagnostics.num_truncated for result in cut)
    assert "forced_end" not in plain.settings


@pytest.mark.long
def test_votes_are_read_off_a_run_with_what_their_ends_cost(forced_world):
    world, key = forced_world, jax.random.key(1)
    (whole, _) = run_method(world, "weighted_best_of_n", key, world.problems, 8)
    (alone, _) = run_method(world, "self_consistency", key, world.problems, 4)
    read = first_rollouts(whole, 4, alone.estimand)
    assert read.texts == alone.texts
    assert float(np.ptp(alone.log_weights)) > 0.1
    np.testing.assert_allclose(read.log_weights, alone.log_weights, atol=1e-4)
    assert read.log_evidence == pytest.approx(alone.log_evidence, abs=1e-4)
    np.testing.assert_array_equal(
        read.particles.log_corrections, whole.particles.log_corrections[:4]
    )


@pytest.mark.long
def test_a_problem_is_solved_and_rows_are_kept_apart(tmp_path, capsys):
    solve = ["solve", "7*8+5-9", "--budget", "4", "--forced-end-string", "="]
    assert main([*solve, "--forced-end-tokens", "3", "--temperature", "3"]) == 0
    assert "Log evidence:" in capsys.readouterr().out
    scale = ["scale", "--methods", "self_consistency", "--budgets", "2"]
    scale += ["--num-problems", "2", "--out", str(tmp_path), "--no-progress"]
    assert main([*scale, "--forced-end"]) == 0
    rows = read_rows(tmp_path / "rows.jsonl")
    settings = [row["settings"]["forced_end"] for row in rows.values()]
    assert settings == [{"string": ""}] * 2
    assert main([*scale, "--forced-end"]) == 0
    capsys.readouterr()
    for other in ([], ["--forced-end-string", "=", "--forced-end-tokens", "2"]):
        assert main([*scale, *other]) == 2
        error = capsys.readouterr().err
        assert "forced_end is {'string': ''} there" in error
    assert read_rows(tmp_path / "rows.jsonl") == rows
