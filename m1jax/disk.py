"""Disks that are full or refuse to be written: asked before the first byte, and told in one sentence afterwards."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from m1jax.errors import UserError

_WORDS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "disk quota exceeded",
    errno.EROFS: "read-only file system",
    errno.EACCES: "permission denied",
}
"""The system's own words, which libraries in C++ and Rust, and other programs, put into errors of their own kinds."""
_SENTENCES = {
    errno.ENOSPC: "the disk that holds {where} is full: free some space",
    errno.EDQUOT: "the disk quota for {where} is used up: free some space",
    errno.EROFS: "{where} is read-only: make it writable",
    errno.EACCES: "{where} cannot be read or written (permission denied): change its permissions",
}


def free(folder: Path) -> int:
    """Free bytes of the disk on which `folder` is, or would be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def missing_room(folder: Path, needed: int) -> str | None:
    """A clause that says how many bytes are needed and how many are free; None where there is room for them."""
    available = free(folder)
    return None if available >= needed else f"{needed / 1e6:.1f} MB are needed, {available / 1e6:.1f} MB are free"


def check_room(target: Path, needed: int) -> None:
    """Raises UserError where the disk that holds `target` has less than `needed` bytes, before one is written."""
    if missing := missing_room(target, needed):
        raise UserError(f"{_SENTENCES[errno.ENOSPC].format(where=target)} ({missing}) and run the same command again.")


def refused(error: BaseException | str) -> int | None:
    """ENOSPC, EDQUOT, EROFS or EACCES where that is what an error, or the output of a program, reports; else None."""
    number = getattr(error, "errno", None)
    if number in _WORDS:
        return number
    text = str(error).lower()
    return next((number for number, words in _WORDS.items() if words in text), None)


def refusal(error: BaseException, where: str | os.PathLike[str], then: str = "") -> str | None:
    """The sentence for a disk that refused to hold or to give `where`; None for every other error.

    `then` says what running the command again does, such as ": it continues where it stopped".
    """
    number = refused(error)
    if number is None:
        return None
    return f"{_SENTENCES[number].format(where=os.fspath(where))} and run the same command again{then}."


@contextlib.contextmanager
def refusals(where: str | os.PathLike[str], then: str = "") -> Iterator[None]:
    """Raises UserError for what a disk refuses inside the block (see `refusal`); other errors pass as they are."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if sentence := refusal(error, where, then):
            raise UserError(sentence) from error
        raise
