"""Progress bars that count bytes, or other things."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Advance = Callable[[int], None]
"""Counts that many more."""


class ByteBar(Progress):
    """A bar of bytes, speed and time left for each piece of work; it is shown in terminals only and goes at the end."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        super().__init__(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )

    def line(self, title: str, total: int) -> Advance:
        """Adds a line for work on `total` bytes and returns what counts them."""
        task = self.add_task(title, total=total)
        return lambda count: self.advance(task, count)


@contextlib.contextmanager
def counting(console: Console, title: str, total: int) -> Iterator[Advance]:
    """A bar that counts up to `total` things, with the time left; in terminals only, and gone at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
