"""The header of a Zeek TSV log: separators, markers and the order of the columns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from gradsense.data.flows import FLOW_SCHEMA, REQUIRED
from gradsense.errors import InputError

#: A header with more columns is no connection log; parsing cost grows with the columns.
MAX_FIELDS = 512

_IDS = ("orig_h", "orig_p", "resp_h", "resp_p")
#: The names that labelled logs give IoT-23's detailed label, the usual one first.
DETAIL_NAMES = ("detailedlabel", "detailed-label", "detailed_label")


def zeek_name(name: str) -> str:
    """A flow column's name in Zeek's own spelling."""
    if name == "detail":
        return DETAIL_NAMES[0]
    return f"id.{name}" if name in _IDS else name


def _flow_name(field_name: str) -> str:
    if field_name in DETAIL_NAMES:
        return "detail"
    return field_name.removeprefix("id.") if field_name.startswith("id.") else field_name


@dataclass(frozen=True)
class ColumnLayout:
    """Where the flow columns are in a line.

    Args:
        columns: one unique name per column of the file; a flow column has its flow name.
        nullable: flow columns in which the unset marker means null.
        compound: the parts of IoT-23's last column, empty where the log has none.
        names: flow column to the log's own name, for messages.
    """

    columns: tuple[str, ...]
    nullable: tuple[str, ...]
    compound: tuple[str, ...]
    names: dict[str, str]


@dataclass(frozen=True)
class Header:
    """The directives in force. ``read`` gives the header after one more ``#`` line."""

    separator: str = "\t"
    unset: str = "-"
    empty: str = "(empty)"
    fields: tuple[str, ...] = field(default=())

    def read(self, text: str, file: Path, line: int) -> Header:
        """Take in one line that starts with ``#``; unknown directives change nothing.

        Raises:
            InputError: the declared separator is not one ASCII character, or ``#fields`` lists
                more than ``MAX_FIELDS`` columns.
        """
        if text.startswith("#separator"):
            # A new header starts here, so what an earlier one declared is over.
            declared = text[len("#separator") :].removeprefix(" ") or " "
            return Header(separator=_separator(declared, file, line))
        name, _, value = text.partition(self.separator)
        if name == "#unset_field":
            return replace(self, unset=value)
        if name == "#empty_field":
            return replace(self, empty=value)
        if name == "#fields":
            fields = tuple(value.split(self.separator, MAX_FIELDS))
            if len(fields) > MAX_FIELDS:
                raise InputError(
                    f"the header lists more than {MAX_FIELDS} columns",
                    hint="give a conn.log",
                    file=file,
                    line=line,
                    field="#fields",
                )
            return replace(self, fields=fields)
        return self

    def missing(self) -> list[str]:
        """Zeek names of the required columns that ``#fields`` does not list."""
        return [zeek_name(n) for n in REQUIRED if zeek_name(n) not in self.fields]

    @cached_property
    def layout(self) -> ColumnLayout | None:
        """None before any ``#fields`` line."""
        if not self.fields:
            return None
        compound = tuple(self.fields[-1].split())
        compound = tuple(map(_flow_name, compound)) if len(compound) > 1 else ()
        columns: list[str] = []
        names: dict[str, str] = {}
        for position, field_name in enumerate(self.fields):
            name = _flow_name(field_name)
            if name in FLOW_SCHEMA and name != "line" and name not in names:
                names[name] = field_name
                columns.append(name)
            else:
                columns.append(f"#{position}")
        nullable = tuple(name for name in names if name not in {"label", "detail"})
        return ColumnLayout(tuple(columns), nullable, compound, names)


def _separator(declared: str, file: Path, line: int) -> str:
    plain = re.sub(r"\\x([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), declared)
    if len(plain) != 1 or not plain.isascii() or plain in "\n\r":
        raise InputError(
            f"the separator {declared!r} is not one ASCII character",
            hint=r"write the log with Zeek's default separator \x09",
            file=file,
            line=line,
            field="#separator",
        )
    return plain
