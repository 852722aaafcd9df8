"""A gateway has no torch: what runs there must not import it, not even by the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Makes every module of the training extra as absent as on a gateway.
FORBID = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in {"torch", "transformers", "peft", "sklearn", "scipy", "matplotlib", "jinja2",
                    "onnx", "onnxscript", "huggingface_hub", "threadpoolctl"}:
            raise ModuleNotFoundError(f"No module named '{root}'", name=root)

sys.meta_path.insert(0, Absent())
"""

IMPORT_ALL = """
import importlib, pkgutil, gradsense
for part in ("agent", "gateway", "detection", "prompts", "data", "cli"):
    package = importlib.import_module(f"gradsense.{part}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        trains = {"detection.export", "detection.verify", "agent.weight_learners"}
        if module.name.removeprefix("gradsense.") not in trains:
            importlib.import_module(module.name)
print("all imported")
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FORBID + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def flows_of(log: Path) -> int:
    return sum(not line.startswith("#") for line in log.read_text().splitlines())


def test_everything_of_the_edge_is_imported_without_torch() -> None:
    done = python(IMPORT_ALL)
    assert done.stdout == "all imported\n", done.stderr


def test_a_bundle_judges_flows_without_torch(edge_bundle: Path, edge_log: Path) -> None:
    done = python("from gradsense.cli import main; main()", "watch", edge_log, "--model",
                  edge_bundle, "--once", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["flows"] == flows_of(edge_log)


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--out", "run"),
        ("evaluate", "--model", "model", "--data", "conn.log"),
        ("export", "--model", "model", "--out", "edge"),
        ("demo", "--out", "demo"),
    ],
    ids=lambda command: command[0],
)
def test_training_says_which_extra_it_needs(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = python("from gradsense.cli import main; main()", *command)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("gradsense: this command needs ")
    assert done.stderr.endswith("; pip install 'gradsense[train]'\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif("CI" not in os.environ, reason="installs packages; runs where CI is set")
def test_the_edge_extra_alone_is_enough(edge_bundle: Path, edge_log: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = (venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    subprocess.run([*pip, "install", "--quiet", f"{ROOT}[edge]"], check=True)
    listed = subprocess.run([*pip, "list"], check=True, capture_output=True, text=True).stdout
    assert "onnxruntime" in listed
    assert "torch" not in listed
    own = venv / "bin" / "gradsense"
    subprocess.run([own, "watch", "--help"], check=True, capture_output=True)
    done = subprocess.run(
        [own, "watch", edge_log, "--model", edge_bundle, "--once", "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["flows"] == flows_of(edge_log)
