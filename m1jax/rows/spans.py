"""The weights of tokens as targets, kept as runs of tokens."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

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

    def of_tokens(self, count: int) -> Floats:
        """The weight of each of the first `count` tokens as a target, float32 (count,)."""
        found = np.ones(count, np.float32)
        found[self.places()] = np.repeat(self.weights, self.lengths)
        return found

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

    def by_document(self, starts: Ints) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Targets of a weight above 0 of each document, and the sum of their weights.

        Document i is the tokens `starts[i]` to `starts[i + 1]` (that one excluded), and no run goes over its border.
        Its first token is never a target.
        """
        targets = np.diff(starts) - 1
        document = np.searchsorted(starts, self.starts, side="right") - 1
        sizes = self.lengths - (self.starts == starts[document])
        trained = targets - np.bincount(document, sizes * (self.weights == 0), len(targets)).astype(np.int64)
        return trained, targets + np.bincount(document, sizes * (self.weights.astype(np.float64) - 1), len(targets))


NO_SPANS = Spans(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """The integers `starts[i]` to `starts[i] + lengths[i]` (that one excluded) of each i, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)


def runs(tokens: Iterable[int], weights: Iterable[float], start: int) -> list[tuple[int, int, float]]:
    """The (start, tokens, weight) of the runs of a document, from the tokens and the weight of each of its parts.

    `start` is the index of its first token. Neighbours of an equal weight are one run; those of weight 1 are left out.
    """
    found = []
    rounded = (float(np.float32(weight)) for weight in weights)
    for weight, some in itertools.groupby(zip(rounded, tokens, strict=True), key=lambda part: part[0]):
        length = sum(count for _, count in some)
        if weight != 1 and length:
            found.append((start, length, weight))
        start += length
    return found


def spans_of(found: Sequence[tuple[int, int, float]]) -> Spans:
    """Spans of the runs in a list, (start, tokens, weight) each."""
    if not found:
        return NO_SPANS
    starts, lengths, weights = zip(*found, strict=True)
    return Spans(np.array(starts, np.int64), np.array(lengths, np.int64), np.array(weights, np.float32))


def joined(parts: Sequence[Spans]) -> Spans:
    """Runs of several sequences as those of one; the runs of each part must come after those of the part before."""
    if not parts:
        return NO_SPANS
    return Spans(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("starts", "lengths", "weights"))
    )
