"""What a document is, how it is told from every other, and its Parquet files, written and read back."""

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m1jax.errors import UserError, first_line
from m1jax.text import cells

_BATCH = 1024
_ROW_GROUP_BYTES = 2 << 20
_ROW_GROUP_ROWS = 8192


BATCH_ARRAYS = ("tokens", "targets", "weights", "segment_ids", "positions")
"""The arrays that every batch has; no column of documents has one of these names."""
PAIR = "pair"
"""The column of documents that belong together: those of a shard with an equal value are packed into one row."""
SIDE = "side"
"""The column of the two documents of a pair that says which one was preferred: 1, and 0 for the other."""
WHOLE = "whole"
"""The column, of any value, of documents that are never cut: each is packed into one row."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A part of a document: text, or token ids (as for the special tokens of a chat), or ids with their text.

    Ids are taken as they are; their text, where it is given, is what filters and people look at. `weight`, 0 or
    more, is how much each of its tokens counts as a target: 0 for what is read and not learned. `origin` names the
    document that the part is taken from, where that is not its own: see `origin_of`.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    weight: float = 1.0
    origin: str = ""


def identity(shard: str, place: int | str | None = None) -> str:
    """The identifier of a document inside its source: the shard (a file, say) that holds it, and its place there.

    Every reader of other people's text makes identifiers with it. The id that a record gives itself decides nothing:
    such ids often restart in every file, and may repeat inside one. A shard that is one document has no `place`.
    """
    return shard if place is None else f"{shard}#{place}"


def record_name(value: Any) -> str:
    """What a record calls itself, as text: its id of any type, bytes that are no UTF-8 in hexadecimal; "" for None."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            value = value.hex()
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else str(value).encode(errors="backslashreplace").decode()


def record_number(value: Any) -> float | None:
    """A record's number, of any type; None for what is no finite one."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One reading unit: `language` is a code such as en or zh, `domain` a name that the config gives.

    `id` tells it from every other document of its source (see `identity`). `record_id` is what its record calls itself,
    which may be empty or that of other documents too. `shard` is the part of the source that it came from: documents
    are of one pair where both `shard` and the column `pair` are equal.

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
    shard: str = ""
    record_id: str = ""

    @property
    def stays_whole(self) -> bool:
        """Whether it is never cut: see PAIR and WHOLE."""
        return not self.columns.keys().isdisjoint((PAIR, WHOLE))

    @classmethod
    def of_parts(
        cls, identifier: str, parts: Sequence[Part], source: str, language: str, domain: str, **rest: Any
    ) -> "Document":
        """A document of these parts; `rest` are `difficulty`, `columns`, `shard` and `record_id`."""
        text = "".join(part.text for part in parts)
        return cls(identifier, text, source, language, domain, parts=tuple(parts), **rest)


def origin_of(document: Document) -> str:
    """The name of a document beyond its source, SOURCE/ID; a source's name holds no slash."""
    return f"{document.source}/{document.id}"


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """What could not become a document: its place (see `identity`), why, and as much of its text as can be shown.

    `record_id` is what its record calls itself, where that is known.
    """

    origin: str
    reason: str
    text: str = ""
    source: str = ""
    record_id: str = ""


def _schema(*names: str) -> pa.Schema:
    return pa.schema([pa.field(name, pa.string(), nullable=False) for name in names])


_TEXTS = ("id", "text", "source", "language", "domain")
_ORIGIN = ("shard", "record_id")
_PART = pa.struct(
    [("text", pa.string()), ("ids", pa.list_(pa.int64())), ("weight", pa.float64()), ("origin", pa.string())]
)
_COLUMN = pa.struct([("name", pa.string()), ("integer", pa.int64()), ("number", pa.float64())])
_OPTIONAL = {"difficulty": pa.float64(), "parts": pa.list_(_PART), "columns": pa.list_(_COLUMN)}
DOCUMENT_SCHEMA = pa.schema([*_schema(*_TEXTS), *itertools.starmap(pa.field, _OPTIONAL.items()), *_schema(*_ORIGIN)])
REJECTED_SCHEMA = _schema("origin", "reason", "text", "source", "record_id")


