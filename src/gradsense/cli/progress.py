"""Progress on stderr, and only where somebody is looking."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gradsense.experiments.table import human_bytes


def bars() -> Progress:
    """Bars with a line of news, time spent and time left; silent where stderr is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[news]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def news(
    aggregation: int, accuracy: float | None, f1_macro: float | None, uplink_bytes: int
) -> str:
    """Where a run is, in one short line."""
    parts = [f"round {aggregation}"]
    if accuracy is not None:
        parts.append(f"accuracy {accuracy:.3f}")
    if f1_macro is not None:
        parts.append(f"macro-F1 {f1_macro:.3f}")
    if uplink_bytes:
        parts.append(f"{human_bytes(uplink_bytes)} up")
    return " · ".join(parts)
