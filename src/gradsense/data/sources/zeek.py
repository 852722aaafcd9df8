"""Read Zeek ``conn.log`` files: TSV, IoT-23's labelled TSV and JSON lines, plain or gzip.

Blocks of the file are parsed column by column. A TSV block is read under the final types at once.
Where that fails, or the format is JSON, every cell is first text and then cast, so that a cell
that does not fit its type is found by comparing nulls. A faulty line is dropped and counted by
reason; a fault of the whole file is an error.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl

from gradsense.data.flows import REQUIRED
from gradsense.data.sources.blocks import read_blocks, read_head
from gradsense.data.sources.cells import CellErrors
from gradsense.data.sources.header import zeek_name
from gradsense.data.sources.lines import Lines, undecodable
from gradsense.data.sources.zeek_json import JsonParser, load_json
from gradsense.data.sources.zeek_tsv import TsvParser, missing_columns
from gradsense.data.tally import Tally
from gradsense.errors import InputError

BLOCK_BYTES = 8 << 20
#: Blocks parsed at the same time; polars holds no lock while it parses.
WORKERS = min(4, os.cpu_count() or 1)

_Block = tuple[list[pl.DataFrame], CellErrors]


def read_conn(
    path: Path, *, tally: Tally, strict: bool = False, block_bytes: int = BLOCK_BYTES
) -> Iterator[pl.DataFrame]:
    """Yield the flows of one log as frames with exactly ``FLOW_SCHEMA``, in file order.

    Lines and reasons are counted in ``tally``. Blank lines hold no record and are not counted.
    Memory is bounded by a few times ``block_bytes``, whatever the file's size.

    Raises:
        InputError: the file is empty, binary, unreadable, damaged, has no ``#fields`` or lacks
            a required column; with ``strict`` also at the first malformed line.
    """
    head = read_head(path)
    parser = JsonParser() if _is_json(path, head) else TsvParser(path)
    with ThreadPoolExecutor(WORKERS) as pool:
        pending: deque[Future[_Block]] = deque()
        first_line = 1
        for block in read_blocks(path, block_bytes):
            lines, faults = Lines(block, first_line), CellErrors()
            pending.append(pool.submit(_run, parser.plan(lines, faults), faults))
            first_line += len(lines)
            if len(pending) > WORKERS:
                yield from _counted(pending.popleft().result(), path, tally, strict)
        while pending:
            yield from _counted(pending.popleft().result(), path, tally, strict)


def _run(calls: Sequence[Callable[[], pl.DataFrame]], faults: CellErrors) -> _Block:
    return [call() for call in calls], faults


def _counted(block: _Block, path: Path, tally: Tally, strict: bool) -> Iterator[pl.DataFrame]:
    frames, faults = block
    if strict:
        faults.raise_first(path)
    faults.into(tally, path)
    for frame in frames:
        if frame.height:
            tally.read += frame.height
            yield frame


def is_synthetic(path: Path) -> bool:
    """True if a header line starting with ``#synthetic`` marks the log as generated."""
    return any(line.startswith(b"#synthetic") for line in read_head(path).split(b"\n"))


def _is_json(path: Path, head: bytes) -> bool:
    """Decide between JSON lines and TSV; raise InputError where the file is neither."""
    if not head.strip():
        raise InputError("the file is empty", hint="give a Zeek conn.log", file=path)
    lines = head.split(b"\n")
    if any(line.startswith(b"#fields") for line in lines):
        return False
    whole = lines[:-1] or lines
    if any(line.lstrip().startswith(b"{") for line in whole):
        _check_json_keys(path, whole)
        return True
    if b"\0" in head or undecodable(b"\n".join(whole)):
        raise InputError(
            "is binary, not a Zeek log",
            hint="give a conn.log as TSV or JSON lines, plain or .gz",
            file=path,
        )
    raise InputError(
        "has neither a #fields header nor JSON lines",
        hint="give the conn.log as Zeek wrote it, with its header lines",
        file=path,
        line=1,
    )


def _check_json_keys(path: Path, lines: Sequence[bytes]) -> None:
    """A log whose first records never carry a required key is another log, not a faulty one."""
    keys: set[str] = set()
    for line in lines:
        record = load_json(line)
        if record is not None:
            keys.update(record)
    missing = [zeek_name(name) for name in REQUIRED if zeek_name(name) not in keys]
    if keys and missing:
        raise missing_columns(path, missing, line=1)
