"""The engine's particle filter on full-length solutions, compared with other software.

The paper's particle filter on SmolLM2-135M, which judges its own prefixes by one token:
8 word problems, up to 12 steps of up to 100 tokens, steps ending in a blank line.
Claims: at N = 16 at least 5 times the tokens per second of its_hub over llama.cpp, at
N = 64 at least 8 times, and 0.7 of the engine's own rate with all rows busy.

Each measurement is a separate process with its own memory and compilation: ``cold``
starts with an empty compilation cache, ``warm`` with the cache that ``cold`` has
filled. Peers are measured once, on fewer problems, with the Python interpreter that
``--peers`` names (``peer_its_hub.py`` says how to install them). Command: ``make
bench`` or ``python -m tsi.experiments.benchmarks.engine``. Rows are written as they
finish, and the same command resumes. Rows of other commits are kept, but measured
again, because ratios are meaningful only for one state of software and machine.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from tsi.errors import TsiError
from tsi.experiments.benchmarks import busy_rows, filter_run, step_law
from tsi.experiments.benchmarks.engine_table import table
from tsi.experiments.command import exit_code, exit_resumably
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.worlds.provenance import commit
from tsi.models.files import check_writable, write_text
from tsi.models.loading.checkpoint import load, save
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer

HERE = Path(__file__).resolve().parent
PEERS = {
    "its_hub": ("its_hub", "llama_cpp"),
    "transformers": ("transformers", "torch"),
    "llama.cpp": ("llama_cpp",),
}
"""The modules that each peer needs in its interpreter."""


class Cell(NamedTuple):
    """One measurement.

    Attributes:
        what: "filter", "rows" for decoding with all rows busy, or "law" for steps whose
            lengths have a known distribution.
        by: "tsi", "cold" or "warm" for this package, or a key of PEERS.
        size: particles per problem, or rows.
        repeat: index of the repetition.
    """

    what: str
    by: str
    size: int
    repeat: int = 0


class Options(NamedTuple):
    """What to measure.

    Attributes:
        model: a name from `tsi models`; peers need a GGUF file.
        particles: budgets N of the filter.
        problems: number of problems of the filter, at most 8.
        repeats: measurements of each cell of this package; the median is reported.
        law_problems: problems of the run with a known distribution of step lengths, of
            16 particles each; 0 skips it.
        rows: numbers of rows for decoding with all rows busy.
        cache: filled positions of each of those rows' caches.
        max_rows: rows of the filter that write tokens together.
        peers: Python interpreter with the peers, such as peers/bin/python.
        peer_particles: budgets N of its_hub and transformers.
        peer_problems: problems of its_hub; transformers has one.
    """

    model: str = "smollm2-135m"
    particles: tuple[int, ...] = (4, 16, 64)
    problems: int = 8
    repeats: int = 5
    law_problems: int = 64
    rows: tuple[int, ...] = (1, 16, 64, 256)
    cache: int = 256
    max_rows: int = 64
    peers: Path | None = None
    peer_particles: tuple[int, ...] = (4, 16)
    peer_problems: int = 3

    def work(self, cell: Cell) -> dict[str, Any]:
        """The settings on which a cell's row depends."""
        if cell.what == "rows":
            return busy_rows.BusyRows(self.model, cell.size, self.cache)._asdict()
        if cell.what == "law":
            return step_law.Law(self.law_problems, cell.size)._asdict()
        number = {"its_hub": self.peer_problems, "transformers": 1}
        work = filter_run.Work(
            self.model,
            cell.size,
            number.get(cell.by, self.problems),
            max_rows=self.max_rows,
        )
        return work._asdict()


def plan(options: Options, peers: tuple[str, ...]) -> list[Cell]:
    """All measurements in order; each warm one follows its cold one."""
    cells = [Cell("rows", "tsi", size) for size in options.rows]
    if options.law_problems:
        cells.append(Cell("law", "tsi", step_law.Law().particles))
    if "llama.cpp" in peers:
        cells += [Cell("rows", "llama.cpp", size) for size in options.rows]
    for by in ("its_hub", "transformers"):
        if by in peers:
            cells += [Cell("filter", by, size) for size in options.peer_particles]
    return cells + [
        Cell("filter", by, size, repeat)
        for size in options.particles
        for repeat in range(options.repeats)
        for by in ("cold", "warm")
    ]


def key_of(cell: Cell, work: dict[str, Any], label: str) -> str:
    """The key of a row: label, cell and settings."""
    return json.dumps([label, *cell, work], sort_keys=True)


def peers_of(interpreter: Path | None) -> tuple[str, ...]:
    """Peers that are installed for an interpreter; prints which ones are skipped."""
    if interpreter is None:
        print("Peers are skipped, because --peers is not given.")
        return ()
    peers = []
    for peer, modules in PEERS.items():
        code = "import importlib.util as u, sys; "
        code += f"sys.exit(not all(map(u.find_spec, {list(modules)})))"
        if subprocess.run([interpreter, "-c", code]).returncode:
            print(f"{peer} is skipped: {interpreter} lacks {' or '.join(modules)}.")
        else:
            peers.append(peer)
    return tuple(peers)


