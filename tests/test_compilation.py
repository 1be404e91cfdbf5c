"""Compiled programs are kept where the user says, or in the user's cache directory."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json
from pathlib import Path
import jax
from tsi.engine.meters.compilation import compilations, keep_programs

before = compilations()
where = keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jax.numpy.sin(x) + 17)(1.0).block_until_ready()
kept = [] if where is None else [p.name for p in Path(where).glob("*-cache")]
counted = compilations().since(before)
mode = None if where is None else oct(Path(where).stat().st_mode & 0o777)
print(json.dumps([str(where), kept, counted.programs, counted.seconds, mode]))
"""


@pytest.fixture
def told(tmp_path):
    """Where programs are kept under an environment, which ones, and what it took."""

    def run(**environment):
        names = [name for name in os.environ if name.startswith("JAX_")]
        clean = {k: v for k, v in os.environ.items() if k not in names}
        clean |= {"TSI_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=clean | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_programs_are_kept_in_the_users_cache(told, tmp_path):
    where, kept, programs, seconds, mode = told()
    assert where.startswith(str(tmp_path / "cache" / "programs"))
    assert kept
    assert programs >= 1
    assert seconds > 0
    assert mode == "0o700"
    # Another process finds them and adds none.
    assert told()[:2] == [where, kept]


def test_what_the_user_says_of_the_cache_goes_before(told, tmp_path):
    mine = tmp_path / "mine"
    assert told(JAX_COMPILATION_CACHE_DIR=str(mine))[0] == str(mine)
    assert not (tmp_path / "cache").exists()
    assert told(JAX_ENABLE_COMPILATION_CACHE="false")[:2] == ["None", []]


def test_a_cache_that_cannot_be_written_is_done_without(told, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    assert told()[:2] == ["None", []]
