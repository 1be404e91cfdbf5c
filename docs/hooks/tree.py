"""The source tree as a page: the first sentence of every module, by room."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("models", "tsi", "samplers", "experiments")
MARK = "<!-- tree -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark by a table for each room."""
    if MARK not in markdown:
        return markdown
    return markdown.replace(MARK, "\n".join(tree(ROOT)))


def tree(root: Path) -> Iterator[str]:
    """Markdown: a heading for each room, a row for each module."""
    for folder in FOLDERS:
        # The links inside tsi/ lead to the other folders, which come in their turn.
        rooms = [path for path in (root / folder).rglob("*") if path.is_dir()]
        for room in [root / folder, *sorted(rooms)]:
            modules = [path for path in sorted(room.glob("*.py")) if is_shown(path)]
            if not modules or any(part.is_symlink() for part in parents(room, root)):
                continue
            yield f"\n## `{room.relative_to(root)}/`\n"
            yield "| module | what it is |\n|---|---|"
            for path in modules:
                yield f"| `{path.name}` | {first_sentence(path)} |"


def is_shown(path: Path) -> bool:
    """Whether a module has a sentence of its own."""
    return path.name != "__init__.py" and bool(first_sentence(path))


def parents(room: Path, root: Path) -> list[Path]:
    """The room and the folders around it, up to the root."""
    return [path for path in (room, *room.parents) if root in path.parents]


def first_sentence(path: Path) -> str:
    """The first paragraph of a module's docstring, safe within a table."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
