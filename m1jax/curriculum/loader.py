"""Batches of a curriculum, read by grain: a batch depends on nothing but its step."""

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import SupportsIndex

import grain
import numpy as np
import numpy.typing as npt

from m1jax.curriculum.ahead import Ahead
from m1jax.curriculum.curriculum import Curriculum, Location
from m1jax.errors import UserError
from m1jax.rows.expand import expand
from m1jax.rows.packed import Stores
from m1jax.rows.ranges import RangeRows
from m1jax.rows.record import Row

Batch = dict[str, npt.NDArray[np.generic]]
"""tokens, targets, segment_ids, positions (int32), weights (float32) and the loader's columns (int32 or float32).

Each is (rows, row length); see `rows.expand`.
"""

_PREFETCHED = 2
_AHEAD_TOKENS = 1 << 26
"""Tokens of rows that may be under way to one process from a bucket at once."""


@dataclasses.dataclass(frozen=True)
class Served:
    """One row of a step: its number in the run, where it is, (document, offset, length) of its pieces, and itself."""

    number: int
    location: Location
    pieces: tuple[tuple[int, int, int], ...]
    row: Row


class Loader:
    """Reads this process's rows of every step: a block of consecutive rows of the global batch."""

    def __init__(
        self,
        curriculum: Curriculum,
        stores: Stores,
        process_index: int = 0,
        process_count: int = 1,
        columns: Sequence[str] = (),
    ) -> None:
        """`columns` names the columns of documents (see `Document.columns`) that every batch holds besides its arrays.

        Raises UserError where a stage's global batch is not divided by `process_count`, or where a source that is read
        lacks a column.
        """
        assert 0 <= process_index < process_count
        for stage in curriculum.stages:
            for rows, _ in stage.batches:
                if rows % process_count:
                    key = "global_batch" if rows == stage.global_batch else "a batch of its ramp"
                    raise UserError(
                        f"stage {stage.name!r}: {key} = {rows} is not divided by {process_count} "
                        f"processes: choose a multiple of {process_count}."
                    )
        _check_columns(curriculum, columns)
        self._curriculum = curriculum
        self._stores = stores
        self._columns = tuple(columns)
        self._process_index = process_index
        self._process_count = process_count

    def batch(self, step: int) -> Batch:
        """This process's share of the batch of one step. Raises UserError where rows cannot be read."""
        return self.arrays([self._read(location) for location in self._locations(step).values()])

    def arrays(self, rows: Sequence[Row]) -> Batch:
        """The batch that consists of these rows."""
        return expand(rows, self._columns)

    def batches(self, first_step: int, last_step: int) -> "ReadAhead":
        """This process's share of the batches of steps `first_step` to `last_step - 1`, read ahead by one thread.

        The row length changes with the stage. Errors of the reading thread are raised by `next`; the thread ends with
        the iterator, at the latest when the process exits.
        """
        assert 0 <= first_step <= last_step <= self._curriculum.timeline.steps, "steps outside the curriculum"
        return ReadAhead(_Steps(self, first_step, last_step))

    def documents(self, step: int) -> list[Served]:
        """Which documents this process's rows of a step come from, row by row."""
        served = []
        for number, location in self._locations(step).items():
            row = self._read(location)
            pieces = zip(row.documents.tolist(), row.offsets.tolist(), row.lengths.tolist(), strict=True)
            served.append(Served(number, location, tuple(pieces), row))
        return served

    def ahead(self, last_step: int) -> Ahead | None:
        """Requests the rows of steps below `last_step` early where they come from a bucket; None for a disk."""
        if not any(isinstance(store, RangeRows) for store in self._stores.values()):
            return None
        tokens = max(stage.global_batch * stage.row_length for stage in self._curriculum.stages)
        return Ahead(self._request, last_step, _AHEAD_TOKENS * self._process_count // tokens)

    def _request(self, step: int) -> "list[Future[tuple[Row, float]]]":
        requests = []
        for location in self._locations(step).values():
            store = self._stores[self._curriculum.stages[location.stage].row_length, location.source]
            assert isinstance(store, RangeRows)
            requests.append(store.request(location.row))
        return requests

    def _locations(self, step: int) -> dict[int, Location]:
        """Global row number to location, of this process's rows of a step."""
        rows = self._curriculum.timeline.batch_of(step) // self._process_count
        first = self._curriculum.timeline.rows_before(step) + self._process_index * rows
        return {number: self._curriculum.locate(number) for number in range(first, first + rows)}

    def _read(self, location: Location) -> Row:
        row_length = self._curriculum.stages[location.stage].row_length
        store = self._stores[row_length, location.source]
        row = store[location.row]
        if row.row_length != row_length:
            raise UserError(
                f"{store.path} holds rows of {row.row_length} tokens instead of {row_length}: run `m1 pack` again."
            )
        return row


def _check_columns(curriculum: Curriculum, columns: Sequence[str]) -> None:
    """Raises UserError where a source that is read lacks a column, or two sources keep it in different dtypes."""
    read = {name: curriculum.manifest.sources[name].columns for _, name in curriculum.used}
    for column in columns:
        kinds: dict[str, str] = {}
        for source, found in read.items():
            if column not in found:
                raise UserError(
                    f"source {source!r} has no column {column!r} (it has: {', '.join(sorted(found)) or 'none'}), but "
                    f"what is trained reads it: give its documents this column and run `m1 pack` again, or take the "
                    f"source out of the mixture."
                )
            kinds[found[column]] = source
        if len(kinds) > 1:
            described = " and ".join(f"{kind} in source {source!r}" for kind, source in sorted(kinds.items()))
            raise UserError(
                f"column {column!r} is {described}: give all sources the same kind of number, then run `m1 pack` again."
            )


class _Steps(grain.sources.RandomAccessDataSource[Batch]):
    """What grain reads: item i is the local batch of step `first` + i."""

    def __init__(self, loader: Loader, first: int, last: int) -> None:
        self._loader, self._first, self._last = loader, first, last
        self.ahead = loader.ahead(last)

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, index: SupportsIndex) -> Batch:
        step = self._first + int(index)
        return self._loader.batch(step) if self.ahead is None else self._loader.arrays(self.ahead.rows(step))


class ReadAhead(Iterator[Batch]):
    """Batches that one thread of grain prefetches; `close` ends the thread, and so does dropping the iterator."""

    def __init__(self, steps: _Steps) -> None:
        if len(steps):
            # Grain's default of 16 reading threads is several times slower on local rows.
            dataset = grain.MapDataset.source(steps).to_iter_dataset(grain.ReadOptions(num_threads=0))
            ahead = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=_PREFETCHED)
            self._open = [iter(ahead)]
        else:
            self._open = []
        # Also called at exit, before modules are torn down: a thread that still read then would abort the process.
        self.close = weakref.finalize(self, _close, self._open, steps.ahead)

    def __next__(self) -> Batch:
        if not self._open:
            raise StopIteration
        try:
            return next(self._open[0])
        except BaseException:
            self.close()
            raise


def _close(iterators: list[grain.DatasetIterator[Batch]], ahead: Ahead | None) -> None:
    while iterators:
        iterators.pop().close()
    if ahead is not None:
        ahead.close()
