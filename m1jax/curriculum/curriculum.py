"""What a run reads: a pure function from the global row number to a row of a source.

Rows are numbered from 0 through all steps and stages. A source is read one packing window after the other; where a
stage has another row length than the source was last read at, it continues at the first packing window that was not
started, so that no document is read twice in an epoch. Every epoch has its own order of packing windows, and of rows
inside each of them.
"""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from m1jax.config import StageConfig, Timeline
from m1jax.curriculum.mixture import Quotas, check_epochs, period_table, quantise, source_shares
from m1jax.curriculum.record import compare
from m1jax.errors import UserError
from m1jax.rows.manifest import Manifest
from m1jax.rows.shuffle import permutation


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a global row is: `row` is its index in the row store of (the stage's row length, `source`)."""

    stage: int
    step: int
    source: str
    epoch: int
    packing_window: int
    row: int


@dataclasses.dataclass(frozen=True)
class Cursor:
    """How far a source is read: rows of the `turn`-th packing window of an epoch's order.

    The rows are of one row length, which is 0 where nothing was read.
    """

    epoch: int = 0
    turn: int = 0
    row: int = 0
    row_length: int = 0


@dataclasses.dataclass(frozen=True)
class Use:
    """What one stage reads of one source.

    `share` is of the stage's rows; `epochs` is rows over the rows of an epoch; `skipped` rows (of the row length read
    before) of an open packing window are left out because the row length changed. `last` is the last row read, `end`
    the one after it.
    """

    stage: str
    source: str
    domain: str
    share: float
    rows: int
    tokens: int
    epochs: float
    start: Cursor
    last: Cursor
    end: Cursor
    skipped: int


class Curriculum:
    """The stages of a run over packed sources."""

    def __init__(
        self,
        stages: tuple[StageConfig, ...],
        manifest: Manifest,
        seed: int,
        max_epochs: Mapping[str, float] = types.MappingProxyType({}),
    ) -> None:
        """Works out what every stage reads; `max_epochs` is DataConfig's.

        Raises UserError where a stage's row length is not packed, its mixture does not fit the sources, or a source
        would be read more often than it may.
        """
        self.timeline = Timeline(stages)
        """Which stage, rows and tokens a step has, and which step reads a row."""
        self.stages = stages
        self.manifest = manifest
        self.seed = seed
        for stage in stages:
            if stage.row_length not in manifest.row_lengths:
                raise UserError(
                    f"stage {stage.name!r} reads rows of {stage.row_length} tokens, but rows of "
                    f"{', '.join(map(str, manifest.row_lengths))} are packed: add it to data.row_lengths, pack again."
                )
        self._packing_windows = functools.lru_cache(maxsize=256)(self._make_packing_windows)
        self._starts = functools.lru_cache(maxsize=256)(self._make_starts)
        self._row_order = functools.lru_cache(maxsize=512)(self._make_row_order)
        self._first_rows = [self.timeline.rows_before(step) for step in self.timeline.first_steps]
        self._quotas = [
            quantise(stage.name, source_shares(stage.name, stage.mixture, manifest.sources, stage.difficulty))
            for stage in stages
        ]
        self._uses = self._all_uses()
        check_epochs(max_epochs, manifest.sources, [(use.stage, use.source, use.epochs) for use in self.table()])
        self._bases = [{source: self._linear(source, use.start) for source, use in uses.items()} for uses in self._uses]

    @property
    def used(self) -> list[tuple[int, str]]:
        """The (row length, source) pairs that some stage reads."""
        return sorted({(s.row_length, name) for s, q in zip(self.stages, self._quotas, strict=True) for name in q.rows})

    def quantisation_error(self, stage: int) -> float:
        """Largest relative difference between a source's share of the stage's rows and the share that was asked for."""
        return self._quotas[stage].error

    def locate(self, row: int) -> Location:
        """Where global row `row` is; raises UserError where the run has no such row."""
        step = self.timeline.step_of_row(row)
        stage = self.timeline.stage_index(step)
        in_stage = row - self._first_rows[stage]
        quotas = self._quotas[stage].rows
        names = list(quotas)
        sources, before = period_table(tuple(quotas.values()))
        period, slot = divmod(in_stage, len(sources))
        source = names[sources[slot]]
        epoch, base = self._bases[stage][source]
        cursor = self._cursor(
            source, epoch, base + period * quotas[source] + int(before[slot]), self.stages[stage].row_length
        )
        packing_window = int(self._packing_windows(source, cursor.epoch)[cursor.turn])
        order = self._row_order(source, cursor.row_length, cursor.epoch, packing_window)
        first = self.manifest.sources[source].files[cursor.row_length].first_rows[packing_window]
        index = first + int(order[cursor.row])
        return Location(stage, step, source, cursor.epoch, packing_window, index)

    def table(self) -> list[Use]:
        """What every stage reads of every source, in order."""
        return [use for uses in self._uses for use in uses.values()]

    def record(self) -> dict[str, Any]:
        """All that decides which rows are read, as JSON values: saved with a checkpoint, compared by `check`."""
        return {
            "seed": self.seed,
            "tokenizer": self.manifest.tokenizer,
            "chat_format": self.manifest.chat_format,
            "sources": {
                name: {str(length): file.sha256 for length, file in sorted(source.files.items())}
                for name, source in sorted(self.manifest.sources.items())
            },
            "stages": [
                {
                    "name": stage.name,
                    "row_length": stage.row_length,
                    "batches": [list(part) for part in stage.batches],
                    "rows": dict(quotas.rows),
                }
                for stage, quotas in zip(self.stages, self._quotas, strict=True)
            ],
        }

    def check(self, saved: Mapping[str, Any], step: int | None = None, amend: bool = False) -> list[str]:
        """What was changed after step `step`, in words, since this curriculum's `record()` was `saved`.

        `step` is the number of steps already taken: changes before it are in the past, others in the future. Without
        it the whole curriculum counts as past. Raises UserError, naming every difference, where the past was changed,
        and, unless `amend` accepts it, where the future was.
        """
        return compare(saved, self.record(), step, amend)

    def _all_uses(self) -> list[dict[str, Use]]:
        """What each stage reads of each source, from where to where."""
        cursors: dict[str, Cursor] = {}
        found = []
        for stage, quotas in zip(self.stages, self._quotas, strict=True):
            uses = {}
            for source, rows in _rows_of(quotas, stage.rows).items():
                start = cursors.get(source, Cursor(row_length=stage.row_length))
                skipped = 0
                if rows:
                    start, skipped = self._enter(source, start, stage.row_length)
                epoch, base = self._linear(source, start)
                end = self._cursor(source, epoch, base + rows, start.row_length)
                cursors[source] = end
                packed = self.manifest.sources[source]
                file = packed.files[stage.row_length]
                uses[source] = Use(
                    stage=stage.name,
                    source=source,
                    domain=packed.domain,
                    share=quotas.rows[source] / quotas.period,
                    rows=rows,
                    tokens=round(rows * stage.row_length * file.fill),
                    epochs=rows / file.rows,
                    start=start,
                    last=self._cursor(source, epoch, base + max(rows - 1, 0), start.row_length),
                    end=end,
                    skipped=skipped,
                )
            found.append(uses)
        return found

    def _enter(self, source: str, last: Cursor, row_length: int) -> tuple[Cursor, int]:
        """Where a stage of `row_length` continues a source, and how many rows of the old length it skips."""
        if last.row_length == row_length:
            return last, 0
        if not last.row:
            return dataclasses.replace(last, row_length=row_length), 0
        packed = self.manifest.sources[source]
        packing_window = int(self._packing_windows(source, last.epoch)[last.turn])
        first_rows = packed.files[last.row_length].first_rows
        skipped = first_rows[packing_window + 1] - first_rows[packing_window] - last.row
        epoch, turn = last.epoch, last.turn + 1
        if turn == packed.packing_windows:
            epoch, turn = epoch + 1, 0
        return Cursor(epoch, turn, 0, row_length), skipped

    def _linear(self, source: str, cursor: Cursor) -> tuple[int, int]:
        """(epoch, rows of that epoch before the cursor)."""
        return cursor.epoch, int(self._starts(source, cursor.row_length, cursor.epoch)[cursor.turn]) + cursor.row

    def _cursor(self, source: str, epoch: int, row: int, row_length: int) -> Cursor:
        """The cursor `row` rows after the beginning of `epoch`; O(log packing windows)."""
        further, row = divmod(row, self.manifest.sources[source].files[row_length].rows)
        starts = self._starts(source, row_length, epoch + further)
        turn = int(np.searchsorted(starts, row, side="right")) - 1
        return Cursor(epoch + further, turn, row - int(starts[turn]), row_length)

    def _make_packing_windows(self, source: str, epoch: int) -> npt.NDArray[np.int64]:
        """The order of a source's packing windows in an epoch."""
        return permutation(self.manifest.sources[source].packing_windows, "windows", self.seed, source, epoch)

    def _make_starts(self, source: str, row_length: int, epoch: int) -> npt.NDArray[np.int64]:
        """Rows of an epoch before each packing window, in the epoch's order; last, the rows of the epoch."""
        sizes = np.diff(self.manifest.sources[source].files[row_length].first_rows)
        return np.concatenate([[0], np.cumsum(sizes[self._packing_windows(source, epoch)])])

    def _make_row_order(self, source: str, row_length: int, epoch: int, packing_window: int) -> npt.NDArray[np.int64]:
        """The order of the rows of a packing window in an epoch."""
        first_rows = self.manifest.sources[source].files[row_length].first_rows
        size = first_rows[packing_window + 1] - first_rows[packing_window]
        return permutation(size, "window", self.seed, source, epoch, packing_window)


def _rows_of(quotas: Quotas, rows: int) -> dict[str, int]:
    """How many of the first `rows` rows of a stage each source has."""
    whole, rest = divmod(rows, quotas.period)
    sources, _ = period_table(tuple(quotas.rows.values()))
    begun = np.bincount(sources[:rest], minlength=len(quotas.rows))
    return {name: whole * quota + int(n) for (name, quota), n in zip(quotas.rows.items(), begun, strict=True)}
