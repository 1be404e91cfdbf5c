"""What an exact checker is shown: only its question and the solution so far."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest
import tiny_language as tiny

from tsi.errors import ConfigurationError
from tsi.rewards.verifier import Verifier


def test_a_checker_sees_the_question_the_text_so_far_and_whether_it_has_ended():
    seen = []

    def check(question, text, ended):
        seen.append((question, text, ended))
        return len(text) + 0.5

    verifier, long = Verifier(check, tiny.decode), "wie schön " * 20
    questions = verifier.prepare(["hello", long])
    prompts = tiny.prompts("hello", "bad")
    state = verifier.init(prompts._replace(questions=questions), 4, 8, None)
    # Beyond a row's tokens is what it had before it was cut back.
    step = SimpleNamespace(
        solution=jnp.asarray([tiny.encode("abcdef")] * 4),
        start=jnp.asarray([1, 4, 0, 2]),
        counts=jnp.asarray([2, 0, 3, 4]),
        stopped=jnp.asarray([False, False, True, False]),
        finished=jnp.asarray([False, True, True, True]),
    )
    _, reading = verifier.read(state, step, None)
    expected = {
        ("hello", "abc", False),
        (long, "abc", True),
        (long, "abcdef", False),
    }
    # The row that took no step is not checked.
    assert set(seen) == expected
    assert reading.log_odds.tolist() == [3.5, 0.0, 3.5, 6.5]
    assert reading.tokens_read.tolist() == [0, 0, 0, 0]
    with pytest.raises(ConfigurationError, match="Prompts the result of its `prepare`"):
        verifier.init(prompts, 4, 8, None)
