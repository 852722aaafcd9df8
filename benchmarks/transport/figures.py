"""The rows that every transport gives, and how they are shown."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

SIZES = [100, 650_000, 5_000_000, 50_000_000]
_UPLOADS = {
    "n": "{:d}",
    "upload_ms_median": "{:,.1f}",
    "upload_ms_max": "{:,.1f}",
    "roundtrip_ms_median": "{:,.1f}",
    "cpu_s_device": "{:.5f}",
    "cpu_s_centre": "{:.5f}",
}
_MEMORY = {
    "devices": "{:d}",
    "device_idle_mb": "{:.1f}",
    "device_peak_mb": "{:.1f}",
    "centre_idle_mb": "{:.1f}",
    "centre_peak_mb": "{:.1f}",
}


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Two tables on standard error: uploads, and memory (rows with ``devices``)."""
    console = Console(file=sys.stderr, width=120)
    for columns, title in ((_UPLOADS, "uploads"), (_MEMORY, "memory")):
        table = Table("system", "bytes", title=title)
        for column in columns:
            table.add_column(column.replace("_", " "), justify="right")
        for row in rows:
            if columns.keys() <= row.keys():
                cells = [form.format(row[column]) for column, form in columns.items()]
                table.add_row(row["system"], f"{row['bytes']:,}", *cells)
        if table.rows:
            console.print(table)
