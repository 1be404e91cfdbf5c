"""What a run makes of its problems' ends, and what it refuses before it begins."""

import pytest

from tsi import samplers
from tsi.decoding.truncation import Truncation
from tsi.engine.engine_run import Failures
from tsi.engine.run_checks import (
    check_method,
    check_num_particles,
    truncation_in_effect,
)
from tsi.errors import ConfigurationError, ProblemError


def test_failures_are_one_error_with_steps_and_tracebacks():
    failures = Failures()
    failures.check()
    try:
        raise ZeroDivisionError("of a score")
    except ZeroDivisionError as error:
        failures.add("a", error, 3)
    failures.add("b", ValueError("of an answer"))
    with pytest.raises(
        ProblemError, match=r"2 problems failed: 'a' .*at step 3"
    ) as one:
        failures.check()
    assert one.value.steps == {"a": 3}
    assert "of a score" in one.value.tracebacks["a"]
    assert one.value.failures["a"].__traceback__ is None


def test_a_constructor_is_no_method():
    check_method(samplers.particle_filter())
    check_method(samplers.mcts())
    with pytest.raises(ConfigurationError, match=r"call it: particle_filter\(\)"):
        check_method(samplers.particle_filter)
    with pytest.raises(ConfigurationError, match="was given 'smc'"):
        check_method("smc")


@pytest.mark.parametrize("number", [0, -1, 2.0, None])
def test_a_number_of_particles_is_a_positive_integer(number):
    check_num_particles(1)
    with pytest.raises(ConfigurationError, match="at least one particle"):
        check_num_particles(number)


def test_a_truncation_that_keeps_every_token_is_none():
    assert truncation_in_effect(None) is None
    assert truncation_in_effect(Truncation()) is None
    kept = truncation_in_effect(Truncation(top_k=5))
    assert kept is not None
    assert int(kept.top_k) == 5
