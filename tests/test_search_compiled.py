"""Searches in programs as users compile them, without the suite's flags of XLA."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tsi.samplers.parts.solutions import best_solutions

PROGRAM = """
import sys
import jax
from tsi import run, samplers, targets

search, target = getattr(samplers, sys.argv[1])(), targets.peaked()
keys = jax.random.split(jax.random.key(0), 64)
for count in (2, 3):
    many = jax.jit(jax.vmap(lambda key: run(search, target, key, count)))
    jax.block_until_ready(many(keys))
"""
SEARCHES = (
    "beam_search",
    "dvts",
    "rebase",
    "step_beam_search",
    "lookahead_search",
    "mcts",
    "ab_mcts",
)


@pytest.mark.long
@pytest.mark.parametrize("name", SEARCHES)
def test_a_program_of_many_small_searches_ends(name):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name],
        env=os.environ | {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_places_without_a_solution_are_copies_of_the_best():
    potentials = jnp.asarray([0.5, 2.0, 1.0, 3.0])
    ended = jnp.asarray([True, True, True, False])
    exists = jnp.asarray([False, True, True, True])
    found = best_solutions(potentials, ended, exists, 4)
    np.testing.assert_array_equal(found.members, [1, 2, 1, 1])
    np.testing.assert_array_equal(found.log_potentials, [2.0, 1.0, 2.0, 2.0])
    np.testing.assert_allclose(found.log_weights[:2], np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(found.log_weights[2:], -np.inf)
    assert found.finished.all()
