"""Continuations as rows: prompt, sampled tokens and, for ELO, the answer behind them.

Legend: N continuations, R rows, S tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Continuation:
    """One continuation behind its prompt; `answer` follows it where it is given, and `between` before that."""

    prompt: Sequence[int]
    sampled: Sequence[int]
    between: Sequence[int] = ()
    answer: Sequence[int] = ()

    @property
    def ids(self) -> list[int]:
        """All tokens, in order."""
        return [*self.prompt, *self.sampled, *self.between, *self.answer]


@dataclass(frozen=True)
class Rows:
    """Rows of continuations, `per_row` in each, and where each has its tokens.

    `columns` are int32 and float32 (R, S): tokens, targets, segment_ids, positions, `weights` (1 where the target was
    sampled) and `answers` (1 where it is of an answer).
    """

    columns: dict[str, Array]
    places: list[tuple[int, slice, slice]]
    """Of each continuation: its row, and the places whose targets are the sampled tokens, and those of the answer."""

    def of(self, values_RS: Array, answers: bool = False) -> list[Array]:
        """The values at each continuation's sampled tokens, or at those of its answer."""
        return [values_RS[row, answer if answers else sampled] for row, sampled, answer in self.places]

    def spread(self, values: Sequence[Array]) -> Array:
        """The way back for sampled tokens: (R, S) float32, 0 elsewhere."""
        out = np.zeros(self.columns["tokens"].shape, np.float32)
        for (row, sampled, _), value in zip(self.places, values, strict=True):
            out[row, sampled] = value
        return out


def rows(sequences: Sequence[Continuation], count: int, row_length: int) -> Rows:
    """`count` rows of equally many continuations each, in order; every continuation must fit its share of a row."""
    assert len(sequences) % count == 0, "continuations spread evenly over rows"
    per_row = len(sequences) // count
    shape = count, row_length
    columns = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    columns |= {name: np.zeros(shape, np.float32) for name in ("weights", "answers")}
    places = []
    for r in range(count):
        at = 0
        for segment, one in enumerate(sequences[r * per_row : (r + 1) * per_row], 1):
            ids = one.ids
            whole = slice(at, at + len(ids))
            assert whole.stop <= row_length, "a continuation is longer than its share of a row"
            columns["tokens"][r, whole] = ids
            columns["targets"][r, at : whole.stop - 1] = ids[1:]
            columns["segment_ids"][r, whole] = segment
            columns["positions"][r, whole] = np.arange(len(ids))
            first = at + len(one.prompt) - 1
            sampled = slice(first, first + len(one.sampled))
            answer = slice(whole.stop - 1 - len(one.answer), whole.stop - 1)
            columns["weights"][r, sampled] = 1
            columns["answers"][r, answer] = 1
            places.append((r, sampled, answer))
            at = whole.stop
    return Rows(columns, places)
