"""The console that every verb prints to."""

import sys

from rich.console import Console

WIDTH = 118
"""Columns where the output is no terminal: wide enough for every table."""


def make(as_json: bool = False, quiet: bool = False) -> Console:
    """A console on standard output; on standard error where that is kept for JSON; `quiet` prints nothing."""
    stream = sys.stderr if as_json else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDTH, quiet=quiet)
