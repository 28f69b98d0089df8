"""What a document is, and its Parquet files, written and read back."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m1jax.errors import UserError

_BATCH = 1024
_ROW_GROUP_BYTES = 2 << 20
_ROW_GROUP_ROWS = 8192


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One reading unit: `language` is a code such as en or zh, `domain` is general or medical.

    `difficulty` is any finite number that its maker gave it, larger for harder; None where there is none.
    """

    id: str
    text: str
    source: str
    language: str
    domain: str
    difficulty: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """What could not become a document: where it lay, why, and as much of its text as can be shown."""

    origin: str
    reason: str
    text: str = ""
    source: str = ""


def _schema(*names: str) -> pa.Schema:
    return pa.schema([pa.field(name, pa.string(), nullable=False) for name in names])


_TEXTS = ("id", "text", "source", "language", "domain")
DOCUMENT_SCHEMA = _schema(*_TEXTS).append(pa.field("difficulty", pa.float64()))
REJECTED_SCHEMA = _schema("origin", "reason", "text", "source")


class Table(contextlib.AbstractContextManager["Table"]):
    """A Parquet file, written in row groups as rows come; whole only after its context ends well."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        repeated = [name for name in schema.names if name in ("source", "language", "domain", "reason")]
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeated)
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self._size = 0

    def write(self, row: Any, size: int) -> None:
        """Appends an object with an attribute for each column; `size` in bytes tells when a row group is full."""
        self._rows.append(tuple(getattr(row, name) for name in self._schema.names))
        self._size += size
        if self._size >= _ROW_GROUP_BYTES or len(self._rows) >= _ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pa.array(values, kind)
                for values, kind in zip(zip(*self._rows, strict=True), self._schema.types, strict=True)
            ]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows, self._size = [], 0

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if failure is None:
                self._flush()
        finally:
            self._writer.close()


def document_files(*paths: Path) -> list[Path]:
    """The Parquet files that the paths name: a file itself, a folder's files by name, a corpus's documents/ folder.

    Raises UserError where a path is missing or a folder holds no .parquet file.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            folder = path / "documents" if (path / "documents").is_dir() else path
            found = sorted(folder.glob("*.parquet"))
            if not found:
                raise UserError(f"{folder} holds no .parquet file: run `m1 corpus` first, or give the right folder.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path} is missing: check the path, or run `m1 corpus` to make it.")
    return files


def read_documents(*paths: Path) -> Iterator[Document]:
    """Documents of Parquet files or folders (see `document_files`), in file and row order, a batch in memory at once.

    Raises UserError, naming the file, where one is missing, is no readable Parquet, lacks a column of Document or has
    an empty value in one, and where all of them together hold no document.
    """
    files = document_files(*paths)
    empty = True
    for file in files:
        for document in _read_file(file):
            empty = False
            yield document
    if empty:
        raise UserError(f"{', '.join(map(str, paths))} holds no document: run `m1 corpus` on some text.")


def _read_file(path: Path) -> Iterator[Document]:
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in _TEXTS if name not in file.schema_arrow.names]
            if missing:
                raise UserError(
                    f"{path} has no column {', '.join(missing)}: give a corpus made by `m1 corpus`, or run that on it."
                )
            names = [name for name in DOCUMENT_SCHEMA.names if name in file.schema_arrow.names]
            for batch in file.iter_batches(_BATCH, columns=names):
                columns = [batch.column(name).cast(DOCUMENT_SCHEMA.field(name).type) for name in names]
                holes = [name for name in _TEXTS if batch.column(name).null_count]
                if holes:
                    raise UserError(f"{path} has rows without {', '.join(holes)}: run `m1 corpus` on it first.")
                yield from map(Document, *(column.to_pylist() for column in columns))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no readable Parquet file ({first_line(error)}): make it again.") from error


def first_line(error: Exception) -> str:
    """What a library said, short enough for one sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")
