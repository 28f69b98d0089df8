"""Results on disk that are either whole or absent.

A verb writes into a hidden folder beside its destination and renames it at the end, so a killed process leaves
nothing that reads as whole. A stamp inside records the key of the inputs: the same command run again finds its own
result and does nothing, changed inputs rebuild it, and a folder that m1jax did not make is never overwritten.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from m1jax.errors import UserError

STAMP = "m1jax.json"
# Files up to this size are compared by content, larger ones by size and time.
_READ_BYTES = 32 << 20


def key(*parts: Any) -> str:
    """16 hexadecimal digits that change when any part (JSON-like values; other objects by `str`) changes."""
    canonical = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises UserError where the file is missing."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: check the path, or run the verb that makes it.") from error
    return digest.hexdigest()


def state_of(files: Iterable[Path]) -> list[Any]:
    """What changes when one of the files does, or one more is there.

    Small files are read, so that one which was edited within the clock's grain is noticed; of large ones name, size and
    time count.
    """
    found: list[Any] = []
    for path in sorted(files):
        status = path.stat()
        small = status.st_size <= _READ_BYTES
        found.append([path.parent.name, path.name, status.st_size, checksum(path) if small else status.st_mtime_ns])
    return found


def stamp(path: Path) -> dict[str, Any] | None:
    """What `building` recorded in `path` (kind, key and the caller's details); None without a complete result."""
    try:
        return json.loads((path / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path / STAMP} is damaged ({error}): delete {path} and run the verb again.") from error


def is_whole(path: Path, kind: str, of: str) -> bool:
    """Whether `path` already holds the result of this `kind` for the inputs whose key is `of`."""
    found = stamp(path)
    return found is not None and found["kind"] == kind and found["key"] == of


def require(path: Path, kind: str, verb: str) -> dict[str, Any]:
    """The stamp of a whole `kind` at `path`; raises UserError that names the verb which makes one."""
    found = stamp(path)
    if found is None:
        raise UserError(f"{path} has no finished {kind}: run `m1 {verb}` first, or choose the right folder.")
    if found["kind"] != kind:
        raise UserError(f"{path} is of kind {found['kind']!r}, but {kind!r} is needed: choose the right folder.")
    return found


@contextlib.contextmanager
def building(path: Path, kind: str, of: str, details: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yields an empty folder; when the block ends well it becomes `path` in one rename, else it is removed.

    `details` may be filled inside the block: it is written into the stamp last. Raises UserError where `path` holds
    something that m1jax did not make. Where `path` is a link, the result becomes what it leads to.
    """
    path = path.resolve() if path.is_symlink() else path.absolute()
    if path.exists() and stamp(path) is None and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not an m1jax {kind}: choose another folder, or remove it first.")
    partial = path.parent / f".{path.name}.partial"
    retired = path.parent / f".{path.name}.retired"
    for leftover in (partial, retired):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        record = {"kind": kind, "key": of, **(details or {})}
        (partial / STAMP).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if path.exists():
            path.replace(retired)
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(retired, ignore_errors=True)
