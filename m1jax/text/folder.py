"""Anybody's text: a folder of .txt, .jsonl and .parquet files, read as documents."""

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from m1jax.errors import UserError, first_line
from m1jax.text.documents import Document, Rejected

KINDS = (".txt", ".jsonl", ".parquet")
# The largest document, in bytes: a library of books in one file is no reading unit, and one line must fit in memory.
LARGEST = 32 << 20

_TOO_LARGE = f"larger than {LARGEST >> 20} MiB"
_NO_TEXT = "no field text or content"
_UNDECODABLE = "undecodable bytes (not UTF-8)"
_TEXT_FIELDS = ("text", "content")
_BATCH = 256
_SHOWN = 1000


def read_folder(folder: Path, domains: Sequence[str], language: str = "en") -> Iterator[Document | Rejected]:
    """Documents of all .txt, .jsonl and .parquet files below `folder`, in the order of their paths.

    A .txt file is one document (UTF-8), a .jsonl line one object, a .parquet row one record, with the text in `text`
    or `content` and optionally `id`, `source`, `language` and `domain`, which win over what follows, and `difficulty`,
    a number, larger for harder. The domain is
    the first folder on the way that is called like one of `domains`, else the first of `domains`. The source is the
    first folder below `folder` that is not called so; for a file outside such a folder its stem, or for .txt the name
    of the folder that holds it. The identifier is the path, with #line or #row. Hidden files are left alone.

    What is no text is yielded as Rejected: undecodable bytes, a line that is no JSON object with text, a row without
    text, more than 32 MiB, a file of another kind. Raises UserError for a missing folder, one without such files, an
    unreadable file, and a broken Parquet file or one without a column of text.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give a folder of .txt, .jsonl or .parquet files.")
    files = [path for path in _files(folder) if path.suffix.lower() in KINDS]
    if not files:
        raise UserError(f"{folder} holds no .txt, .jsonl or .parquet file: put your text there, or give its folder.")
    for path in _files(folder):
        place = _Place(folder, path, domains, language)
        kind = path.suffix.lower()
        try:
            if kind == ".txt":
                yield _text_file(path, place)
            elif kind == ".jsonl":
                with open(path, "rb") as file:
                    yield from _json_lines(file, place)
            elif kind == ".parquet":
                yield from _parquet_rows(path, place)
            else:
                yield Rejected(place.name, "not a .txt, .jsonl or .parquet file", source=place.source)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({first_line(error)}): check the file and its rights.") from error


def _files(folder: Path) -> Iterator[Path]:
    """All files below the folder that are not hidden, in an order that is the same on every machine."""
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(root, name)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): check the folder and its rights.") from error


class _Place:
    """What a file's path says about its documents."""

    def __init__(self, folder: Path, path: Path, domains: Sequence[str], language: str) -> None:
        inside = path.relative_to(folder)
        # A name that is no UTF-8 is shown by its bytes: Parquet holds valid text only.
        self.name = os.fsencode(inside.as_posix()).decode(errors="backslashreplace")
        above = inside.parts[:-1]
        self.domain = next((part for part in above if part in domains), domains[0])
        self.language = language
        named = next((part for part in above if part not in domains), None)
        if named is None:
            named = (above[-1] if above else folder.resolve().name) if path.suffix.lower() == ".txt" else path.stem
        self.source = source_name(named)

    def document(self, record: dict[str, Any], text: str, number: int) -> Document:
        """A document of a record, its own fields first."""
        identifier = record.get("id")
        return Document(
            id=f"{self.name}#{number}" if identifier in (None, "") else str(identifier),
            text=text,
            source=source_name(str(record.get("source") or self.source)),
            language=str(record.get("language") or self.language),
            domain=str(record.get("domain") or self.domain),
            difficulty=_number(record.get("difficulty")),
        )

    def rejected(self, reason: str, raw: bytes, number: int | None = None) -> Rejected:
        """Why a piece of the file is set aside, with its beginning."""
        origin = self.name if number is None else f"{self.name}#{number}"
        return Rejected(origin, reason, raw[:_SHOWN].decode(errors="backslashreplace"), self.source)


def _number(value: Any) -> float | None:
    """A record's number as it is, NaN for anything else that was given: `screen` then sets the document aside."""
    if value is None or value == b"":
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def source_name(name: str) -> str:
    """A name that can be a file's: other characters than letters, digits, _, . and - become -."""
    encodable = name.encode(errors="replace").decode()
    return re.sub(r"[^\w.-]+", "-", encodable).strip(".-")[:60] or "text"


def _text_file(path: Path, place: _Place) -> Document | Rejected:
    with open(path, "rb") as file:
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        return place.rejected(_TOO_LARGE, raw)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return place.rejected(_UNDECODABLE, raw)
    return place.document({"id": place.name}, text, 0)


def _json_lines(file: BinaryIO, place: _Place) -> Iterator[Document | Rejected]:
    number = 0
    while line := file.readline(LARGEST + 1):
        number += 1
        if len(line) > LARGEST:
            yield place.rejected(_TOO_LARGE, line, number)
            while line and not line.endswith(b"\n"):
                line = file.readline(LARGEST)
        elif line.strip():
            yield _json_line(line, place, number)


def _json_line(line: bytes, place: _Place, number: int) -> Document | Rejected:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return place.rejected(_UNDECODABLE, line, number)
    except (ValueError, RecursionError):
        return place.rejected("not JSON", line, number)
    if not isinstance(record, dict):
        return place.rejected("not a JSON object", line, number)
    text = next((record[name] for name in _TEXT_FIELDS if isinstance(record.get(name), str)), None)
    if text is None:
        return place.rejected(_NO_TEXT, line, number)
    return place.document(record, text, number)


def _parquet_rows(path: Path, place: _Place) -> Iterator[Document | Rejected]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            text_name = next((name for name in _TEXT_FIELDS if name in schema.names and _is_text(schema, name)), None)
            if text_name is None:
                columns = ", ".join(schema.names) or "none"
                raise UserError(f"{path} has no column of text named text or content (its columns: {columns}).")
            others = [name for name in ("id", "source", "language", "domain", "difficulty") if name in schema.names]
            number = 0
            for batch in file.iter_batches(_BATCH, columns=[text_name, *others]):
                columns_of = {name: _bytes(batch.column(name)) for name in (text_name, *others)}
                for row in zip(*columns_of.values(), strict=True):
                    number += 1
                    yield _parquet_row(dict(zip(columns_of, row, strict=True)), text_name, place, number)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable Parquet file ({first_line(error)}): make it again.") from error


def _is_text(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in checks)


def _bytes(column: pa.Array) -> list[bytes | None]:
    """The column's values as bytes: strings inside Parquet are not checked to be UTF-8."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.cast(kind).to_pylist()
    return column.cast(pa.string()).cast(pa.binary()).to_pylist()


def _parquet_row(row: dict[str, bytes | None], text_name: str, place: _Place, number: int) -> Document | Rejected:
    raw = row[text_name]
    if raw is None:
        return place.rejected(_NO_TEXT, b"", number)
    try:
        values = {name: value.decode() for name, value in row.items() if value is not None}
    except UnicodeDecodeError:
        return place.rejected(_UNDECODABLE, raw, number)
    return place.document(values, values[text_name], number)
