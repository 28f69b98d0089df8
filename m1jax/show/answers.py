"""Generated text in a terminal, as it comes."""

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from m1jax.generate.text import Answer
from m1jax.train.run.faults import StopRequest

# U+2400 and on picture the control characters of ASCII; the ones above DEL have no pictures of their own.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}


def read_all(pieces: Iterator[list[Answer]], console: Console | None = None) -> tuple[list[Answer], bool]:
    """The answers at their end, or at the moment of a Ctrl-C, and whether there was one.

    Where there is a console the first one's text is printed as it comes.
    """
    found: list[Answer] = []
    with StopRequest() as stop:
        for latest in pieces:
            found = latest
            if console is not None:
                console.print(Text(shown(found[0].new)), end="", soft_wrap=True)
            if stop.requested:
                break
    return found, stop.requested is not None and any(answer.finish_reason is None for answer in found)


def shown(text: str) -> str:
    """`text` for a terminal: control characters, which could move its cursor or rename its window, become pictures."""
    return text.translate(_PICTURES)
