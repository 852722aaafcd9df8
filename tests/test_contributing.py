"""The worked diffs in CONTRIBUTING.md apply to this tree, and their tests pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DIFFS = dict(
    re.findall(
        r"^### (.+?)\n.*?^```diff\n(.+?)^```$",
        (ROOT / "CONTRIBUTING.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)


def added(diff: str) -> dict[str, str]:
    """The new files of a diff: path to text."""
    files: dict[str, list[str]] = {}
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            lines = files.setdefault(line.removeprefix("+++ b/"), [])
        elif not line.startswith("--- "):
            assert line.startswith("+"), f"a worked diff adds files and changes none: {line}"
            lines.append(line[1:])
    return {path: "\n".join([*lines, ""]) for path, lines in files.items()}


def test_there_is_one_for_everything_that_is_found_by_being_there() -> None:
    assert list(DIFFS) == [
        *("An algorithm", "A transform", "A source", "A sink", "A template", "A task"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFS)
def test_a_worked_diff_works(name: str, tmp_path: Path) -> None:
    files = added(DIFFS[name])
    code = [path for path in files if path.startswith("src/")]
    tests = [path for path in files if path.startswith("tests/")]
    assert len(tests) == 1
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, text in files.items():
        assert not (tmp_path / path).exists(), f"{path} is there already"
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    # Its own test, and the shared checks that find it by its name.
    stem = Path(code[-1]).stem
    shared = ["tests/test_discovered.py", "-k", stem] if name == "An algorithm" else []
    for arguments in (tests, shared):
        if arguments:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments],
                capture_output=True,
                text=True,
                check=False,
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert " passed" in done.stdout
    for tool in (["ruff", "check"], ["ruff", "format", "--check"]):
        subprocess.run(
            [sys.executable, "-m", *tool, *files], check=True, cwd=tmp_path, capture_output=True
        )
