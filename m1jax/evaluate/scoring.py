"""Sequences of any length, packed into a few fixed shapes, scored, and handed back in their own order.

Segments of a row do not see each other, so packing several sequences into one row changes no number and costs far
fewer tokens than a row for each. B rows of a batch, S tokens of a row.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from m1jax.errors import UserError
from m1jax.rows.packing import best_fit

TargetLogprobs = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""From int32 (B, S) arrays tokens, targets, segment_ids and positions to float32 (B, S): the natural logarithm of
the probability of each target, given the tokens of its segment up to and including its own position."""

BATCH_KEYS = ("tokens", "targets", "segment_ids", "positions")


Tokens = Sequence[int] | np.ndarray
"""Token ids of one text."""


class Scorer(Protocol):
    """Sums the log-probabilities of the ends of token sequences."""

    @property
    def max_tokens(self) -> int:
        """The longest sequence that is scored."""

    def __call__(self, rows: Sequence[tuple[Tokens, int]]) -> list[float]:
        """For each (tokens, first): the sum of log p(tokens[i] | tokens[:i]) in nats over i ≥ first, first ≥ 1."""


def _batch(sequences: Sequence[Tokens], rows: Sequence[Sequence[int]], B: int, S: int) -> dict[str, np.ndarray]:
    """The arrays of at most B rows; segments count from 1, what no sequence fills is segment 0."""
    batch = {key: np.zeros((B, S), np.int32) for key in BATCH_KEYS}
    for row, indices in enumerate(rows):
        start = 0
        for segment, index in enumerate(indices, 1):
            end = start + len(sequences[index])
            batch["tokens"][row, start:end] = sequences[index]
            batch["targets"][row, start : end - 1] = sequences[index][1:]
            batch["segment_ids"][row, start:end] = segment
            batch["positions"][row, start:end] = np.arange(end - start)
            start = end
    return batch


def sequence_logprobs(
    sequences: Sequence[Tokens], target_logprobs: TargetLogprobs, row_lengths: Sequence[int], batch_tokens: int
) -> list[np.ndarray]:
    """Log-probabilities (nats, float32) of each sequence's tokens from the second on.

    Every sequence goes into rows of the shortest length of `row_lengths` that holds it, and a batch has
    `batch_tokens` // row length rows (at least one): as many shapes are compiled as there are row lengths. Raises
    UserError where the model answers with something that is no number.
    """
    buckets: dict[int, list[int]] = {length: [] for length in sorted(row_lengths)}
    for index, sequence in enumerate(sequences):
        buckets[next(length for length in buckets if length >= len(sequence))].append(index)
    scored: list[np.ndarray] = [np.empty(0, np.float32)] * len(sequences)
    for S, members in buckets.items():
        rows = [[members[i] for i in row] for row in best_fit([len(sequences[i]) for i in members], S)]
        B = max(1, batch_tokens // S)
        for first in range(0, len(rows), B):
            some = rows[first : first + B]
            logprobs_BS = np.asarray(target_logprobs(_batch(sequences, some, B, S)))
            assert logprobs_BS.shape == (B, S)
            for row, indices in enumerate(some):
                start = 0
                for index in indices:
                    end = start + len(sequences[index])
                    scored[index] = logprobs_BS[row, start : end - 1].astype(np.float32)
                    start = end
    if any(np.isnan(logprobs).any() for logprobs in scored):
        raise UserError("the model gives probabilities that are no numbers: evaluate an earlier checkpoint.")
    return scored


class RowScorer:
    """A `Scorer` over a `TargetLogprobs` callable; `row_lengths` and `batch_tokens` as in `sequence_logprobs`."""

    def __init__(self, target_logprobs: TargetLogprobs, row_lengths: Sequence[int], batch_tokens: int) -> None:
        assert row_lengths and min(row_lengths) >= 2
        self._target_logprobs = target_logprobs
        self._row_lengths = tuple(row_lengths)
        self._batch_tokens = batch_tokens

    @property
    def max_tokens(self) -> int:
        """The longest row length."""
        return max(self._row_lengths)

    def __call__(self, rows: Sequence[tuple[Tokens, int]]) -> list[float]:
        """Sums in float64; see `Scorer`."""
        assert all(0 < first < len(tokens) for tokens, first in rows)
        sequences = [tokens for tokens, _ in rows]
        scored = sequence_logprobs(sequences, self._target_logprobs, self._row_lengths, self._batch_tokens)
        return [
            float(logprobs[first - 1 :].sum(dtype=np.float64))
            for logprobs, (_, first) in zip(scored, rows, strict=True)
        ]
