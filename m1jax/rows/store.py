"""The rows of a source in an ArrayRecord file: written in order, read at random."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from m1jax import artefact, disk
from m1jax.errors import UserError, first_line
from m1jax.rows.record import Row, decode_row, encode_row


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
            with disk.refusals(self._path):
                yield
        except RuntimeError as error:
            raise UserError(f"{self._path} cannot be written ({first_line(error)}): check its disk.") from error


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
        """A cheap check of the file: its size, header and end, and its first and last row.

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
