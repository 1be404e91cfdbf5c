"""Searches in programs as users compile them, without the suite's flags of XLA."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax
from tsi import run, samplers, targets
keys = jax.random.split(jax.random.key(0), 64)
target, search = targets.peaked(), samplers.step_beam_search()
many = jax.jit(jax.vmap(lambda key: run(search, target, key, 2)))
jax.block_until_ready(many(keys))
"""


@pytest.mark.long
def test_a_program_of_many_small_searches_ends():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
