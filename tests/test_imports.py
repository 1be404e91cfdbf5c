"""Imports point one way: models -> tsi -> samplers -> experiments, and so do rooms.

Inside a folder the rooms have an order, too. A lazy import is an arrow like any other:
two modules that import each other are a circle, wherever the lines are.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ["models", "tsi", "samplers", "experiments"]
"""A folder may import those to its left. Errors are the words all of them share."""

ROOMS: dict[str, list[str]] = {
    "tsi.models": ["*", "workers", "tensors", "tokens", "gguf", "families", "loading"],
    "tsi": [
        "*",
        "targets",
        "decoding",
        "rewards",
        "twists",
        "reasoning",
        "loading",
        "accuracy",
        "results",
        "engine",
        "serving",
        "bench",
        "numpyro",
    ],
    "tsi.engine": ["meters", "paging", "sizing", "programs", "*"],
    "tsi.samplers": ["parts", "*"],
    "tsi.experiments": [
        "files",
        "command named_function problem_options",
        "grading",
        "statistics",
        "tasks",
        "worlds",
        "processes",
        "plans",
        "rows",
        "reports",
        "forecasts",
        "scaling",
        "solving",
        "serving",
        "pages",
        "training",
        "proofs",
        "benchmarks",
        "model_options experiment",
        "reproductions",
        "commands",
        "*",
    ],
}
"""Rooms of a folder, each of which may import those before it.

``*`` are the modules that are in the folder itself; several that have a place of
their own are named together.
"""

PUBLIC = ("tsi", "tsi.experiments")
"""Packages whose names are imported when they are used (`tsi.public_names`).

What they name for type checkers is no arrow; the rest of them is, as anywhere.
"""

LAZY = {
    # `tsi --help` answers at once; a command imports what it needs.
    "tsi.experiments.commands.forecast_output": 7,
    "tsi.experiments.commands.reference_commands": 5,
    "tsi.experiments.commands.scale_commands": 12,
    "tsi.experiments.commands.serve_commands": 5,
    "tsi.experiments.commands.solve_commands": 8,
    "tsi.experiments.commands.study_commands": 3,
    "tsi.experiments.model_options": 7,
    "tsi.experiments.commands.server_command": 4,
    # The process that works within limits starts in a third of a second.
    "tsi.models.loading.untrusted_worker": 2,
    # Loading is measured in a fresh process, its imports included.
    "tsi.experiments.benchmarks.loading": 1,
}
"""How many imports of this package are inside functions, and why."""


def layer_of_module(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] != "tsi":
        return None
    if len(parts) > 1 and parts[1] in ORDER:
        return parts[1]
    return "tsi"


def imports_of(node: ast.AST, module: str, *, is_package: bool = False) -> set[str]:
    """The modules that one import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    package = node.module or ""
    if node.level:
        above = module.split(".")[: -node.level + is_package or None]
        package = ".".join([*above, package]).rstrip(".")
    # `from tsi import samplers` imports the module tsi.samplers.
    return {package} | {f"{package}.{alias.name}" for alias in node.names}


def imported_modules(source: str, module: str) -> set[str]:
    """Every module a file names in an import, wherever in the file."""
    found: set[str] = set()
    tree = ast.parse(source)
    if module in PUBLIC:
        tree.body = [node for node in tree.body if not is_for_type_checkers(node)]
    for node in ast.walk(tree):
        found |= imports_of(node, module)
    return found


