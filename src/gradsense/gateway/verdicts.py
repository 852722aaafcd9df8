"""A file of verdicts, one JSON line for each flow, exactly once even after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl

from gradsense.data.flows import Flows, column
from gradsense.detection.detector import Verdict
from gradsense.errors import input_errors

_COLUMNS = ("line", "ts", "uid", "orig_h", "orig_p", "resp_h", "resp_p")


class VerdictLog:
    """Appends verdicts; the file's length is part of the journal's transaction.

    The lines of a batch are written before its transaction. A process that is killed in between
    leaves lines that are not in the journal; ``cut`` removes them at the next start, and their
    flows are judged again.

    Raises:
        InputError: ``path`` cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        hint = "give a writable file as --verdicts"
        with input_errors("cannot write there", hint=hint, file=path):
            self._file = path.open("ab", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Remove everything after ``size`` bytes."""
        if size < self.size:
            self._file.truncate(size)
            self.size = size

    def add(self, log: str, flows: Flows, verdicts: list[Verdict]) -> None:
        """Append one line for each flow, all or none.

        Raises:
            OSError: the disk is full, say; the file is unchanged.
        """
        table = pl.DataFrame(
            {
                "log": pl.repeat(log, len(verdicts), eager=True),
                **{name: column(flows, name) for name in _COLUMNS},
                "verdict": [one.label for one in verdicts],
                "probability": [round(one.probability, 6) for one in verdicts],
                "suspicion": [round(one.suspicion, 6) for one in verdicts],
                "alarm": [one.alarm for one in verdicts],
                "novelty": [one.novelty for one in verdicts],
            },
            schema_overrides={"novelty": pl.Float64},
        )
        data = table.write_ndjson().encode()
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except OSError:
            self._file.truncate(self.size)
            raise
        self.size += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
