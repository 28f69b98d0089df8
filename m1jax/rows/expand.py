"""What a model reads of packed rows.

Legend: B rows of a batch, S tokens of a row.
"""

from collections.abc import Sequence

import numpy as np

from m1jax.errors import UserError
from m1jax.rows.record import Array, Row
from m1jax.rows.spans import joined


def expand(rows: Sequence[Row], columns: Sequence[str] = ()) -> dict[str, Array]:
    """What a model reads of B rows of one length S: five arrays (B, S), and one more for each of `columns`.

    `tokens` int32; `targets` int32, the next token of the same piece, 0 where there is none; `weights` float32, the
    weight of the span that the target is in, 1 outside of the row's spans and 0 where there is no target;
    `segment_ids` int32, 1, 2, … by piece and 0 in padding; `positions` int32, from 0 in every piece, 0 in padding. A
    column is int32 or float32: its piece's value at every token, 0 in padding. Raises UserError for a column that the
    rows do not have.
    """
    length = rows[0].row_length
    assert all(row.row_length == length for row in rows), "rows of several lengths in one batch"
    tokens = np.zeros((len(rows), length), np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row.tokens)] = row.tokens
    # Padding counts as one more piece of every row, with segment id 0.
    lengths = np.concatenate([part for row in rows for part in (row.lengths, [length - len(row.tokens)])]).astype(int)
    ids = np.concatenate([part for row in rows for part in (np.arange(1, len(row.lengths) + 1), [0])])
    starts = np.cumsum(lengths) - lengths
    segment_ids = np.repeat(ids.astype(np.int32), lengths)
    positions = np.arange(tokens.size, dtype=np.int32) - np.repeat(starts.astype(np.int32), lengths)
    positions[segment_ids == 0] = 0
    last = (starts + lengths - 1)[lengths > 0]
    has_target = segment_ids > 0
    has_target[last] = False
    targets = np.roll(tokens.reshape(-1), -1) * has_target
    flat = {
        "targets": targets,
        "weights": _weights(rows, has_target),
        "segment_ids": segment_ids,
        "positions": positions,
        **{name: np.repeat(_column(rows, name), lengths) for name in columns},
    }
    return {"tokens": tokens, **{name: array.reshape(tokens.shape) for name, array in flat.items()}}


def _weights(rows: Sequence[Row], has_target: Array) -> Array:
    """The weight of every token's target, float32 (B * S,)."""
    weights = has_target.astype(np.float32)
    spans = joined([row.spans.shifted(i * row.row_length) for i, row in enumerate(rows) if len(row.spans)])
    if len(spans):
        # The target at place p is the token at p + 1; where that belongs to another piece there is no target.
        weights *= spans.of_tokens(len(weights) + 1)[1:]
    return weights


def _column(rows: Sequence[Row], name: str) -> Array:
    """A column's value by piece, padding being one more piece of every row."""
    if missing := [row for row in rows if name not in row.columns]:
        found = ", ".join(sorted(missing[0].columns)) or "none"
        raise UserError(
            f"the packed rows have no column {name!r} (they have: {found}): give the documents this column, then run "
            f"`m1 pack` again."
        )
    kinds = {row.columns[name].dtype for row in rows}
    if len(kinds) > 1:
        raise UserError(
            f"column {name!r} is int32 in some packed rows and float32 in others: give all sources the same kind of "
            f"number, then run `m1 pack` again."
        )
    return np.concatenate([part for row in rows for part in (row.columns[name], np.zeros(1, row.columns[name].dtype))])
