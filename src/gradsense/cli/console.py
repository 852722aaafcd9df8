"""The console for results."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

#: Columns of a result that goes into a file or a pipe; rich's own 80 break the tables.
FILE_WIDTH = 120


def results_console() -> Console:
    """Standard output: as wide as the terminal, at least ``FILE_WIDTH`` where it is none."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    return console


def show_notes(notes: Iterable[str]) -> None:
    """Print notes on a result to stderr."""
    console = Console(stderr=True)
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
