"""The weights of tokens as targets, kept as runs of tokens."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Spans:
    """Runs of tokens whose weight as a target is not 1, in order and without overlap; every other token has weight 1.

    Text that is learned as a whole has no run and so costs nothing. `starts` (index of a run's first token) and
    `lengths` (tokens, 1 or more) are integers, `weights` float32, each of shape (runs,).
    """

    starts: npt.NDArray[np.integer]
    lengths: npt.NDArray[np.integer]
    weights: Floats

    def __len__(self) -> int:
        return len(self.starts)

    def places(self) -> Ints:
        """Index of every token that is in a run, in order: int64 (sum of `lengths`,)."""
        return ranges(self.starts.astype(np.int64), self.lengths.astype(np.int64))

    def shifted(self, by: int) -> "Spans":
        """The same runs, `by` tokens later, with int64 indices."""
        return Spans(self.starts.astype(np.int64) + by, self.lengths.astype(np.int64), self.weights)

    def cut(self, begins: Ints, ends: Ints) -> tuple[Ints, "Spans"]:
        """The parts of runs that are in the pieces `begins[i]` to `ends[i]` (that one excluded).

        Returns the piece of each part, int64, and the parts with starts counted from the beginning of their piece.
        """
        stops = self.starts + self.lengths
        first = np.searchsorted(stops, begins, side="right")
        counts = np.maximum(np.searchsorted(self.starts, ends, side="left") - first, 0)
        piece = np.repeat(np.arange(len(begins)), counts)
        run = ranges(first, counts)
        start = np.maximum(self.starts[run], begins[piece])
        length = np.minimum(stops[run], ends[piece]) - start
        return piece, Spans(start - begins[piece], length, self.weights[run])


NO_SPANS = Spans(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """The integers `starts[i]` to `starts[i] + lengths[i]` (that one excluded) of each i, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)


def joined(parts: Sequence[Spans]) -> Spans:
    """Runs of several sequences as those of one; the runs of each part must come after those of the part before."""
    if not parts:
        return NO_SPANS
    return Spans(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("starts", "lengths", "weights"))
    )
