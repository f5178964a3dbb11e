# SPDX-License-Identifier: Apache-2.0
"""What a person sees while kernels are built: a bar with the names of those still missing, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

OnProgress = Callable[[str, int, int], None]
SHOWN_NAMES = 3


@contextmanager
def build_bar(names: Sequence[str]) -> Iterator[OnProgress]:
    """A bar on stderr, moved by calls of (name just finished, number done, total); nothing where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    waiting = list(names)
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(_title(waiting), total=len(waiting))

        def on_progress(name: str, done: int, total: int) -> None:
            if name in waiting:
                waiting.remove(name)
            bar.update(task, completed=done, total=total, description=_title(waiting))

        yield on_progress


def _title(waiting: list[str]) -> str:
    more = f", … (+{len(waiting) - SHOWN_NAMES})" if len(waiting) > SHOWN_NAMES else ""
    return f"Building {', '.join(waiting[:SHOWN_NAMES])}{more}"
