"""The house is in order: names, circles, docstrings, sizes, and the field's own words."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.imports import ROOT, imported, module_file

FILES = sorted(ROOT.rglob("*.py"))
PACKAGES = [path for path in FILES if path.name == "__init__.py"]

#: A file that is in two rooms, and why.
TWICE = {
    "store.py": "a gateway's and an agent's SQLite, each the only store of its room",
    "run.py": "a coordinator's run over MQTT, and an experiment's in the simulator",
}
MOST_LINES = 400
#: Files that are longer, and why.
LONGER: dict[str, str] = {}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# Names ----------------------------------------------------------------------------------------


def doubled(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names that stand in more than one place, with the places."""
    places = defaultdict(list)
    for name, place in found:
        places[name].append(place)
    return {name: where for name, where in places.items() if len(where) > 1}


def test_no_public_class_name_stands_for_two_things() -> None:
    classes = (
        (node.name, relative(path))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert doubled(classes) == {}


def test_no_file_name_is_in_two_rooms() -> None:
    files = (
        (path.name, relative(path))
        for path in FILES
        if path.name != "__init__.py" and path.relative_to(ROOT).parts[0] != "cli"
    )
    assert set(doubled(files)) == set(TWICE)


# Circles --------------------------------------------------------------------------------------


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(path: Path, *, at_once: bool) -> Iterator[str]:
    """The modules of gradsense that a file imports."""
    for name in imported(path, at_once=at_once):
        for candidate in (name, name.rpartition(".")[0]):
            if candidate and module_file(candidate) is not None:
                yield candidate
                break


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Nodes that lead back to the first; empty: there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_modules_do_not_import_in_circles() -> None:
    graph = {module_of(path): set(modules_of(path, at_once=True)) for path in FILES}
    assert sum(map(len, graph.values())) > 500
    assert circle({name: needs - {name} for name, needs in graph.items()}) == []


def test_packages_do_not_import_in_circles() -> None:
    """Not even in functions, or for types alone."""
    graph = defaultdict(set)
    for path in FILES:
        for name in modules_of(path, at_once=False):
            if name.startswith("gradsense."):
                graph[path.relative_to(ROOT).parts[0]].add(name.split(".")[1])
    assert sum(map(len, graph.values())) > 50
    assert circle({name: needs - {name} for name, needs in graph.items()}) == []


# Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PACKAGES, ids=relative)
def test_a_package_says_what_it_is_for_and_names_what_it_has(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text is not None
    assert len(text.split()) >= 4, text
    for name in re.findall(r"``([a-z_.]+)``", text):
        near = [folder for folder in path.parents if folder.is_relative_to(ROOT)]
        there = [folder.joinpath(*name.strip(".").split(".")) for folder in near]
        assert any(p.is_dir() or p.with_suffix(".py").is_file() for p in there), f"no {name}"


def test_no_file_is_too_long() -> None:
    long = {relative(p) for p in FILES if len(p.read_text("utf-8").splitlines()) > MOST_LINES}
    assert long == set(LONGER)


# Words ----------------------------------------------------------------------------------------


def words(text: str) -> set[str]:
    """The words of a text or a name, at underscores and capitals."""
    return set(re.findall(r"[a-z]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text).lower()))


#: Words that docs/glossary.md replaces, in names and in texts: alert, report, local round, device
#: baseline, retraining recommendation, hint, mask, phrase ids, presence, monotonic.
LEFT_OUT = words(
    "rang ring rings ringing tell tells telling told visit visits habit habits "
    "wish wishes wished mend mends mended disguise disguised"
)
PHRASES = ("sign of life", "signs of life", "sign_of_life", "that never fall")
#: The same in names alone, as texts may need them: message, header, retry timeout, send, receive.
IN_NAMES = words(
    "picks letter letters origin patience trouble hear hears heard speak spoke say said"
)
#: Files that mean something else by one of them.
MEANT = {
    "data/flows.py": "tells",  # apart
    "data/networks.py": "told",  # apart
    "data/sources/suricata.py": "letter",  # of a connection's history
    "data/synthetic/traffic.py": "letters",
    "tasks/flows/words.py": "letters",
    "gateway/adapt/drift.py": "wished",  # in the state of an earlier version
    "gateway/alerting/grouping.py": "told",  # likewise
}


def dialect(path: Path) -> str:
    """The left-out words of a file in alphabetical order."""
    source = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    texts = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    in_names = set().union(*map(words, names))
    found = (in_names & (LEFT_OUT | IN_NAMES)) | (set().union(*map(words, texts)) & LEFT_OUT)
    found |= {phrase for phrase in PHRASES if any(phrase in text for text in (*names, *texts))}
    return " ".join(sorted(found))


def test_the_words_are_the_fields() -> None:
    found = {relative(path): said for path in FILES if (said := dialect(path))}
    new = {path: said for path, said in found.items() if MEANT.get(path) != said}
    clean = set(MEANT) - set(found)
    assert (new, clean) == ({}, set()), "see docs/glossary.md"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("was_told = 1", "told"),
        ("class LetterOfRecord: pass", "letter"),
        ('"Only letters and digits."', ""),
        ('f"it rings {1} times"', "rings"),
        ("def sign_of_life(): pass", "sign_of_life"),
        ("toll = string.strings # told", ""),
    ],
)
def test_left_out_words_are_found(source: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(source, encoding="utf-8")
    assert dialect(tmp_path / "some.py") == said
