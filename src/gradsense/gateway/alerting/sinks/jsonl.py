"""JSON lines, appended to a file or standard output."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from pydantic import Field

from gradsense.gateway.alerting.alert import Alert
from gradsense.gateway.alerting.formats import PLAIN, Format, as_json
from gradsense.gateway.alerting.sink import SinkContext, SinkError, SinkSettings

_STDOUT = 1
#: Bytes from the file's end in which the end of the last whole line is searched.
_LONGEST_LINE = 1 << 20


class JsonlSettings(SinkSettings):
    """Appends to the file ``path``, or to standard output if it is ``-``."""

    path: str = Field(min_length=1)
    format: Format = PLAIN

    def open(self, context: SinkContext) -> JsonlSink:
        return JsonlSink(self)


class JsonlSink:
    """Appends each batch in one write and syncs it to the disk.

    The file never keeps a part of a line: a write that did not fit is cut away, and so is a half
    line after a power cut. A file that was moved away (logrotate) is created anew.
    """

    def __init__(self, setting: JsonlSettings) -> None:
        self.name = setting.name
        self._path = setting.path
        self._format = setting.format
        self._file: int | None = None

    def send(self, alerts: Sequence[Alert]) -> None:
        """Append all of them or none."""
        data = "".join(f"{as_json(alert, self._format)}\n" for alert in alerts).encode()
        try:
            if self._path == "-":
                _write_all(_STDOUT, data)
            else:
                _append(self._current(), data)
        except OSError as error:
            raise SinkError(f"{self._path}: cannot write: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file; standard output stays open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _current(self) -> int:
        if self._file is not None and not _same(self._path, self._file):
            self.close()
        if self._file is None:
            # O_NONBLOCK: opening a named pipe without a reader must not block.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            self._file = os.open(self._path, flags, 0o640)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                self.close()
                raise OSError(f"it is no file; '-' is standard output ({self._path})")
            _drop_half_line(self._file)
        return self._file


def _same(path: str, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _append(file: int, data: bytes) -> None:
    size = os.fstat(file).st_size
    try:
        _write_all(file, data)
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


def _write_all(file: int, data: bytes) -> None:
    """Usually one write; if only a part fitted, the next one raises the reason."""
    while data:
        data = data[os.write(file, data) :]


def _drop_half_line(file: int) -> None:
    size = os.fstat(file).st_size
    start = max(0, size - _LONGEST_LINE)
    tail = os.pread(file, size - start, start)
    end = start + tail.rfind(b"\n") + 1
    if end < size and (end > start or start == 0):
        os.ftruncate(file, end)
