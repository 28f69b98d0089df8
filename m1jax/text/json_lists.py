"""The objects of a .json file that is one list of them, read a piece at a time: such files hold whole data sets."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Protocol

from m1jax.text.records import LARGEST

_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:[{\]]|\Z)")
_BETWEEN = re.compile(r"[\s,]*")
_READ = 1 << 16


class Source(Protocol):
    """An open file of bytes."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102


class BrokenListError(ValueError):
    """A list that cannot be read to its end; the message says why, `rest` is what is there."""

    def __init__(self, reason: str, rest: str) -> None:
        super().__init__(reason)
        self.rest = rest.encode(errors="surrogateescape")


def begins_list(head: bytes) -> bool:
    """Whether a file that begins so is a list of objects."""
    return _BEGINS.match(head) is not None


def elements(file: Source) -> Iterator[bytes]:
    """The bytes of each element of the list in a file, in order; memory holds one element and a piece of the file.

    Raises BrokenListError where the list has no end or is no JSON, and for an element of over 32 MiB.
    """
    decoder = json.JSONDecoder()
    characters = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
    text, at, ended = "", 0, False

    def more() -> None:
        nonlocal text, at, ended
        # As much again as is there, so that a long element is tried a few times only.
        piece = file.read(max(_READ, len(text) - at))
        ended = not piece
        text, at = text[at:] + characters.decode(piece, final=ended), 0

    while not ended and "[" not in text:
        more()
    at = text.find("[") + 1
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        if at < len(text):
            if text[at] == "]":
                return
            try:
                end = decoder.raw_decode(text, at)[1]
            except (ValueError, RecursionError):
                end = 0
            # A number at the end of what was read may go on.
            if end and (end < len(text) or ended):
                yield text[at:end].encode(errors="surrogateescape")
                at = end
                continue
        if ended:
            raise BrokenListError("not JSON from here on", text[at:])
        if len(text) - at > LARGEST:
            raise BrokenListError(f"larger than {LARGEST >> 20} MiB, or not JSON from here on", text[at:])
        more()
