"""The record of one packed row, and the store of a source's rows in an ArrayRecord file.

Legend: B rows of a batch, S tokens of a row. A row is some pieces of documents one after the other, then padding.
"""

import contextlib
import dataclasses
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from m1jax import artefact
from m1jax.errors import UserError

Array = npt.NDArray[np.generic]

FORMAT = 1
# Format, bytes of a token, row length, tokens, pieces; then tokens, and piece lengths, documents, offsets (uint32).
_HEADER = struct.Struct("<BBxxIII")
_TOKEN_DTYPES: dict[int, type[np.unsignedinteger]] = {2: np.uint16, 4: np.uint32}


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest dtype in which rows keep ids of this vocabulary."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One packed row: at most `row_length` tokens, cut into pieces of documents.

    `tokens` is uint16 or uint32; `lengths`, `documents` (index of the document in its source) and `offsets` (index in
    the document of the piece's first token) are uint32, one a piece.
    """

    row_length: int
    tokens: Array
    lengths: Array
    documents: Array
    offsets: Array


def encode_row(row: Row) -> bytes:
    """The bytes of a row."""
    width = row.tokens.dtype.itemsize
    assert int(row.lengths.sum()) == len(row.tokens) <= row.row_length
    header = _HEADER.pack(FORMAT, width, row.row_length, len(row.tokens), len(row.lengths))
    pieces = (part.astype("<u4", copy=False).tobytes() for part in (row.lengths, row.documents, row.offsets))
    return b"".join((header, row.tokens.astype(f"<u{width}", copy=False).tobytes(), *pieces))


def decode_row(record: bytes) -> Row:
    """The row that `encode_row` wrote; raises ValueError where `record` is no such thing."""
    if len(record) < _HEADER.size:
        raise ValueError(f"a record of {len(record)} bytes is too short for a row")
    version, width, row_length, tokens, pieces = _HEADER.unpack_from(record)
    if version != FORMAT or width not in _TOKEN_DTYPES:
        raise ValueError(f"format {version} with {width} bytes a token is not format {FORMAT}")
    if len(record) != _HEADER.size + width * tokens + 12 * pieces:
        raise ValueError(f"{len(record)} bytes do not hold {tokens} tokens in {pieces} pieces")
    columns = np.frombuffer(record, "<u4", 3 * pieces, _HEADER.size + width * tokens).reshape(3, pieces)
    if columns[0].sum(dtype=np.int64) != tokens or tokens > row_length:
        raise ValueError(f"pieces of {columns[0].sum(dtype=np.int64)} tokens do not make up {tokens} of {row_length}")
    return Row(row_length, np.frombuffer(record, f"<u{width}", tokens, _HEADER.size), *columns)


def expand(rows: Sequence[Row]) -> dict[str, Array]:
    """What a model reads of B rows of one length S: five arrays (B, S).

    `tokens` int32; `targets` int32, the next token of the same piece, 0 where there is none; `weights` float32, 1
    where there is a target; `segment_ids` int32, 1, 2, … by piece and 0 in padding; `positions` int32, from 0 in every
    piece, 0 in padding.
    """
    length = rows[0].row_length
    assert all(row.row_length == length for row in rows), "rows of several lengths in one batch"
    tokens = np.zeros((len(rows), length), np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row.tokens)] = row.tokens
    # Padding counts as one more piece of every row, with segment id 0.
    lengths = np.concatenate([part for row in rows for part in (row.lengths, [length - len(row.tokens)])]).astype(int)
    ids = np.concatenate([part for row in rows for part in (np.arange(1, len(row.lengths) + 1), [0])])
    starts = np.cumsum(lengths) - lengths
    segment_ids = np.repeat(ids.astype(np.int32), lengths)
    positions = np.arange(tokens.size, dtype=np.int32) - np.repeat(starts.astype(np.int32), lengths)
    positions[segment_ids == 0] = 0
    last = (starts + lengths - 1)[lengths > 0]
    has_target = segment_ids > 0
    has_target[last] = False
    targets = np.roll(tokens.reshape(-1), -1) * has_target
    flat = {
        "targets": targets,
        "weights": has_target.astype(np.float32),
        "segment_ids": segment_ids,
        "positions": positions,
    }
    return {"tokens": tokens, **{name: array.reshape(tokens.shape) for name, array in flat.items()}}


class RowWriter:
    """Writes rows into a new ArrayRecord file; a context manager.

    Opening, writing and closing raise UserError where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._refusals():
            # One record a group: a random read decodes nothing but its own row.
            self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def write(self, row: Row) -> None:
        """Appends a row."""
        with self._refusals():
            self._writer.write(encode_row(row))

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            with self._refusals():
                self._writer.close()

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise UserError(
                f"{self._path} cannot be written ({error}): check the disk's space and permissions."
            ) from error


class RowStore:
    """Random access to the rows of one file.

    The file is opened at the first read. Every failure to read is a UserError that names the file. Threads may share
    a store.
    """

    def __init__(self, path: Path, rows: int) -> None:
        """`rows` is the number of rows that the manifest states."""
        self.path = path
        self._rows = rows
        self._reader: ArrayRecordReader | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Row:
        """Row `index`, from 0. Raises UserError where the file is missing, another one or damaged."""
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        try:
            with self._lock:
                record = self._open().read([index])[0]
            return decode_row(record)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"row {index} of {self.path} is damaged ({error}): run `m1 pack` again.") from error

    def check(self, size: int = 0) -> None:
        """A look that costs nothing: size, header and end of the file, and its first and last row.

        `size` in bytes is the manifest's, 0 where it is not known. Raises UserError where the file is missing, of
        another size, cannot be opened or does not hold the stated number of rows, or where those two are damaged.
        """
        with self._lock:
            self._open()
        found = self.path.stat().st_size
        if size and found != size:
            raise UserError(
                f"{self.path} has {found} bytes where its manifest says {size}: it is cut short or another file, run "
                f"`m1 pack` again."
            )
        for index in {0, self._rows - 1}:
            self[index]

    def verify(self, sha256: str) -> None:
        """Reads the whole file; raises UserError where its SHA-256 is not `sha256`, naming the first damaged row."""
        self.check()
        if artefact.checksum(self.path) != sha256:
            for index in range(self._rows):
                self[index]
            raise UserError(f"{self.path} is not the file that its manifest describes: run `m1 pack` again.")

    def close(self) -> None:
        """Closes the file; a later read opens it again."""
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def _open(self) -> ArrayRecordReader:
        if self._reader is None:
            if not self.path.is_file():
                raise UserError(f"{self.path} is missing: run `m1 pack` again, or give the right folder.")
            reader = ArrayRecordReader(str(self.path), "readahead_buffer_size:0,max_parallelism:0")
            # The reader reports a file without its end, or no ArrayRecord at all, as one of 0 records.
            if not reader.ok() or reader.num_records() != self._rows:
                found = f"{reader.num_records()} rows" if reader.ok() else "no whole ArrayRecord"
                raise UserError(
                    f"{self.path} holds {found} where {self._rows} rows are expected: it is cut short or damaged, run "
                    f"`m1 pack` again."
                )
            self._reader = reader
        return self._reader
