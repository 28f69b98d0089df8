"""Append-only files of JSON, one record a line; a killed process may leave the last line unfinished."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, oldest first; an unfinished line is ignored."""
    if not path.is_file():
        return []
    found = (parsed(line) for line in path.read_bytes().split(b"\n"))
    return [record for record in found if record is not None]


def parsed(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it holds none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a record in one write, on a line of its own even where the last one was left unfinished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", buffering=0) as file:
        unfinished = b""
        if file.tell():
            file.seek(-1, os.SEEK_END)
            unfinished = b"" if file.read(1) == b"\n" else b"\n"
        file.write(unfinished + json.dumps(record, ensure_ascii=False).encode() + b"\n")
