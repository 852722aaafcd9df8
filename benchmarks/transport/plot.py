"""The picture of ``compare.py``: how long an upload takes, by its size.

python benchmarks/transport/plot.py FILE.jsonl PICTURE.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

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


def plot(rows: list[dict[str, Any]], path: Path) -> None:
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
        "From a device's decision to speak until the centre has the update", loc="left", fontsize=10
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    lines = Path(sys.argv[1]).read_text().splitlines()
    plot([json.loads(line) for line in lines], Path(sys.argv[2]))
