"""What source files import, read without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import gradsense

#: Of the package; where its modules and those of the tests lie.
ROOT = Path(gradsense.__file__).parent
_ROOTS = {"gradsense": ROOT.parent, "tests": Path(__file__).parents[2]}


def module_file(name: str) -> Path | None:
    """The file of a module of gradsense or of the tests; None where the name is no module."""
    if (root := _ROOTS.get(name.partition(".")[0])) is None:
        return None
    path = root.joinpath(*name.split("."))
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.is_file()), None)


@cache
def imported(path: Path, *, at_once: bool = False) -> frozenset[str]:
    """Full names of all modules that a file imports, and of what it imports from them.

    Args:
        at_once: only what is imported when the file itself is: not in functions, not for types.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _at_once(tree) if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def _at_once(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not for_types:
            yield node
            yield from _at_once(node)


@cache
def reached(path: Path) -> frozenset[str]:
    """The outermost packages that are imported with a file, by itself or by what it imports."""
    found, files = set(), [path]
    seen = {path}
    for file in files:
        for name in imported(file, at_once=True):
            found.add(name.partition(".")[0])
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):  # packages run before what is in them
                other = module_file(".".join(parts[:depth]))
                if other is not None and other not in seen:
                    seen.add(other)
                    files.append(other)
    return frozenset(found)
