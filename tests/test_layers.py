"""The house rule: imports run downwards only, and federation touches neither files nor clocks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gradsense

ROOT = Path(gradsense.__file__).parent
FLOORS = (
    *("cli", "experiments", "localfleet", "agent", "gateway", "coordinator", "fleet", "serving"),
    *("simulation", "transport", "detection", "federation", "learning", "models", "prompts"),
    *("tasks", "data", "config", "storage", "discovery", "exports", "errors"),
)
FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if own == "__main__":
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "gradsense" and len(parts) > 1 and parts[1] in FLOORS:
            assert FLOORS.index(parts[1]) >= FLOORS.index(own), f"{own} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "federation").glob("*.py")), ids=lambda p: p.name)
def test_federation_is_pure(path: Path) -> None:
    heavy = {"torch", "transformers", "time", "datetime", "threading", "asyncio", "socket", "os"}
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & (heavy | {"pathlib", "pickle", "random"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"pickle", "dill", "joblib", "shelve", "marshal", "multiprocessing"}


def test_a_coordinator_needs_no_torch() -> None:
    code = "import sys, gradsense.federation.coordinator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
