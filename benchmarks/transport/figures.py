"""The rows that every transport gives, and how they are shown and drawn."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
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
_COLOURS = {
    "gradsense": "#0b7285",
    "flower": "#c2410c",
    "flower-eager": "#e8a33d",
    "floor": "#8a8f98",
}
_NAMES = {
    "gradsense": "gradsense: MQTT 5, signed, durable at both ends",
    "flower": "Flower 1.41, its own send_and_receive",
    "flower-eager": "Flower 1.41, asked every 50 ms",
    "floor": "plain TLS socket and fsync",
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


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Median and most milliseconds from a device's decision until the centre has the update."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for system, colour in _COLOURS.items():
        own = [row for row in rows if row["system"] == system and "upload_ms_median" in row]
        if not own:
            continue
        sizes = [row["bytes"] for row in own]
        median = [row["upload_ms_median"] for row in own]
        axes.fill_between(
            sizes,
            median,
            [row["upload_ms_max"] for row in own],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        axes.plot(sizes, median, "o-", color=colour, label=_NAMES[system], markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="bytes of an update", ylabel="milliseconds")
    axes.set_xticks([100, 650_000, 5_000_000, 50_000_000], ["100 B", "650 kB", "5 MB", "50 MB"])
    axes.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    axes.minorticks_off()
    axes.set_title(
        "From a device's decision to send until the centre has the update", loc="left", fontsize=10
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
