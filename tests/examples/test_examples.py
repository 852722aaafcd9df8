"""The files in examples/ run as they stand, through the public API only."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


def run(name: str | Path, *args: object, cwd: Path) -> str:
    """What an example prints; of examples/, or another file by its whole path."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def documented() -> dict[str, str]:
    """The Python of the documentation: page and place to code."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {
        f"{page.name}-{number}": code
        for page in pages
        for number, code in enumerate(re.findall(r"(?ms)^```python\n(.+?)^```$", page.read_text()))
    }


@pytest.mark.parametrize("name", documented())
def test_python_in_the_documentation_runs_as_it_is_written(
    name: str, edge_bundle: Path, edge_log: Path, tmp_path: Path
) -> None:
    """Beside what every page calls by these names: an edge bundle and a log."""
    (tmp_path / "edge").symlink_to(edge_bundle)
    (tmp_path / "conn.log").symlink_to(edge_log)
    (tmp_path / "page.py").write_text(documented()[name])
    printed = run(tmp_path / "page.py", cwd=tmp_path)
    assert printed.strip(), "it shows something"


def table(printed: str) -> dict[str, tuple[float, int]]:
    """Algorithm to its accuracy and its uplink bytes."""
    rows = [line.split() for line in printed.splitlines()[1:]]
    return {name: (float(right), int(size.replace(",", ""))) for name, right, _, size, _ in rows}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_is_short_and_uses_the_public_api_only(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 150
    own = {file.stem for file in FILES}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gradsense"):
            assert node.module.count(".") <= 1, f"{node.module} is no package"
            assert node.module not in own
    assert f"python examples/{path.name}" in text, "the docstring says how to run it"


def test_a_gateway_in_ten_lines(edge_bundle: Path, edge_log: Path, tmp_path: Path) -> None:
    code = re.sub(r'(?s)^""".*?"""', "", (EXAMPLES / "gateway.py").read_text())
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    printed = run("gateway.py", edge_bundle, edge_log, "--once", cwd=tmp_path)
    assert re.search(r"^(critical|high|medium) .* sent [\d,]+ connections to ", printed, re.M)
    again = run("gateway.py", edge_bundle, edge_log, "--once", cwd=tmp_path)
    assert again == "", "it knows where it was"


def test_a_fleet_in_one_file(tmp_path: Path) -> None:
    rows = table(run("fleet_in_one_file.py", cwd=tmp_path))
    assert rows["gsfs"][0] > 0.9 > rows["scaffold"][0] > rows["fedavg"][0]
    assert rows["gsfs"][1] < rows["fedavg"][1] / 5


def test_a_new_algorithm_in_one_file(tmp_path: Path) -> None:
    rows = table(run("new_algorithm.py", cwd=tmp_path))
    assert rows["agree"][0] > rows["fedavg"][0] + 0.05
    assert rows["agree"][1] < rows["fedavg"][1]
