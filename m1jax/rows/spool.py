"""Encoded documents of one source on disk: complete batches survive a killed process.

    <source>.tokens    ids of all documents one after the other, uint16 or uint32, little endian, EOS last in each
    <source>.journal   one JSON line a batch: the hash of the batch's documents, a CRC-32, lengths, and spans if any

A batch's line is written after its tokens. The CRC-32 is of its tokens and spans. The batch of a torn or
wrong line, and every batch after it, is encoded again.
"""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np

from m1jax.rows.record import Array
from m1jax.rows.spans import NO_SPANS, Ints, Spans, spans_of


@dataclasses.dataclass(frozen=True)
class EncodedBatch:
    """Tokens of some documents, one after the other; `lengths` (int64) has 0 for a document that gave no token.

    The runs of `spans` count from the first of these tokens.
    """

    of: str
    tokens: Array
    lengths: Ints
    spans: Spans = NO_SPANS


class Spool:
    """The two files of one source; batches are appended in order, or found again in the order they were appended."""

    def __init__(self, folder: Path, source: str, dtype: type[np.unsignedinteger]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokens_path = folder / f"{source}.tokens"
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._journal_path = folder / f"{source}.journal"
        self._found = self._read_journal()
        self._next = 0
        self._size = 0
        self._journal_size = 0

    def found(self, of: str) -> tuple[Ints, Spans] | None:
        """The next batch's lengths and spans if it is complete and has hash `of`; else None, the rest is dropped."""
        if self._next < len(self._found):
            entry, line_size = self._found[self._next]
            lengths = np.array(entry["lengths"], np.int64)
            spans = spans_of(list(zip(*entry.get("spans", ()), strict=False)))
            size = int(lengths.sum()) * self.dtype.itemsize
            if entry["of"] == of and self._crc(size, spans) == entry["crc"]:
                self._next += 1
                self._size += size
                self._journal_size += line_size
                return lengths, spans
            self._found = self._found[: self._next]
        return None

    def append(self, batch: EncodedBatch) -> None:
        """Writes a batch after those that were found; raises OSError where the disk refuses."""
        data = batch.tokens.astype(self.dtype, copy=False).tobytes()
        entry = {"of": batch.of, "crc": zlib.crc32(_bytes(batch.spans), zlib.crc32(data))}
        entry["lengths"] = batch.lengths.tolist()
        if len(batch.spans):
            entry["spans"] = [part.tolist() for part in _arrays(batch.spans)]
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        for path, start, what in ((self.tokens_path, self._size, data), (self._journal_path, self._journal_size, line)):
            with open(path, "r+b" if path.exists() else "w+b") as file:
                file.truncate(start)
                file.seek(start)
                file.write(what)
        self._size += len(data)
        self._journal_size += len(line)

    def tokens(self) -> Array:
        """All tokens that were found or appended, mapped from disk."""
        return np.memmap(self.tokens_path, self.dtype, "r", shape=(self._size // self.dtype.itemsize,)).view(np.ndarray)

    def _crc(self, size: int, spans: Spans) -> int | None:
        """CRC-32 of the next `size` bytes of tokens and of these spans; None where there are fewer."""
        try:
            with open(self.tokens_path, "rb") as file:
                file.seek(self._size)
                data = file.read(size)
        except FileNotFoundError:
            return None
        return zlib.crc32(_bytes(spans), zlib.crc32(data)) if len(data) == size else None

    def _read_journal(self) -> list[tuple[dict, int]]:
        """The lines of an earlier journal that are whole, with their sizes in bytes."""
        entries: list[tuple[dict, int]] = []
        if self._journal_path.exists():
            with open(self._journal_path, "rb") as file:
                for line in file:
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        break
                    if not line.endswith(b"\n") or not {"of", "crc", "lengths"} <= entry.keys():
                        break
                    entries.append((entry, len(line)))
        return entries


def _arrays(spans: Spans) -> tuple[Array, ...]:
    return spans.starts, spans.lengths, spans.weights


def _bytes(spans: Spans) -> bytes:
    return b"".join(part.tobytes() for part in _arrays(spans))
