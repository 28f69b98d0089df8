"""The numbers that documents carry by name, gathered over a source, and the pairs that one of them makes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from m1jax.errors import UserError
from m1jax.rows.record import Array
from m1jax.rows.spans import Ints
from m1jax.text.documents import PAIR, Document


class Columns:
    """Gathers the columns of a source's documents, some of them at a time."""

    def __init__(self) -> None:
        self._documents = 0
        self._values: dict[str, list[npt.NDArray[np.float64]]] = {}
        self._fractions: set[str] = set()
        self._shards: dict[str, int] = {}
        self._shard_of: list[Ints] = []

    def add(self, documents: Sequence[Document]) -> None:
        """Appends the columns of these documents; a number that is missing is NaN until `arrays` refuses it."""
        for name in {name for document in documents for name in document.columns} - self._values.keys():
            self._values[name] = [np.full(self._documents, np.nan)]
        for name, gathered in self._values.items():
            values = [document.columns.get(name, np.nan) for document in documents]
            # Every number of 32 bits, whole or not, is a float64.
            gathered.append(np.array(values, np.float64))
            if any(isinstance(document.columns.get(name), float) for document in documents):
                self._fractions.add(name)
        shards = [self._shards.setdefault(document.shard, len(self._shards)) for document in documents]
        self._shard_of.append(np.array(shards, np.int64))
        self._documents += len(documents)

    def arrays(self, source: str) -> dict[str, Array]:
        """Each column by name, with a value a document: int32 where all of them are whole numbers, else float32.

        `pair` becomes the number of the pair in the source, from 0 in the order in which pairs begin: documents are of
        one pair where shard and value are equal, since values often restart in every shard. Raises UserError where
        some of the source's documents have a column and others do not.
        """
        found: dict[str, Array] = {}
        for name, gathered in sorted(self._values.items()):
            values = np.concatenate(gathered)
            if missing := int(np.isnan(values).sum()):
                raise UserError(
                    f"source {source!r}: {missing} of {len(values)} documents have no column {name!r}: give every "
                    f"document of the source this column, or none."
                )
            found[name] = values.astype(np.float32 if name in self._fractions else np.int32)
        if PAIR in found:
            # A value of 32 bits and the number of its shard make one key of 64.
            key = (np.concatenate(self._shard_of) << 32) + found[PAIR].astype(np.int64)
            found[PAIR] = pairs(key).astype(np.int32)
        return found


def pairs(values: Array) -> Ints:
    """The number of the pair that each document is of, from 0, in the order in which pairs begin."""
    _, first, pair = np.unique(values, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[pair]


def longer_pairs(pair: Ints, lengths: Ints, row_length: int) -> npt.NDArray[np.bool_]:
    """Which documents belong to a pair that has more tokens than a row."""
    return np.bincount(pair, lengths)[pair] > row_length
