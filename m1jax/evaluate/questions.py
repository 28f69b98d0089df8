"""Multiple-choice questions from your own JSONL files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m1jax.errors import UserError, first_line
from m1jax.evaluate.items import Item, Loaded, MalformedError, collect
from m1jax.text.encodings import BROKEN, kind_of, open_text
from m1jax.text.folder import files_of

KINDS = (".jsonl", ".ndjson")
"""Endings of the files that are read; they may be compressed."""


def load(path: Path) -> Loaded:
    """The questions of a JSONL file, or of all such files below a folder (.gz, .zst, .bz2 and .xz too).

    A line is an object {"question": text, "choices": [texts], "answer": index of the right one, from 0}; "id" is by
    default the file's name and the line's number, "kind" the file's name; "context" is a text that is read before the
    question, "entity" what it is about. Other fields are ignored. Raises UserError for a path without such files, a
    file that cannot be read, and where no question is left.
    """
    loaded = collect(_lines(path), _item)
    if not loaded.items:
        reasons = ", ".join(f"{count} for {reason}" for reason, count in loaded.reasons) or "no line in them"
        raise UserError(f"{path} holds no question ({reasons}): see `m1 eval --help` for the fields of a line.")
    return loaded


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each line with its place, "file:number"."""
    for file in _files(path):
        name = str(file.relative_to(path)) if path.is_dir() else file.name
        try:
            with open_text(file) as opened:
                for number, line in enumerate(opened, 1):
                    yield f"{name}:{number}", line.removeprefix(b"\xef\xbb\xbf")
        except (OSError, *BROKEN) as error:
            raise UserError(f"{file} cannot be read ({first_line(error)}): check the file and its rights.") from error


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist: give a file of questions (.jsonl), or a folder of them.")
    if not path.is_dir():
        return [path]
    found = [file for file, fault in files_of(path) if not fault and kind_of(file)[0] in KINDS]
    if not found:
        raise UserError(f"{path} holds no .jsonl file: give a file of questions, or a folder of them.")
    return found


def _item(place: str, record: dict[str, Any]) -> Item:
    choices, answer = record["choices"], record["answer"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise MalformedError("the choices are not a list of texts")
    if type(answer) is not int:
        raise MalformedError("the answer is not the index of a choice (a whole number, from 0)")
    kind = record.get("kind") or Path(place.rpartition(":")[0]).name.partition(".")[0]
    return Item(
        id=str(record.get("id") or place),
        question=record["question"].strip(),
        choices=tuple(choice.strip() for choice in choices),
        answer=answer,
        kind=kind.strip(),
        context=(record.get("context") or "").strip(),
        entity=str(record.get("entity") or ""),
    )
