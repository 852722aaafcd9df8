"""A new sink, or a new format, is one new file in its folder, and nothing else is edited."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradsense.errors import InputError
from gradsense.gateway.alerting import formats, sinks
from gradsense.gateway.alerting.sink import SinkContext
from gradsense.gateway.settings import read
from tests.support.sample_alerts import sample

SINK = """
from gradsense.gateway.alerting.sink import SinkContext, SinkSettings
class ExampleSettings(SinkSettings):
    colour: str = "red"
    def open(self, context):
        return ExampleSink(self, context.sensor)
class ExampleSink:
    def __init__(self, settings, sensor):
        self.name, self.colour, self.sensor, self.taken = settings.name, settings.colour, sensor, []
    def send(self, alerts):
        self.taken += alerts
    def close(self):
        pass
"""
FORMAT = """
def document(alert):
    return {"who": alert.device}
"""


@pytest.fixture
def add(tmp_path: Path) -> Iterator[Callable[[object, str, str], None]]:
    """Puts a file into a package for one test."""
    added: list[tuple[list[str], str]] = []

    def put(package: object, name: str, text: str) -> None:
        folder = tmp_path / f"more-{len(added)}"
        folder.mkdir()
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        path: list[str] = package.__path__  # type: ignore[attr-defined]
        path.append(str(folder))
        added.append((path, f"{package.__name__}.{name}"))  # type: ignore[attr-defined]

    yield put
    for path, name in added:
        path.pop()
        sys.modules.pop(name, None)


def test_a_sink(add: Callable[..., None], tmp_path: Path) -> None:
    add(sinks, "example", SINK)
    file = tmp_path / "watch.toml"
    file.write_text('[[sink]]\ntype = "example"\ncolour = "blue"\nmin_severity = "high"\n')
    (setting,) = read(file).sink
    assert (setting.name, setting.min_severity) == ("example", "high")
    sink = setting.open(SinkContext("gate"))
    assert (sink.colour, sink.sensor) == ("blue", "gate")  # type: ignore[attr-defined]
    file.write_text('[[sink]]\ntype = "example"\nshape = "round"\n')
    with pytest.raises(InputError, match=r"sink 1 \(example\): shape.*unknown key"):
        read(file)


def test_a_sink_whose_library_is_missing_is_named(add: Callable[..., None], tmp_path: Path) -> None:
    add(sinks, "pigeon", "import no_such_library.wings\n" + SINK)
    file = tmp_path / "watch.toml"
    file.write_text('[[sink]]\ntype = "jsonl"\npath = "-"\n')
    assert [one.type for one in read(file).sink] == ["jsonl"]
    file.write_text('[[sink]]\ntype = "pigeon"\n')
    with pytest.raises(InputError, match=r"sink 'pigeon' needs the library no_such_library; pip"):
        read(file)


def test_a_format(add: Callable[..., None], tmp_path: Path) -> None:
    add(formats, "short", FORMAT)
    assert "short" in formats.names()
    assert json.loads(formats.as_json(sample(), "short")) == {"who": "192.168.1.195"}
    file = tmp_path / "watch.toml"
    file.write_text('[[sink]]\ntype = "jsonl"\npath = "-"\nformat = "short"\n')
    assert len(read(file).sink) == 1
    file.write_text('[[sink]]\ntype = "jsonl"\npath = "-"\nformat = "long"\n')
    with pytest.raises(InputError, match=r"format.*'long' is none of gradsense, ecs, ocsf, short"):
        read(file)
