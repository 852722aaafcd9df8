"""What the tests of deploy/ read: unit files, YAML, and the commands that texts name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
import yaml  # a dependency of transformers

from gradsense.cli.app import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

Unit = dict[str, list[tuple[str, str]]]

#: Lines of code in a text that run gradsense, and what follows on the line.
COMMANDS = re.compile(r"^ {4,}(?:\S*/)?gradsense ((?:data |fleet )?[a-z]+)\b(.*)$", re.MULTILINE)
#: The same behind another command: in a container, a pod or a unit.
_BEHIND = re.compile(r"(?: -- |=\S*/)gradsense ((?:data |fleet )?[a-z]+)\b(.*)$", re.MULTILINE)


def unit(path: Path) -> Unit:
    """Sections of a unit file, each a list of settings: unlike in INI files, keys repeat."""
    sections: Unit = {}
    settings: list[tuple[str, str]] | None = None
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if section := re.fullmatch(r"\[(\w+)\]", line):
            settings = sections.setdefault(section[1], [])
            continue
        setting = re.fullmatch(r"([A-Z]\w*)=(.*)", line)
        assert setting is not None, f"{path.name}: {line}"
        assert settings is not None, f"{path.name}: before any section: {line}"
        settings.append((setting[1], setting[2]))
    return sections


def values(path: Path, key: str) -> list[str]:
    """All values of a key in a unit's section Service."""
    return [value for name, value in unit(path)["Service"] if name == key]


def known(command: str) -> tuple[set[str], set[str]]:
    """The options of a command, and those of them that must be given."""
    found: Any = typer.main.get_command(app)
    for name in command.split():
        _, found, _ = found.resolve_command(typer.Context(found), [name])
    options = [one for one in found.params if one.param_type_name == "option"]
    needed = {option.opts[0] for option in options if option.required}
    return {name for option in options for name in option.opts}, needed


def check(command: list[str]) -> None:
    """Every option of ``gradsense COMMAND ...`` exists, and none is missing."""
    options, needed = known(command[0])
    given = {word.partition("=")[0] for word in command[1:] if word.startswith("--")}
    assert given <= options
    assert needed <= given


def commands(page: Path) -> list[tuple[str, set[str]]]:
    """Commands of gradsense in a text's code, with the options that each is given."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = [*COMMANDS.findall(text), *_BEHIND.findall(text)]
    return [(name, set(re.findall(r"(?<!\S)\[?(--[a-z0-9-]+)", rest))) for name, rest in found]


def option(command: list[str], name: str) -> str:
    """The value of an option that is given once."""
    return command[command.index(name) + 1]


def documents(path: Path) -> list[dict[str, Any]]:
    """All documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
