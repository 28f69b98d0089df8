"""Progress bars of bytes."""

import io

from rich.console import Console

from m1jax.show.progress import ByteBar


def drawn(terminal):
    """What a bar with two lines writes, and the bytes that it counted."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with ByteBar(console) as bar:
        importing, comparing = bar.line("importing", 1000), bar.line("comparing", 2000)
        importing(400)
        comparing(7)
        importing(100)
        bar.refresh()
        return console.file.getvalue(), [task.completed for task in bar.tasks]


def test_each_line_counts_its_own_bytes():
    text, counted = drawn(terminal=True)
    assert counted == [500, 7]
    assert "0.5/1.0 kB" in text and "0.0/2.0 kB" in text


def test_nothing_is_drawn_where_the_output_is_no_terminal():
    assert drawn(terminal=False)[0] == ""
