"""Cache compiled programs between processes, and count them.

Reading a program from disk takes a tenth of the time of compiling it. Programs are
therefore cached on disk for later processes and resumed runs.
"""

import hashlib
import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tsi.engine.meters.clock import tell_compilation
from tsi.models.loading.catalogue import cache_directory

MAX_BYTES = 2 * 2**30
"""Size of the cache in bytes; the least recently used programs are dropped."""
WORTH_KEEPING = 0.1
"""Programs that take at least this many seconds to compile are kept."""
COMPILED = "/jax/core/compile/backend_compile_duration"
"""The event that JAX sends when a program is compiled, or read from disk."""
COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    COMPILED,
)
"""The events of all stages of compilation for which a call waits."""


def keep_programs() -> Path | None:
    """Keep compiled programs on disk, by default in the user's cache directory.

    ``JAX_COMPILATION_CACHE_DIR``, or a directory set in ``jax.config``, takes
    precedence, and ``JAX_ENABLE_COMPILATION_CACHE=false`` disables the cache. Only the
    user may have write access to the directory, since files in it are run as code.

    Returns:
        The directory; None if programs are not kept.
    """
    config: Any = jax.config
    if not config.jax_enable_compilation_cache:
        return None
    folder = config.jax_compilation_cache_dir
    if folder:
        return Path(folder)
    directory = cache_directory() / "programs" / _machine()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError:
        # The home is read-only: programs are compiled anew, as without a cache.
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    settings: dict[str, float] = {
        "jax_persistent_cache_min_compile_time_secs": WORTH_KEEPING
    }
    # JAX counts bytes only with this package, and fails without it.
    if importlib.util.find_spec("filelock"):
        settings["jax_compilation_cache_max_size"] = MAX_BYTES
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    return directory


def _machine() -> str:
    """Programs for a CPU use its instructions, and a home may serve several machines.

    JAX includes everything else that they depend on in their file names.
    """
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    flags = [line for line in text.splitlines() if line.startswith(("flags", "Feat"))]
    digest = hashlib.sha256("".join(flags[:1]).encode()).hexdigest()[:8]
    return f"{metadata.version('jaxlib')}-{platform.machine()}-{digest}"


class Compilations(NamedTuple):
    """Number of programs that a process compiled or read from disk, and the seconds.

    All programs in all threads are counted, with or without models.
    """

    programs: int
    seconds: float

    def since(self, before: "Compilations") -> "Compilations":
        """The difference from an earlier count."""
        return Compilations(
            self.programs - before.programs, self.seconds - before.seconds
        )


_so_far = Compilations(0, 0.0)


def compilations() -> Compilations:
    """The compilations of this process so far."""
    return _so_far


def _count(event: str, duration_secs: Any, **_: object) -> None:
    # JAX calls this for every event that any package times.
    global _so_far
    if event in COMPILING:
        tell_compilation(duration_secs)
    if event == COMPILED:
        _so_far = Compilations(_so_far.programs + 1, _so_far.seconds + duration_secs)


jax.monitoring.register_event_duration_secs_listener(_count)
