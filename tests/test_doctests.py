"""The examples in docstrings run, wherever they stand; the main classes have one."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import gradsense

ROOT = Path(gradsense.__file__).parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.FAIL_FAST


def module_of(path: Path) -> str:
    parts = ("gradsense", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


WITH_EXAMPLES = sorted(module_of(path) for path in ROOT.rglob("*.py") if ">>> " in path.read_text())

#: Where a newcomer looks first.
MAIN = {
    "gradsense",
    "gradsense.config",
    "gradsense.data.networks",
    "gradsense.data.sources.stream",
    "gradsense.errors",
    "gradsense.federation.algorithm",
    "gradsense.federation.coordinator",
    "gradsense.federation.pools",
    "gradsense.fleet.jobs",
    "gradsense.gateway.settings",
    "gradsense.prompts.templates",
    "gradsense.simulation.devices",
    "gradsense.tasks.task",
    "gradsense.transport.pacing",
    "gradsense.transport.protocol",
}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_run(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name), optionflags=OPTIONS)
    assert tried
    assert not failed


def test_the_main_classes_have_examples() -> None:
    assert set(WITH_EXAMPLES) >= MAIN
