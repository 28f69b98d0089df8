"""Best fit, decreasing; the pieces of a packing window of documents; and the holes that whole documents leave.

Best-fit packing keeps documents whole (Ding et al. 2024, arXiv 2404.10830). Where it leaves more than one slot in a
thousand empty, a few documents are cut into the holes. A piece is (document, offset, length); every further piece of a
document begins by repeating the last token of the piece before it, so that every target counts exactly once.

Legend: S tokens of a row, N pieces.
"""

import dataclasses
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from m1jax.rows.spans import Ints, ranges

FULL = 0.999
"""Share of filled slots from which on no further document is cut."""
SPARE = 5e-4
"""The largest share of a packing window's slots that its border leaves empty on purpose."""


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Pieces of documents, row by row: int64 (N,) arrays, `rows` ascending from 0."""

    documents: Ints
    offsets: Ints
    lengths: Ints
    rows: Ints

    @property
    def count(self) -> int:
        """Rows that they make."""
        return int(self.rows[-1]) + 1


def split(length: int, row_length: int) -> list[tuple[int, int]]:
    """(offset, length) of the pieces of a document of `length` >= 2 tokens: all full but the last, each 2 or more."""
    step = row_length - 1
    return [(offset, min(row_length, length - offset)) for offset in range(0, length - 1, step)]


def pieces_of(lengths: Ints, row_length: int) -> Ints:
    """Pieces that `split` makes of each document; each beyond the first repeats one token."""
    return 1 + (lengths - 2) // (row_length - 1)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of items, by index: longest item first, each into the fullest bin that still has room for it."""
    bins: list[list[int]] = []
    for item, place in zip(*map(np.ndarray.tolist, _best_fit(np.asarray(lengths, np.int64), capacity)), strict=True):
        if place == len(bins):
            bins.append([])
        bins[place].append(item)
    return bins