def is_for_type_checkers(node: ast.stmt) -> bool:
    """Whether a statement begins with ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def num_lazy_imports(source: str, module: str) -> int:
    """Imports of this package inside functions; what is for type checkers counts not.

    >>> num_lazy_imports("def f():\\n    from tsi import run", "tsi.x")
    1
    """
    tree = ast.parse(source)
    inside = [
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    ]
    return sum(
        any(name.split(".")[0] == "tsi" for name in imports_of(node, module))
        for node in {id(node): node for node in inside}.values()
    )


def wrong_arrows(source: str, module: str) -> list[str]:
    layer = layer_of_module(module)
    assert layer is not None
    allowed = ORDER[: ORDER.index(layer) + 1]
    wrong = []
    for name in sorted(imported_modules(source, module)):
        target = layer_of_module(name)
        shared = name == "tsi.errors" or name.startswith("tsi.errors.")
        # The package name itself decides nothing: what is taken from it does.
        if target is None or shared or (name == "tsi" and layer != "models"):
            continue
        if target not in allowed:
            wrong.append(f"{module} imports {name}")
    return wrong


def room_of(name: str, folder: str) -> tuple[int, str] | None:
    """Which room of a folder a module or something in it belongs to, and its name."""
    if folder == "tsi" and layer_of_module(name) != "tsi":
        return None
    if not name.startswith(f"{folder}."):
        return None
    first = name.removeprefix(f"{folder}.").split(".")[0]
    for place, room in enumerate(ROOMS[folder]):
        if first in room.split():
            return place, first
    path = ROOT.joinpath(
        *folder.split(".")[folder != "tsi" and folder != "tsi.engine" :]
    )
    is_module = (path / f"{first}.py").is_file()
    # A name that is no module is one of the folder's own.
    return (ROOMS[folder].index("*"), "*") if is_module else None


def wrong_rooms(source: str, module: str) -> list[str]:
    """Imports of a room by one that comes before it."""
    wrong = []
    for folder in ROOMS:
        here = room_of(module, folder)
        if here is None:
            continue
        for name in sorted(imported_modules(source, module)):
            there = room_of(name, folder)
            if there is not None and there[0] > here[0]:
                wrong.append(f"{module}, in {here[1]}, imports {name}, in {there[1]}")
    return wrong


def modules():
    for layer in ORDER:
        for path in sorted((ROOT / layer).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            inside_link = layer == "tsi" and parts[1] in ORDER
            if inside_link or "__pycache__" in parts:
                continue
            prefix = () if layer == "tsi" else ("tsi",)
            name = ".".join((*prefix, *parts)).removesuffix(".__init__")
            yield path, name


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or by way of others."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            circle = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(circle) > 1:
                found.append(sorted(circle))

    for name in sorted(arrows):
        if name not in order:
            visit(name)
    return found


def test_no_import_points_the_wrong_way():
    wrong, count = [], 0
    for path, name in modules():
        count += 1
        wrong += wrong_arrows(path.read_text(), name)
        wrong += wrong_rooms(path.read_text(), name)
    assert count > 20
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_order():
    for folder, rooms in ROOMS.items():
        inside = folder.split(".")
        path = ROOT.joinpath(*(inside if inside[-1] not in ORDER else inside[-1:]))
        there = {
            entry.name
            for entry in path.iterdir()
            if (entry / "__init__.py").is_file() and not entry.is_symlink()
        }
        assert there <= set(rooms), folder
        assert {room for room in rooms if " " not in room} - {"*"} <= there, folder


def test_no_modules_import_each_other():
    sources = {name: path.read_text() for path, name in modules()}
    arrows = {
        name: (imported_modules(source, name) & set(sources)) - {name}
        for name, source in sources.items()
    }
    # A package is no more than what is taken from it.
    packages = {name for path, name in modules() if path.name == "__init__.py"}
    for name, found in arrows.items():
        arrows[name] = found - {p for p in packages if name.startswith(f"{p}.")}
    assert not circles(arrows)


def test_lazy_imports_are_those_that_have_a_reason():
    found = {
        name: number
        for path, name in modules()
        if (number := num_lazy_imports(path.read_text(), name))
    }
    assert found == LAZY


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tsi.models.decoder", "import tsi.run"),
        ("tsi.models.decoder", "from tsi import weights"),
        ("tsi.models.decoder", "from ..samplers import smc"),
        ("tsi.run", "from tsi.samplers.smc import smc"),
        ("tsi.run", "def f():\n    from tsi import samplers"),
        ("tsi.run", "from .experiments import cli"),
        ("tsi.samplers.smc", "from tsi.experiments import runner"),
        ("tsi.samplers.smc", "import tsi.experiments.cli as cli"),
    ],
)
def test_a_wrong_arrow_is_caught(module, line):
    assert wrong_arrows(line, module)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tsi.models.families.llama", "from tsi.errors import CheckpointError"),
        ("tsi.models.families.llama", "from tsi.models.layers import RMSNorm"),
        ("tsi.reasoning.target", "from tsi.models.decoder import LanguageModel"),
        ("tsi.samplers.smc", "import tsi\nfrom tsi.ess import ess"),
        ("tsi.experiments.cli", "from tsi.samplers import smc\nimport jax"),
    ],
)
def test_a_right_arrow_is_not(module, line):
    assert not wrong_arrows(line, module)
    assert not wrong_rooms(line, module)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tsi.weights", "from tsi.targets.tabular import TabularTarget"),
        ("tsi.weights", "from tsi import targets"),
        ("tsi.decoding.boundary", "def f():\n    from tsi.rewards import verifier"),
        ("tsi.engine.paging.blocks", "from tsi.engine.sizing import sizes"),
        ("tsi.engine.programs.slots", "from tsi.engine.lane import Lane"),
        ("tsi.models.tokens.tokenizer", "from tsi.models.loading.hub import get"),
        ("tsi.samplers.parts.resampling", "from tsi.samplers.smc import smc"),
        ("tsi.experiments.tasks.chain", "from ..scaling.report import markdown"),
        ("tsi.experiments.files.places", "from tsi.experiments.tasks import get_task"),
    ],
)
def test_a_room_that_looks_ahead_is_caught(module, line):
    assert wrong_rooms(line, module)