class Table(contextlib.AbstractContextManager["Table"]):
    """A Parquet file, written in row groups as rows come; whole only after its context ends well."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        repeated = [name for name in schema.names if name in ("source", "language", "domain", "shard", "reason")]
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

    A file without the columns `shard` and `record_id`, which `m1 corpus` did not write, is itself a shard: its
    documents are known by their rows, and its column `id`, if it has one, is what records call themselves. Raises
    UserError, naming the file, where one is missing, is no readable Parquet, lacks a column of Document or has an empty
    value in one, and where all of them together hold no document.
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
            names = set(file.schema_arrow.names)
            ours = names.issuperset(_ORIGIN)
            # Without an id of its own a document of another program is known by its row.
            needed = _TEXTS if ours else _TEXTS[1:]
            if missing := [name for name in needed if name not in names]:
                raise UserError(
                    f"{path} has no column {', '.join(missing)}: give a corpus made by `m1 corpus`, or run that on it."
                )
            first = 1
            for batch in file.iter_batches(_BATCH, columns=[name for name in DOCUMENT_SCHEMA.names if name in names]):
                columns = {name: batch.column(cells.all_of(batch.schema, name)[0]) for name in batch.schema.names}
                if holes := [name for name in needed if columns[name].null_count]:
                    raise UserError(f"{path} has rows without {', '.join(holes)}: run `m1 corpus` on it first.")
                if not ours:
                    own = cells.values(columns["id"]) if "id" in columns else [None] * batch.num_rows
                    columns |= _placed(path.name, first, own)
                    if "difficulty" in columns:
                        columns["difficulty"] = pa.array(map(record_number, cells.values(columns["difficulty"])))
                yield from _documents(columns, batch.num_rows)
                first += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no readable Parquet file ({first_line(error)}): make it again.") from error


def _placed(shard: str, first: int, own: Sequence[Any]) -> dict[str, pa.Array]:
    """The columns that tell documents apart, for rows from number `first` of a file which has no such columns."""
    ids = [identity(shard, first + i) for i in range(len(own))]
    names = [record_name(value) for value in own]
    return {name: pa.array(some) for name, some in (("id", ids), ("record_id", names), ("shard", [shard] * len(own)))}


def _documents(columns: Mapping[str, pa.Array], rows: int) -> Iterator[Document]:
    """Documents of the columns of a file, those of _OPTIONAL where they are there."""
    typed = {name: column.cast(DOCUMENT_SCHEMA.field(name).type) for name, column in columns.items()}
    filled = {name for name in _OPTIONAL if name in typed and typed[name].null_count < rows}
    texts = [typed[name].to_pylist() for name in _TEXTS]
    difficulty, parts, named = (typed[name].to_pylist() if name in filled else [None] * rows for name in _OPTIONAL)
    shards, record_ids = (typed[name].fill_null("").to_pylist() for name in _ORIGIN)
    return map(Document, *texts, difficulty, map(_parts, parts), map(_columns, named), shards, record_ids)


def _parts(cell: Iterable[Mapping[str, Any]] | None) -> tuple[Part, ...]:
    """A cell's parts; a missing weight becomes NaN, which sets the document aside."""
    return tuple(
        Part(
            part["text"] or "",
            tuple(part["ids"] or ()),
            math.nan if part["weight"] is None else part["weight"],
            part["origin"] or "",
        )
        for part in cell or ()
    )


def _columns(cell: Iterable[Mapping[str, Any]] | None) -> dict[str, int | float]:
    """A cell's numbers by name; a missing one becomes NaN, which sets the document aside."""
    return {
        str(column["name"]): next((column[key] for key in ("integer", "number") if column[key] is not None), math.nan)
        for column in cell or ()
    }


def _parts_cell(parts: Sequence[Part]) -> list[dict[str, Any]] | None:
    return list(map(dataclasses.asdict, parts)) or None


def _columns_cell(columns: Mapping[str, int | float]) -> list[dict[str, Any]] | None:
    kinds = {True: "integer", False: "number"}
    return [{"name": name, kinds[isinstance(value, int)]: value} for name, value in columns.items()] or None


_CELLS: Mapping[str, Callable[[Any], Any]] = {"parts": _parts_cell, "columns": _columns_cell}
"""Values of a document as Parquet keeps them."""
