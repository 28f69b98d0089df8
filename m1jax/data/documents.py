"""What a document is, and reading documents back from Parquet."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m1jax.errors import UserError

_BATCH = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One reading unit: `language` is a code such as en or zh, `domain` is general or medical."""

    id: str
    text: str
    source: str
    language: str
    domain: str


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """What could not become a document: where it lay, why, and as much of its text as can be shown."""

    origin: str
    reason: str
    text: str = ""
    source: str = ""


def _schema(record: type[Document] | type[Rejected]) -> pa.Schema:
    return pa.schema([pa.field(field.name, pa.string(), nullable=False) for field in dataclasses.fields(record)])


DOCUMENT_SCHEMA = _schema(Document)
REJECTED_SCHEMA = _schema(Rejected)


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
            missing = [name for name in DOCUMENT_SCHEMA.names if name not in file.schema_arrow.names]
            if missing:
                raise UserError(
                    f"{path} has no column {', '.join(missing)}: give a corpus made by `m1 corpus`, or run that on it."
                )
            for batch in file.iter_batches(_BATCH, columns=DOCUMENT_SCHEMA.names):
                columns = [batch.column(name).cast(pa.string()) for name in DOCUMENT_SCHEMA.names]
                holes = [name for name, column in zip(DOCUMENT_SCHEMA.names, columns, strict=True) if column.null_count]
                if holes:
                    raise UserError(f"{path} has rows without {', '.join(holes)}: run `m1 corpus` on it first.")
                yield from map(Document, *(column.to_pylist() for column in columns))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no readable Parquet file ({first_line(error)}): make it again.") from error


def first_line(error: Exception) -> str:
    """What a library said, short enough for one sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")
