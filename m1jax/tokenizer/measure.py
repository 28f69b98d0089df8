"""How well a tokenizer fits a text: tokens for its bytes and characters, terms that are one token, ids that occur."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

EncodeArrays = Callable[[Sequence[str]], Sequence[NDArray[np.uint32]]]
"""Ids of each text, nothing added."""

_BATCH = 512
_WORD = re.compile(r"[^\W\d_]{4,}")
_HAN = re.compile("[\u3400-\u9fff]")


@dataclasses.dataclass(frozen=True)
class Compression:
    """Sizes of a text: UTF-8 bytes, characters, tokens."""

    bytes: int
    characters: int
    tokens: int

    def __add__(self, other: "Compression") -> "Compression":
        return Compression(self.bytes + other.bytes, self.characters + other.characters, self.tokens + other.tokens)

    @property
    def bytes_per_token(self) -> float:
        """Higher is better."""
        return self.bytes / max(self.tokens, 1)

    @property
    def tokens_per_character(self) -> float:
        """Lower is better."""
        return self.tokens / max(self.characters, 1)


@dataclasses.dataclass(frozen=True)
class Terms:
    """How a list of terms is written: `units` are their distinct words, or whole terms where they are Chinese."""

    terms: int
    units: int
    single: int
    """Units that are one token."""
    tokens: int
    """Tokens of all terms."""

    @property
    def single_token_share(self) -> float:
        """Share of the units that are one token."""
        return self.single / max(self.units, 1)

    @property
    def tokens_per_term(self) -> float:
        """Mean over the terms."""
        return self.tokens / max(self.terms, 1)


def compression(encode: EncodeArrays, texts: Iterable[str]) -> Compression:
    """Sizes of all texts together."""
    total = Compression(0, 0, 0)
    for batch in _batches(texts):
        tokens = sum(len(ids) for ids in encode(batch))
        total += Compression(sum(len(text.encode()) for text in batch), sum(map(len, batch)), tokens)
    return total


def term_counts(encode: EncodeArrays, terms: Iterable[str]) -> Terms:
    """How terms stand in running text: English behind a space, its words of four letters and more; Chinese whole."""
    distinct = list(dict.fromkeys(terms))
    running = [term if _HAN.match(term) else f" {term}" for term in distinct]
    words = (word for term in distinct if not _HAN.search(term) for word in _WORD.findall(term))
    units = list(dict.fromkeys([*(term for term in distinct if _HAN.search(term)), *(f" {word}" for word in words)]))
    single = sum(len(ids) == 1 for ids in encode(units))
    return Terms(len(distinct), len(units), single, sum(len(ids) for ids in encode(running)))


def used_ids(encode: EncodeArrays, texts: Iterable[str]) -> int:
    """How many different ids occur in the texts."""
    used: NDArray[np.uint32] = np.empty(0, np.uint32)
    for batch in _batches(texts):
        used = np.unique(np.concatenate([used, *encode(batch)]))
    return len(used)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(texts)
    while batch := list(itertools.islice(stream, _BATCH)):
        yield batch
