"""Rows read by byte ranges from an ArrayRecord file in a bucket or behind a mount.

ArrayRecord's own reader opens local paths only. Each file of rows has an index beside it, written with it: where each
row's chunk begins. A chunk is laid out as the Riegeli/records format says
(github.com/google/riegeli, doc/riegeli_records_file_format.md): the file is in blocks of 64 KiB that begin with a
header of 24 bytes; what remains when these are taken out is a sequence of chunks, each a header of 40 bytes and its
data; `m1 pack` writes one uncompressed record a chunk, and the record is the last part of its data.
"""

import mmap
import struct
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m1jax.errors import UserError
from m1jax.rows.record import Row, decode_row
from m1jax.rows.storage import CONCURRENT, Storage

_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_PAYLOAD = _BLOCK - _BLOCK_HEADER
# Hash, bytes of data, hash of the data, type of chunk and number of records (7 bytes), bytes of the records.
_CHUNK = struct.Struct("<QQQQQ")
_ONE_RECORD = ord("r") | 1 << 8
_PAGE = 8192
"""Rows whose places in the file are read at once."""
_PAGES = 64
"""Pages that are kept of one file: 4 MiB."""


def index_file(rows: str | Path) -> str:
    """The index that belongs to a file of rows."""
    return str(rows).removesuffix(".array_record") + ".index"


def write_index(path: Path) -> None:
    """Writes the index of a finished file of rows beside it: little-endian uint64, one a row and one for the end.

    An entry is the beginning of a chunk, the headers of blocks not counted. Raises UserError where the file is no
    sequence of such chunks.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # The first chunk is the file's signature, without data.
        starts = [_CHUNK.size]
        while True:
            _, size, _, kind, _ = _CHUNK.unpack(_cut(data, starts[-1], starts[-1] + _CHUNK.size))
            if kind != _ONE_RECORD:
                break
            starts.append(starts[-1] + _CHUNK.size + size)
    Path(index_file(path)).write_bytes(np.array(starts, "<u8").tobytes())


def _cut(data: mmap.mmap, first: int, last: int) -> bytes:
    begin, end = _physical(first, last)
    return _without_headers(data[begin:end], begin)


def _physical(first: int, last: int) -> tuple[int, int]:
    """Where bytes `first` to `last` (that one excluded) of a file without its block headers are in the file."""
    begin = first + _BLOCK_HEADER * (first // _PAYLOAD + 1)
    return begin, last + _BLOCK_HEADER * ((last - 1) // _PAYLOAD + 1)


def _without_headers(data: bytes, begin: int) -> bytes:
    """The bytes of a file from `begin` on without the headers of the blocks that begin among them."""
    parts, at = [], 0
    for block in range(-(-begin // _BLOCK) * _BLOCK - begin, len(data), _BLOCK):
        parts.append(data[at:block])
        at = block + _BLOCK_HEADER
    return b"".join((*parts, data[at:]))


class RangeRows:
    """Random access to the rows of one file in a storage; threads may share it.

    Every failure to read is a UserError that names the file.
    """

    def __init__(self, storage: Storage, name: str, rows: int, row_length: int, pool: ThreadPoolExecutor) -> None:
        """`name` is the file's below the storage's address, `rows` their number, `pool` the threads that read."""
        self.path = f"{storage.url}/{name}"
        self._storage, self._name, self._rows, self._row_length, self._pool = storage, name, rows, row_length, pool
        self._lock = threading.Lock()
        self._pages: dict[int, Future[npt.NDArray[np.uint64]]] = {}

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Row:
        """Row `index`, from 0."""
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        first, last = self._place(index)
        begin, end = _physical(first, last)
        chunk = _without_headers(self._storage.read(self._name, begin, end), begin)
        _, size, _, kind, record = _CHUNK.unpack_from(chunk)
        try:
            if kind != _ONE_RECORD or size != last - first - _CHUNK.size or record > size:
                raise ValueError("its chunk is not a single record")
            row = decode_row(chunk[len(chunk) - record :])
            if row.row_length != self._row_length:
                raise ValueError(f"it has {row.row_length} tokens instead of {self._row_length}")
            return row
        except ValueError as error:
            raise UserError(
                f"row {index} of {self.path} is damaged ({error}): copy the packed rows there again."
            ) from error

    def request(self, index: int) -> "Future[tuple[Row, float]]":
        """Row `index` and the moment (time.perf_counter) it was there, once a thread has read it."""
        return self._pool.submit(lambda: (self[index], time.perf_counter()))

    def check(self, size: int = 0) -> None:
        """Raises UserError where the file or its index is missing or cut short, or its first or last row damaged.

        `size` in bytes is the manifest's, 0 where it is not known.
        """
        last = 8 * (self._rows + 1)
        self._storage.read(index_file(self._name), last - 8, last)
        if size:
            self._storage.read(self._name, size - 1, size)
        for index in {0, self._rows - 1}:
            self[index]

    def _place(self, index: int) -> tuple[int, int]:
        page, at = divmod(index, _PAGE)
        with self._lock:
            found = self._pages.get(page)
            mine = found is None or (found.done() and found.exception() is not None)
            if mine:
                # The first thread reads the page; the others wait for it, and fail if it fails.
                self._pages[page] = found = Future()
                if len(self._pages) > _PAGES:
                    del self._pages[next(iter(self._pages))]
        assert found is not None
        if mine:
            try:
                found.set_result(self._read_page(page))
            except BaseException as error:  # noqa: BLE001 (handed on to all who wait)
                found.set_exception(error)
        places = found.result()
        return int(places[at]), int(places[at + 1])

    def _read_page(self, page: int) -> npt.NDArray[np.uint64]:
        last = min((page + 1) * _PAGE, self._rows)
        return np.frombuffer(self._storage.read(index_file(self._name), 8 * page * _PAGE, 8 * (last + 1)), "<u8")


def reading_threads() -> ThreadPoolExecutor:
    """Threads that wait for answers: as many as a storage has reads under way."""
    return ThreadPoolExecutor(CONCURRENT, thread_name_prefix="m1jax-rows")
