"""Under pytest every shape annotation of tsi is checked, at no cost elsewhere.

Most of the suite's time is XLA compiling programs that run for milliseconds, many of
them twice: so they are compiled without LLVM's optimisations, and kept for the length
of the run. ``XLA_FLAGS`` set outside wins.
"""

import contextlib
import ctypes
import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before jax is imported. XLA aborts on a flag that it does not know, and the last two
# are known in these releases: one saves 40 % more of the time, and the other a quarter
# of what is left, since a program is no longer divided among threads.
flags = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    flags += " --xla_cpu_use_fusion_emitters=false"
    flags += " --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", flags)
# One folder a run: workers, and processes that tests start, inherit the variable. JAX
# compiles anew what it cannot read, as where another process is writing it.
_programs = tempfile.TemporaryDirectory(prefix="tsi-programs-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _programs.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

install_import_hook("tsi", "beartype.beartype")


MANY, MOST_RESIDENT = 1.0 * 2**30, 2.0 * 2**30
"""Bytes of a process from which on programs are forgotten after a file, and after every
test: a file forgets those of others no earlier, since what JAX compiles for operations
outside of programs is the same in most files."""


LONGEST = """
    forced_end forced_end_engine partition resampling engine particle_samplers
    conformance numpyro_users reasoning twist learned_twist text_readings reward_engine
    engine_blocks repetition float64 reasoning_store bench_scale engine_explorers
    value_twist suffix_metropolis distributed train_tiny readme language_policy
    search named_reward host_reward truncation result_errors tempered_engine
    numpyro_pmmh divided_model
"""
"""Files that take the longest. They begin, so that none of them ends alone."""


def pytest_collection_finish():
    # All modules are loaded: a full collection need not look at them each time.
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


MANY_RUNS = 10_000
"""Number of runs from which on they take longer than compiling them."""


@pytest.fixture(autouse=True, scope="session")
def _optimised_long_runs():
    from long_runs import OPTIMISED

    from tsi.bench.robustness import Programs

    plain = Programs.compile

    def compile(self, target):
        options = OPTIMISED if self.num_runs >= MANY_RUNS else None
        return plain(self, target, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "compile", compile)
        yield


def resident_bytes() -> int:
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    # Where it cannot be read, programs are forgotten after every file.
    return int(MANY) + 1


def _forget_programs():
    """Compiled programs pile up to gigabytes if they are kept."""
    import jax

    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        # The C library keeps what is freed unless it is asked for it.
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file():
    yield
    if resident_bytes() > MANY:
        _forget_programs()


@pytest.fixture(autouse=True)
def _bounded_memory():
    yield
    if resident_bytes() > MOST_RESIDENT:
        _forget_programs()
