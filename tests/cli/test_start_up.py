"""Help, version and completion answer at once: nothing heavy is imported for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

from gradsense import __version__
from gradsense.cli.app import app
from gradsense.cli.lazy import LazyGroup
from gradsense.cli.options import declared
from gradsense.config import RunSettings

pytestmark = pytest.mark.slow

#: What a command may import when it runs, and not before. Typer itself needs rich for help.
HEAVY = (
    *("numpy", "polars", "torch", "transformers", "tokenizers", "safetensors", "zstandard"),
    *("onnxruntime", "onnx", "sklearn", "scipy", "matplotlib", "jinja2", "peft", "sqlite3"),
    *("paho", "prometheus_client", "cryptography", "httpx", "fastapi", "uvicorn", "asyncio"),
)

#: Runs the entry point with the arguments it is given, and prints what it imported.
PROBE = """
import sys
from gradsense.cli import main
sys.argv[0] = "gradsense"
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("imported", *(name for name in {heavy} if name in sys.modules))
"""


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every command and group, and the empty path of the root."""
    group = group or typer.main.get_command(app)
    yield path
    for name, place in group.places.items():
        if isinstance(place, typer.Typer):
            yield from commands(typer.main.get_command(place), (*path, name))
        else:
            yield (*path, name)


COMMANDS = sorted(commands())


def probe(*args: str, heavy: tuple[str, ...] = HEAVY, **environment: str) -> tuple[str, str]:
    """What the command printed, and which of the heavy modules it imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=heavy), *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )
    assert done.returncode == 0, done.stderr
    printed, _, imported = done.stdout.rpartition("imported")
    return printed, imported.strip()


def test_every_command_is_found() -> None:
    assert ("fleet", "up") in COMMANDS
    assert ("data", "inspect") in COMMANDS
    assert len(COMMANDS) >= 26


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(path: tuple[str, ...]) -> None:
    printed, imported = probe(*path, "--help", heavy=(*HEAVY, "pydantic"))
    assert imported == ""
    assert f"Usage: {' '.join(('gradsense', *path))}" in printed
    last = [line.strip() for line in printed.splitlines() if line.strip()][-1]
    if path not in {(), ("data",), ("fleet",)}:
        assert last.startswith(f"Example: gradsense {' '.join(path)} ")


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option: str) -> None:
    assert probe(option, heavy=(*HEAVY, "pydantic", "rich")) == (f"{__version__}\n", "")


def test_groups_list_their_commands_with_one_line_each() -> None:
    printed, _ = probe("--help")
    assert "needs no data." in printed
    places = [printed.index(f"│ {name} ") for name in ("demo", "train", "data", "fleet")]
    assert places == sorted(places)
    assert "--install-completion" in printed
    assert "--install-completion" not in probe("fleet", "--help")[0]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("gradsense wa", {"watch"}),
        ("gradsense fleet r", {"revoke", "rollback", "rotate", "run"}),
        ("gradsense watch --onc", {"--once"}),
        ("gradsense compare --split ", {"time", "grouped", "random", "network"}),
    ],
)
def test_completion(line: str, offered: set[str]) -> None:
    printed, imported = probe(
        _GRADSENSE_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(line.split(" ")) - 1),
    )
    assert imported == ""
    assert set(printed.split()) == offered


def test_completion_script_calls_the_command() -> None:
    printed, imported = probe("--show-completion", "bash")
    assert "_GRADSENSE_COMPLETE=complete_bash" in printed
    assert imported == ""


def test_a_mistyped_command_is_a_usage_error(gradsense: Callable[..., Any]) -> None:
    done = gradsense("fleet", "enrol", "porch-cam")
    assert done.code == 2
    assert "Did you mean 'enroll'?" in done.err


@pytest.mark.parametrize(
    "line",
    [
        "train --strategy nonsense --out run/",
        "compare --strategies nonsense --out runs/",
        "fleet up --strategy nonsense",
    ],
)
def test_a_former_option_works_and_is_not_shown(
    line: str, gradsense: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gradsense(*line.split()).complaint("nonsense", "fedavg")
    assert "--strateg" not in gradsense(*line.split("--", maxsplit=1)[0].split(), "--help").out


def test_options_are_the_settings() -> None:
    fields, kinds = RunSettings.model_fields, get_type_hints(RunSettings)
    assert declared() == {
        name: (kinds[name], field.default, field.description) for name, field in fields.items()
    }


def test_a_group_is_lazy() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, LazyGroup)
    assert all(not command.params for command in group.commands.values())
