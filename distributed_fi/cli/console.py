# SPDX-License-Identifier: Apache-2.0
"""What a person sees: answers on stdout, progress and tables on stderr, no bars where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

OnLoad = Callable[[int, int], None]


def stderr_console() -> Console:
    return Console(stderr=True, highlight=False)


@contextmanager
def loading_bar(console: Console, title: str, *, quiet: bool) -> Iterator[OnLoad]:
    """A progress bar of bytes; nothing at all when quiet or not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    is_off = quiet or not console.is_terminal
    # Answers go to stdout themselves, not through the bar's console.
    with Progress(*columns, console=console, transient=True, disable=is_off, redirect_stdout=False) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def small_table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A table whose first column names the row and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def number(value: float | int | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
