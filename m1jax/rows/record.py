"""One packed row, and its encoding as bytes.

A row is some pieces of documents one after the other, then padding. Its record, little endian:

    header     format, bytes of a token, number of columns, 1 where there are spans else 0 (uint8 each);
               row length, tokens, pieces (uint32 each)
    tokens     uint16 or uint32
    pieces     lengths, documents, offsets (uint32 each)
    spans      only where there are some: their number (uint32); starts, lengths (uint32), weights (float32)
    columns    by name: bytes of the name (uint8), i for int32 or f for float32, the name in UTF-8, a value a piece
"""

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from m1jax.rows.spans import NO_SPANS, Spans

Array = npt.NDArray[np.generic]

FORMAT = 2
_HEADER = struct.Struct("<BBBBIII")
_TOKEN_DTYPES: dict[int, type[np.unsignedinteger]] = {2: np.uint16, 4: np.uint32}
_COLUMN = struct.Struct("<Bc")
_COLUMN_DTYPES = {b"i": "<i4", b"f": "<f4"}


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest dtype in which rows keep ids of this vocabulary."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One packed row: at most `row_length` tokens, cut into pieces of documents.

    `tokens` is uint16 or uint32; `lengths`, `documents` (index of the document in its source) and `offsets` (index in
    the document of the piece's first token) are uint32, one a piece. `spans` are runs of the row's tokens, uint32 and
    float32, none over the border of a piece. `columns` holds by name int32 or float32 arrays with a value a piece.
    """

    row_length: int
    tokens: Array
    lengths: Array
    documents: Array
    offsets: Array
    spans: Spans = NO_SPANS
    columns: Mapping[str, Array] = dataclasses.field(default_factory=dict)


def encode_row(row: Row) -> bytes:
    """The bytes of a row."""
    width = row.tokens.dtype.itemsize
    assert int(row.lengths.sum()) == len(row.tokens) <= row.row_length
    has_spans = int(len(row.spans) > 0)
    counts = len(row.columns), has_spans, row.row_length, len(row.tokens), len(row.lengths)
    parts = [_HEADER.pack(FORMAT, width, *counts), row.tokens.astype(f"<u{width}", copy=False).tobytes()]
    parts += (part.astype("<u4", copy=False).tobytes() for part in (row.lengths, row.documents, row.offsets))
    if has_spans:
        parts.append(struct.pack("<I", len(row.spans)))
        parts += (part.astype("<u4", copy=False).tobytes() for part in (row.spans.starts, row.spans.lengths))
        parts.append(row.spans.weights.astype("<f4", copy=False).tobytes())
    for name, values in sorted(row.columns.items()):
        assert values.dtype in (np.int32, np.float32) and values.shape == row.lengths.shape
        parts += (_COLUMN.pack(len(name.encode()), values.dtype.kind.encode()), name.encode(), values.tobytes())
    return b"".join(parts)


class _Reader:
    """Takes one array after the other out of a record."""

    def __init__(self, record: bytes, at: int) -> None:
        self._record, self.at = record, at

    def take(self, dtype: str, count: int) -> npt.NDArray[Any]:
        size = np.dtype(dtype).itemsize * count
        if self.at + size > len(self._record):
            raise ValueError(f"a record of {len(self._record)} bytes ends before the row does")
        found = np.frombuffer(self._record, dtype, count, self.at)
        self.at += size
        return found


def decode_row(record: bytes) -> Row:
    """The row that `encode_row` wrote; raises ValueError where `record` is not one."""
    if len(record) < _HEADER.size:
        raise ValueError(f"a record of {len(record)} bytes is too short for a row")
    version, width, columns, has_spans, row_length, tokens, pieces = _HEADER.unpack_from(record)
    if version != FORMAT or width not in _TOKEN_DTYPES or has_spans > 1:
        raise ValueError(f"format {version} with {width} bytes a token is not format {FORMAT}")
    if len(record) < (end := _HEADER.size + width * tokens + 12 * pieces):
        raise ValueError(f"{len(record)} bytes do not hold {tokens} tokens in {pieces} pieces")
    ids = np.frombuffer(record, f"<u{width}", tokens, _HEADER.size)
    parts = np.frombuffer(record, "<u4", 3 * pieces, _HEADER.size + width * tokens).reshape(3, pieces)
    lengths, documents, offsets = parts
    if (found := lengths.sum(dtype=np.int64)) != tokens or tokens > row_length:
        raise ValueError(f"pieces of {found} tokens do not make up {tokens} of {row_length}")
    if len(record) == end and not columns and not has_spans:
        return Row(row_length, ids, lengths, documents, offsets)
    reader = _Reader(record, end)
    spans = _spans(reader, tokens) if has_spans else NO_SPANS
    named = dict(_columns(reader, columns, pieces))
    if reader.at != len(record) or bool(len(spans)) != has_spans:
        raise ValueError(f"{len(record)} bytes are not those of {tokens} tokens, {pieces} pieces, {columns} columns")
    return Row(row_length, ids, lengths, documents, offsets, spans, named)


def _spans(reader: _Reader, tokens: int) -> Spans:
    (count,) = reader.take("<u4", 1).tolist()
    starts, lengths, weights = reader.take("<u4", count), reader.take("<u4", count), reader.take("<f4", count)
    ends = starts.astype(np.int64) + lengths
    ordered = (starts[1:] >= ends[:-1]).all() and lengths.all() and (not count or ends[-1] <= tokens)
    if not ordered or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"{count} spans are not runs of {tokens} tokens with weights of 0 or more")
    return Spans(starts, lengths, weights)


def _columns(reader: _Reader, columns: int, pieces: int) -> Iterator[tuple[str, Array]]:
    last = ""
    for _ in range(columns):
        size, kind = reader.take("S1", 2).tobytes()
        name = reader.take("u1", size).tobytes().decode()
        dtype = _COLUMN_DTYPES.get(bytes([kind]))
        if dtype is None or name <= last:
            raise ValueError(f"a column {name!r} of kind {kind} is not one of int32 or float32 in the order of names")
        yield name, reader.take(dtype, pieces)
        last = name
