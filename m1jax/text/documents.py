"""What a document is, and its Parquet files, written and read back."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m1jax.errors import UserError, first_line

_BATCH = 1024
_ROW_GROUP_BYTES = 2 << 20
_ROW_GROUP_ROWS = 8192


BATCH_ARRAYS = ("tokens", "targets", "weights", "segment_ids", "positions")
"""The arrays that every batch has; no column of documents has one of these names."""
PAIR = "pair"
"""The column of documents that belong together: those of a source with an equal value are packed into one row."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A part of a document: either text or token ids (as for the special tokens of a chat).

    `weight`, 0 or more, is how much each of its tokens counts as a target: 0 for what is read and not learned.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One reading unit: `language` is a code such as en or zh, `domain` a name that the config gives.

    `difficulty` is any finite number that its maker gave it, larger for harder; None where there is none. Without
    `parts` all of the text is learned, with weight 1. With parts, these are encoded, each apart, so that no token is
    of two parts; `text` is then the text of all parts, joined (see `of_parts`), which is what filters look at.
    `columns` are numbers by name that every token of the document carries into the batch: whole numbers as int32,
    others as float32.
    """

    id: str
    text: str
    source: str
    language: str
    domain: str
    difficulty: float | None = None
    parts: tuple[Part, ...] = ()
    columns: Mapping[str, int | float] = dataclasses.field(default_factory=dict, hash=False)

    @classmethod
    def of_parts(
        cls, identifier: str, parts: Sequence[Part], source: str, language: str, domain: str, **rest: Any
    ) -> "Document":
        """A document of these parts; `rest` are `difficulty` and `columns`."""
        text = "".join(part.text for part in parts)
        return cls(identifier, text, source, language, domain, parts=tuple(parts), **rest)


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
_PART = pa.struct([("text", pa.string()), ("ids", pa.list_(pa.int64())), ("weight", pa.float64())])
_COLUMN = pa.struct([("name", pa.string()), ("integer", pa.int64()), ("number", pa.float64())])
_OPTIONAL = {"difficulty": pa.float64(), "parts": pa.list_(_PART), "columns": pa.list_(_COLUMN)}
DOCUMENT_SCHEMA = pa.schema([*_schema(*_TEXTS), *itertools.starmap(pa.field, _OPTIONAL.items())])
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
            columns = []
            for field, values in zip(self._schema, zip(*self._rows, strict=True), strict=True):
                cell = _CELLS.get(field.name)
                columns.append(pa.array(map(cell, values) if cell else values, field.type))
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
                columns = {name: batch.column(name).cast(DOCUMENT_SCHEMA.field(name).type) for name in names}
                holes = [name for name in _TEXTS if batch.column(name).null_count]
                if holes:
                    raise UserError(f"{path} has rows without {', '.join(holes)}: run `m1 corpus` on it first.")
                yield from _documents(columns, batch.num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no readable Parquet file ({first_line(error)}): make it again.") from error


def _documents(columns: Mapping[str, pa.Array], rows: int) -> Iterator[Document]:
    """Documents of the columns of a file, those of _OPTIONAL where they are there."""
    filled = {name for name in _OPTIONAL if name in columns and columns[name].null_count < rows}
    texts = [columns[name].to_pylist() for name in _TEXTS]
    difficulty, parts, named = (columns[name].to_pylist() if name in filled else [None] * rows for name in _OPTIONAL)
    return map(Document, *texts, difficulty, map(_parts, parts), map(_columns, named))


def _parts(cell: Iterable[Mapping[str, Any]] | None) -> tuple[Part, ...]:
    """A cell's parts; a missing weight becomes NaN, which sets the document aside."""
    return tuple(
        Part(part["text"] or "", tuple(part["ids"] or ()), math.nan if part["weight"] is None else part["weight"])
        for part in cell or ()
    )


def _columns(cell: Iterable[Mapping[str, Any]] | None) -> dict[str, int | float]:
    """A cell's numbers by name; a missing one becomes NaN, which sets the document aside."""
    return {
        str(column["name"]): next((column[key] for key in ("integer", "number") if column[key] is not None), math.nan)
        for column in cell or ()
    }


def _parts_cell(parts: Sequence[Part]) -> list[dict[str, Any]] | None:
    return [{"text": part.text, "ids": part.ids, "weight": part.weight} for part in parts] or None


def _columns_cell(columns: Mapping[str, int | float]) -> list[dict[str, Any]] | None:
    kinds = {True: "integer", False: "number"}
    return [{"name": name, kinds[isinstance(value, int)]: value} for name, value in columns.items()] or None


_CELLS: Mapping[str, Callable[[Any], Any]] = {"parts": _parts_cell, "columns": _columns_cell}
"""Values of a document as Parquet keeps them."""
