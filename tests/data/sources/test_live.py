"""A log as flows: context goes on through restarts, and a damaged place is a clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradsense.data.flows import column
from gradsense.data.sources.following import LiveLog
from gradsense.data.sources.lines import Tally
from gradsense.errors import InputError


def read(source: LiveLog, limit: int = 1 << 20) -> dict[str, list[Any]]:
    names = ("line", "ctx_flows", "ctx_same_port")
    found: dict[str, list[Any]] = {name: [] for name in names}
    while (flows := source.read(limit, Tally(), final=True)) is not None:
        for name in names:
            found[name] += column(flows, name)
    return found


def test_after_a_restart_the_context_is_warm(edge_log: Path, tmp_path: Path) -> None:
    whole = read(LiveLog(edge_log))
    log = tmp_path / "conn.log"
    lines = edge_log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:300]))
    first = LiveLog(log)
    before = read(first)
    place = first.place()
    with log.open("ab") as file:
        file.write(b"".join(lines[300:]))
    after = read(LiveLog(log, place))
    assert {name: before[name] + after[name] for name in whole} == whole
    assert max(after["ctx_flows"][:20]) > 5, "hosts are not taken for new ones"


def test_line_by_line_and_in_blocks_are_the_same(edge_log: Path, tmp_path: Path) -> None:
    log = tmp_path / "conn.log"
    source, shapes = LiveLog(log), set()
    found: list[Any] = []
    lines = edge_log.read_bytes().splitlines(keepends=True)
    with log.open("ab", buffering=0) as file:
        for line in lines:
            file.write(line)
            flows = source.read(1 << 20, Tally(), final=False)
            if flows is not None and len(flows):
                shapes.add(type(flows))
                found += column(flows, "ctx_flows")
    assert list in shapes, "few lines take the short way"
    assert found == read(LiveLog(edge_log))["ctx_flows"]


@pytest.mark.parametrize("place", [{}, {"position": {"inode": "x"}, "stream": {}}])
def test_a_damaged_place_is_a_clear_error(edge_log: Path, place: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--state"):
        LiveLog(edge_log, place)


def test_standard_input_has_no_place() -> None:
    assert LiveLog(Path("-")).place() is None
