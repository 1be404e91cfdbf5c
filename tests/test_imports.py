"""Imports point one way: models -> tsi -> samplers -> experiments."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ["models", "tsi", "samplers", "experiments"]
"""A folder may import those to its left. Errors are the words all of them share."""


def layer_of_module(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] != "tsi":
        return None
    if len(parts) > 1 and parts[1] in ORDER:
        return parts[1]
    return "tsi"


def imported_modules(source: str, module: str) -> set[str]:
    """Every module a file names in an import, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level]
                package = ".".join([*above, package]).rstrip(".")
            found.add(package)
            # `from tsi import samplers` imports the module tsi.samplers.
            found |= {f"{package}.{alias.name}" for alias in node.names}
    return found


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


def test_no_import_points_the_wrong_way():
    wrong, count = [], 0
    for path, name in modules():
        count += 1
        wrong += wrong_arrows(path.read_text(), name)
    assert count > 20
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tsi.models.families.llama", "import tsi.run"),
        ("tsi.models.families.llama", "from tsi import weights"),
        ("tsi.models.families.llama", "from ..samplers import smc"),
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
        ("tsi.samplers.smc", "import tsi\nfrom tsi.weights import ess"),
        ("tsi.experiments.cli", "from tsi.samplers import smc\nimport jax"),
    ],
)
def test_a_right_arrow_is_not(module, line):
    assert not wrong_arrows(line, module)