class Bench:
    """Runs cells in separate processes.

    Args:
        options: what to measure.
        scratch: folder of compilation caches and converted models.
    """

    def __init__(self, options: Options, scratch: Path) -> None:
        self.options, self.scratch = options, scratch

    def measure(self, cell: Cell) -> dict[str, Any]:
        """One cell's numbers.

        Raises:
            BenchmarkError: its process ended with an error, or was killed.
        """
        work = self.options.work(cell)
        if cell.by not in PEERS:
            return self._measure_tsi(cell, work)
        script = {
            "its_hub": "peer_its_hub.py",
            "transformers": "peer_transformers.py",
            "llama.cpp": "peer_llama_rows.py",
        }[cell.by]
        request = json.dumps(self._request(cell, work))
        return run_process(
            [self.options.peers, HERE / script], request, dict(os.environ)
        )

    def _measure_tsi(self, cell: Cell, work: dict[str, Any]) -> dict[str, Any]:
        module = {"rows": busy_rows, "law": step_law, "filter": filter_run}[cell.what]
        command = [sys.executable, "-m", module.__name__, *command_arguments(work)]
        # The folder's path is a part of what JAX looks programs up by.
        cache_folder = self.scratch / f"compiled-{cell.what}-{cell.size}"
        environment = compilation_environment(cache_folder)
        if cell.by != "warm":
            shutil.rmtree(cache_folder, ignore_errors=True)
        try:
            if cell.by == "warm" and not cache_folder.exists():
                # An earlier command has measured the cold one, or it has failed.
                run_process(command, "", environment)
            return run_process(command, "", environment)
        except BenchmarkError:
            # It may lack programs, and a warm measurement must find all of them.
            shutil.rmtree(cache_folder, ignore_errors=True)
            raise

    def _request(self, cell: Cell, work: dict[str, Any]) -> dict[str, Any]:
        path = get(self.options.model)
        if cell.what == "rows":
            return {**work, "path": str(path)}
        tokenizer = load_tokenizer(path)
        request = filter_run.request(filter_run.Work(**work), tokenizer, str(path))
        if cell.by == "transformers":
            folder = self.scratch / "model"
            if not folder.exists():
                save(*load(path), folder)
            prompts = [tokenizer.encode_prompt(p) for p in request["prompts"]]
            request |= {"path": str(folder), "prompt_ids": prompts}
        return request


class BenchmarkError(TsiError):
    """The process of a measurement failed."""


def command_arguments(work: dict[str, Any]) -> list[str]:
    """Command-line arguments of a process that measures."""
    pairs = ((f"--{name.replace('_', '-')}", str(work[name])) for name in work)
    return [part for pair in pairs for part in pair]


def compilation_environment(folder: Path) -> dict[str, str]:
    """Environment variables of a process that keeps compiled programs in a folder."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run_process(command: list[Any], request: str, environment: dict[str, str]) -> Any:
    """The JSON of the last line that a process prints."""
    process = subprocess.run(
        command, input=request, stdout=subprocess.PIPE, text=True, env=environment
    )
    if process.returncode:
        command_text = " ".join(map(str, command[:4]))
        raise BenchmarkError(
            f"{command_text} ... ended with code {process.returncode}."
        )
    return json.loads(process.stdout.splitlines()[-1])


def describe_machine() -> dict[str, Any]:
    """Processor, memory and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return {
        "machine": platform.machine(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "tsi")},
    }


@exit_resumably()
def main(
    options: tyro.conf.OmitArgPrefixes[Options] = Options(),  # noqa: B008
    out: Path = Path("docs/results/engine"),
    label: str | None = None,
) -> int:
    """Measure and write the table; can be resumed.

    Args:
        options: what to measure.
        out: folder of rows.jsonl, machine.json and table.md.
        label: of the rows, by default the commit; rows with other labels are ignored.
    """
    check_writable(out / "table.md")
    label = label or commit() or metadata.version("tsi")
    cells = plan(options, peers_of(options.peers))
    facts, num_failed = describe_machine(), 0
    with (
        AppendOnlyFile(out / "rows.jsonl") as file,
        tempfile.TemporaryDirectory() as scratch,
    ):
        rows = {row["key"]: row for row in map(json.loads, file.lines())}
        bench, table_rows = Bench(options, Path(scratch)), []
        for cell in cells:
            work = options.work(cell)
            key = key_of(cell, work, label)
            if key not in rows:
                load_before = os.getloadavg()[0]
                try:
                    numbers = bench.measure(cell)
                except BenchmarkError as error:
                    print(error, file=sys.stderr)
                    num_failed += 1
                    continue
                rows[key] = {
                    "key": key,
                    "label": label,
                    **cell._asdict(),
                    "work": work,
                    "load": load_before,
                    **numbers,
                }
                file.append(json.dumps(rows[key]).encode() + b"\n")
                print(json.dumps({**cell._asdict(), **numbers}), flush=True)
            table_rows.append(rows[key])
            facts |= rows[key].get("versions", {})
            text = table(table_rows, facts, label)
            write_text(out / "machine.json", json.dumps(facts, indent=1) + "\n")
            write_text(out / "table.md", text + "\n")
    if table_rows:
        print(text)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
