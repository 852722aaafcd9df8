"""Progress bars on stderr; nothing is shown where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def bars() -> Progress:
    """Bars with a line of news, time spent and time left."""
    return _progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[news]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


@contextmanager
def file_bar(first: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar that moves with every file.

    Yields a function for ``on_file`` parameters: it takes a name, an index from 0 and the number
    of files.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    with _progress(*columns, MofNCompleteColumn(), TimeElapsedColumn(), transient=True) as bar:
        task = bar.add_task(first, total=None)
        yield lambda name, index, total: bar.update(
            task, description=name, completed=index, total=total
        )


def news(aggregation: int, accuracy: float, f1_macro: float, uplink_bytes: int) -> str:
    """Where a run is, in one short line."""
    from gradsense.experiments.table import human_bytes

    line = f"round {aggregation} · accuracy {accuracy:.3f} · macro-F1 {f1_macro:.3f}"
    return f"{line} · {human_bytes(uplink_bytes)} up" if uplink_bytes else line


def _progress(*columns: ProgressColumn, transient: bool = False) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=transient, disable=not console.is_terminal)
