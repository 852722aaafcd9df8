"""What commands print, and on which console."""

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


def show_lines(console: Console, *lines: str) -> None:
    """Print lines as they are: nothing in them is markup, and none is broken."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_notes(notes: Iterable[str]) -> None:
    """Print notes on a result to stderr."""
    show_lines(Console(stderr=True), *(f"note: {note}" for note in notes))
