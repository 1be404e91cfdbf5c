"""Where steps and solutions end, from the command line to the texts."""

import doctest

import jax
import pytest

from tsi.errors import ConfigurationError
from tsi.experiments.plans.run_method import run_method
from tsi.experiments.worlds import step_ends as module
from tsi.experiments.worlds.embedded_world import embedded_world
from tsi.experiments.worlds.step_ends import StepEnds, step_ends


def test_the_examples_of_the_docstrings_are_true():
    assert doctest.testmod(module).failed == 0


def test_what_a_shell_hands_over_is_read():
    ends = step_ends([r"\n\n", "## Step", r"\n\\times"], [r"\\neq", "ä", r"\t1"], 3)
    delimiters = ("\n\n", "## Step", "\n\\times")
    assert ends == StepEnds(delimiters, ("\\neq", "ä", "\t1"), 3)


@pytest.mark.parametrize("text", [r"\neq", r"a \times b", r"\n\nEnd", "\udcff"])
def test_what_may_be_meant_in_two_ways_is_refused(text):
    for said in (([text], []), ([], [text])):
        with pytest.raises(ConfigurationError, match=r"^The string .*\.$"):
            step_ends(*said, 1)


@pytest.mark.long
def test_a_world_takes_its_strings_from_the_user():
    ends = StepEnds(("=", "+"), ("2",), 2)
    world = embedded_world("chain", 2, ends=ends)
    assert world.settings["delimiters"] == ["=", "+"]
    assert world.settings["stop_strings"] == ["2"]
    assert world.settings["min_step_tokens"] == 2
    key = jax.random.key(0)
    results = run_method(world, "self_consistency", key, world.problems, 32)
    stopped = 0
    for result in results:
        for text, steps in zip(result.texts, result.particles.step_texts, strict=True):
            assert "2" not in text[:-1]
            stopped += text.endswith("2")
            assert all(len(step) >= 2 for step in steps[:-1])
            cut = world.settings["max_step_tokens"]
            assert all(step[-1] in "=+" or len(step) == cut for step in steps[:-1])
    assert stopped > 5


def test_a_world_that_is_asked_for_nothing_keeps_its_settings():
    assert (
        embedded_world("chain", 1)
        .settings.keys()
        .isdisjoint({"delimiters", "stop_strings", "min_step_tokens"})
    )


def test_a_least_length_above_the_greatest_is_an_error():
    with pytest.raises(ConfigurationError, match=r"at least 500 tokens .*\.$"):
        embedded_world("chain", 1, ends=StepEnds(min_tokens=500))