def _best_fit(lengths: Ints, capacity: int) -> tuple[Ints, Ints]:
    """The items, longest first, and the bin of each, numbered as they are opened."""
    order = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    rooms = _Rooms()
    places: list[int] = []
    copies: list[int] = []
    opened = 0
    for size, left in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            # The fullest bin that takes one item is the fullest for the next of the same size too, while it has room.
            if (found := rooms.best(size)) is not None:
                room, place = found
            else:
                room, place = capacity, opened
                opened += 1
            many = min(left, room // size)
            rooms.put(room - many * size, place)
            places.append(place)
            copies.append(many)
            left -= many
    return order, np.repeat(np.array(places, np.int64), copies)


class _Rooms:
    """Bins by the room they have left, oldest first, and a bit for every amount of room that some bin has."""

    def __init__(self) -> None:
        self._bins: dict[int, deque[int]] = {}
        self._bits = 0

    def put(self, room: int, place: int) -> None:
        if room:
            self._bins.setdefault(room, deque()).append(place)
            self._bits |= 1 << room

    def best(self, size: int) -> tuple[int, int] | None:
        """Takes out the bin of the least room that is `size` or more, as (room, bin)."""
        if not (fitting := self._bits >> size):
            return None
        return self._take(size + (fitting & -fitting).bit_length() - 1)

    def largest(self) -> tuple[int, int]:
        """Takes out the bin of the most room."""
        return self._take(self._bits.bit_length() - 1)

    def _take(self, room: int) -> tuple[int, int]:
        waiting = self._bins[room]
        place = waiting.popleft()
        if not waiting:
            self._bits &= ~(1 << room)
        return room, place


def pack_documents(documents: Ints, lengths: Ints, row_length: int) -> Pieces:
    """Rows of one packing window; document `documents[i]` has `lengths[i]` >= 2 tokens.

    Documents longer than a row are split, whole pieces are packed best fit, decreasing, and where that leaves the rows
    less than FULL, the fewest possible documents are cut to save rows.
    """
    counts = pieces_of(lengths, row_length)
    which = np.repeat(np.arange(len(lengths)), counts)
    first = np.cumsum(counts) - counts
    offsets = (np.arange(len(which)) - first[which]) * (row_length - 1)
    sizes = np.minimum(row_length, lengths[which] - offsets)
    order, rows = _best_fit(sizes, row_length)
    by_row = np.argsort(rows, kind="stable")
    chosen = order[by_row]
    pieces = Pieces(documents[which[chosen]], offsets[chosen], sizes[chosen], rows[by_row])
    if sizes.sum() >= FULL * pieces.count * row_length or pieces.count * row_length - sizes.sum() < row_length:
        return pieces
    return _fill_holes(pieces, (counts[which[chosen]] > 1), row_length)


def pack_pairs(documents: Ints, lengths: Ints, firsts: Ints, row_length: int) -> Pieces:
    """Rows of one packing window, whose documents are packed whole and each pair of them into one row.

    Pair i is the documents from `firsts[i]` on up to the next pair; no pair has more than `row_length` tokens. Pairs
    are packed best fit, decreasing.
    """
    order, rows = _best_fit(np.add.reduceat(lengths, firsts), row_length)
    by_row = np.argsort(rows, kind="stable")
    counts = np.diff(firsts, append=len(documents))[order[by_row]]
    chosen = ranges(firsts[order[by_row]], counts)
    whole = np.zeros(len(chosen), np.int64)
    return Pieces(documents[chosen], whole, lengths[chosen], np.repeat(rows[by_row], counts))


def _fill_holes(pieces: Pieces, cut: npt.NDArray[np.bool_], row_length: int) -> Pieces:
    """The same tokens in fewer rows: some rows are dissolved and their documents cut into the holes of the others.

    `cut` says which pieces belong to documents that are already in several pieces: these are moved first. A hole of h
    slots takes h - 1 targets, since a piece's first token is not one, and the end of each document may waste one more.
    """
    used = np.bincount(pieces.rows, pieces.lengths).astype(np.int64)
    targets = used - np.bincount(pieces.rows)
    whole = np.bincount(pieces.rows, ~cut).astype(np.int64)
    worth = np.maximum(row_length - used - 1, 0)
    free, tokens, rows = int(worth.sum()), int(used.sum()), len(used)
    given_up: list[int] = []
    for row in np.lexsort((used, whole)).tolist():
        if tokens >= FULL * rows * row_length or rows * row_length - tokens < row_length:
            break
        items = int(used[row] - targets[row])
        if free - worth[row] >= targets[row] + items:
            given_up.append(row)
            free -= int(worth[row] + targets[row]) + items
            rows -= 1
    if not given_up:
        return pieces
    homeless = np.isin(pieces.rows, given_up)
    holes = _Rooms()
    for row in np.flatnonzero(~np.isin(np.arange(len(used)), given_up) & (worth > 0)).tolist():
        holes.put(int(row_length - used[row]), row)
    moved: list[list[int]] = [[], [], [], []]
    for i in sorted(np.flatnonzero(homeless).tolist(), key=lambda i: -pieces.lengths[i]):
        _scatter(int(pieces.documents[i]), int(pieces.offsets[i]), int(pieces.lengths[i]), holes, moved)
    columns = (pieces.documents, pieces.offsets, pieces.lengths, pieces.rows)
    together = [
        np.concatenate([old[~homeless], np.array(new, np.int64)]) for old, new in zip(columns, moved, strict=True)
    ]
    by_row = np.argsort(together[3], kind="stable")
    documents, offsets, lengths, numbers = (column[by_row] for column in together)
    return Pieces(documents, offsets, lengths, np.unique(numbers, return_inverse=True)[1].astype(np.int64))


def _scatter(document: int, offset: int, length: int, holes: _Rooms, moved: list[list[int]]) -> None:
    """Puts one piece into the hole that it fits best, or cuts it over the largest ones."""
    while length:
        room, row = holes.best(length) or holes.largest()
        size = min(room, length)
        for column, value in zip(moved, (document, offset, size, row), strict=True):
            column.append(value)
        if room - size > 1:
            holes.put(room - size, row)
        # What is left begins with the last token of what was placed.
        offset, length = offset + size - 1, length - size + 1 if size < length else 0


def packing_borders(lengths: Ints, row_lengths: Sequence[int], packing_window: int) -> list[int]:
    """First document of each packing window, and the number of documents: windows of nearly equal size.

    `lengths` are those of the documents in their shuffled order. A packing window ends, up to an eighth before or after
    its share of what is left, where its tokens come closest to filling whole rows at every row length: its last row is
    the one that nothing can fill.
    """
    borders = [0]
    used = {row: np.concatenate([[0], np.cumsum(lengths + pieces_of(lengths, row) - 1)]) for row in row_lengths}
    while (left := len(lengths) - borders[-1]) > packing_window:
        start = borders[-1]
        share = -(-left // -(-left // packing_window))
        ends = start + np.arange(max(1, share - share // 8), min(packing_window, share + share // 8) + 1)
        waste = np.zeros(len(ends))
        for row, total in used.items():
            tokens = total[ends] - total[start]
            # Cut documents repeat about a token a row: without room for these, one more row would be opened.
            wanted = np.minimum(1.5 / row, SPARE) * tokens
            empty = -tokens % row
            waste = np.maximum(waste, np.where(empty < wanted, empty + row, empty - wanted) / tokens)
        nearest = np.abs(ends - start - share)
        borders.append(int(ends[np.lexsort((nearest, waste))[0]]))
    return [*borders, len(lengths)]
