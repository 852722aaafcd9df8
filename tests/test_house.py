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
    "run.py": "coordinator/ and experiments/: to be told apart",
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
        parts = name.split(".")
        rooms = [
            folder / parts[0] for folder in (path.parent, ROOT) if (folder / parts[0]).is_dir()
        ] or [path.parent / f"{parts[0]}.py"]
        assert any(room.exists() for room in rooms), f"there is no {name}"


def test_no_file_is_too_long() -> None:
    long = {relative(p) for p in FILES if len(p.read_text("utf-8").splitlines()) > MOST_LINES}
    assert long == set(LONGER)


# Words ----------------------------------------------------------------------------------------

#: Words that docs/glossary.md replaces, in names and in texts: alert, report, local round, device
#: baseline, retraining recommendation, hint, mask, phrase ids, presence, monotonic.
LEFT_OUT = set(
    "rang ring rings ringing tell tells telling told visit visits visited habit habits "
    "wish wishes wished mend mends mended disguise disguised picks".split()
)
PHRASES = ("sign of life", "signs of life", "sign_of_life", "never fall")
#: The same in names alone, as texts may need them: message, header, retry timeout, send, receive.
IN_NAMES = set("letter letters origin patience trouble hear hears heard speak spoke say said".split())
#: What is left, to be emptied. A file that is clean leaves the list: the test says so.
REMAINING: dict[str, str] = {
    "agent/agent.py": "heard letter never fall origin sign_of_life spoke tell told visit visits",
    "agent/downlink.py": "never fall origin tells told",
    "agent/handover.py": "ring told",
    "agent/label_rules.py": "mend",
    "agent/labelling.py": "disguise never fall",
    "agent/limits.py": "never fall",
    "agent/store.py": "letter origin said tells",
    "agent/supervisor.py": "mend never fall",
    "agent/uplink.py": "heard letter never fall origin patience said",
    "cli/calibrate.py": "ring rings",
    "cli/coordinator.py": "told",
    "cli/demo.py": "rang",
    "cli/edge.py": "tell",
    "cli/feedback.py": "ring",
    "cli/fleet_run.py": "told visit",
    "cli/fleet_up.py": "say told",
    "cli/progress.py": "told",
    "cli/watch.py": "rang say tell told",
    "config.py": "visit visits",
    "coordinator/closing.py": "told",
    "coordinator/exporter.py": "told",
    "coordinator/machine.py": "origin",
    "coordinator/opening.py": "told",
    "coordinator/run.py": "letter origin tell",
    "coordinator/service.py": "never fall tell told",
    "coordinator/state.py": "origin tell told",
    "data/context.py": "tells",
    "data/datasets/captures.py": "told",
    "data/datasets/contradictions.py": "told",
    "data/datasets/inspect.py": "told",
    "data/networks.py": "disguise disguised tell",
    "data/sources/following.py": "telling",
    "data/sources/logfile.py": "telling",
    "data/sources/stream.py": "tells told",
    "data/sources/suricata.py": "letter",
    "data/synthetic/traffic.py": "letters",
    "detection/bundle.py": "ring said",
    "detection/calibrate.py": "disguise ring",
    "detection/detector.py": "tell",
    "detection/export.py": "rings told",
    "detection/head.py": "said",
    "detection/verify.py": "said",
    "errors.py": "mend",
    "experiments/compare.py": "told",
    "experiments/demo.py": "rang",
    "experiments/evaluate.py": "told",
    "experiments/preflight.py": "told",
    "experiments/references.py": "visit",
    "experiments/results.py": "ring rings",
    "experiments/run.py": "said told visit visits",
    "experiments/table.py": "ring",
    "experiments/worker.py": "say tell",
    "federation/client.py": "speak spoke told visit visits",
    "federation/codec.py": "heard",
    "federation/coordinator.py": "tells",
    "federation/scaffold.py": "visit",
    "federation/strategies.py": "mend visits",
    "federation/trigger.py": "habit never fall tell visit visits",
    "federation/update.py": "tells",
    "fleet/broker_files.py": "told",
    "gateway/__init__.py": "tell",
    "gateway/adapt/__init__.py": "habits",
    "gateway/adapt/baseline.py": "habits",
    "gateway/adapt/drift.py": "told wish wished",
    "gateway/adapt/operator_feedback.py": "ring",
    "gateway/alerting/alert.py": "tells",
    "gateway/alerting/grouping.py": "never fall rang told",
    "gateway/alerting/sinks/homeassistant.py": "said",
    "gateway/alerting/sinks/mqtt.py": "tells",
    "gateway/alerting/sinks/webhook.py": "said",
    "gateway/delivery.py": "told",
    "gateway/escalation/escalate.py": "said",
    "gateway/instruments.py": "rang wishes",
    "gateway/judge.py": "disguise habits rings told wish wished",
    "gateway/observer.py": "tells told wishes",
    "gateway/reload.py": "habits never fall",
    "gateway/settings.py": "habits mend",
    "gateway/store.py": "told",
    "gateway/watch.py": "habits never fall tell told wish wishes",
    "learning/alarms.py": "ring rings",
    "learning/answers.py": "said",
    "learning/pretraining.py": "told",
    "learning/trainer.py": "visit",
    "localfleet/local_fleet.py": "tells told",
    "models/card.py": "ring",
    "models/folder.py": "habits",
    "prompts/fields.py": "letters picks tells",
    "serving/server.py": "said",
    "simulation/cost.py": "visits",
    "simulation/simulator.py": "spoke visit visited visits",
    "transport/chunks.py": "origin said",
    "transport/connection.py": "hear tell",
    "transport/connection_log.py": "told trouble",
    "transport/messages.py": "letter origin sign_of_life",
    "transport/payloads.py": "origin said sign of life",
    "transport/protocol.py": "origin",
    "transport/signing.py": "origin",
}  # fmt: skip


def words(text: str) -> set[str]:
    """The words of a text or a name, at underscores and capitals."""
    return set(re.findall(r"[a-z]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text).lower()))


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
    new = {path: said for path, said in found.items() if REMAINING.get(path) != said}
    clean = set(REMAINING) - set(found)
    assert (new, clean) == ({}, set()), "see docs/glossary.md; REMAINING may only shrink"


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
