"""Overlap of training text with evaluation items: shared runs of 13 words.

A word is what Unicode calls letters and digits after NFKC and case folding; every Han character is one word, since
Chinese is written without spaces. Thirteen words is the length that Brown et al., "Language Models are Few-Shot
Learners" (2020), appendix C, used for the same purpose.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SHORTEST_ITEM = 8

_HAN = "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORD = re.compile(f"[{_HAN}]|[^\\W_{_HAN}]+")
# An odd multiplier, so that no word of a run loses bits; the run's hash is a polynomial in it, modulo 2**64.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_TABLE_BITS = 22
_MOST_CACHED_WORDS = 1_000_000


def normalise(text: str) -> list[str]:
    """The words of a text: NFKC, case folded, punctuation and underscores dropped, each Han character one word."""
    if text.isascii():
        return _WORD.findall(text.lower())
    # Folding may undo normal form (and the other way round), hence NFKC on both sides, as Unicode's own mapping does.
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(unicodedata.normalize("NFKC", folded))


class _WordHashes(dict[str, int]):
    """Word → 64 bits of its BLAKE2b hash, the same in every process, remembered up to a number of words."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_CACHED_WORDS:
            self.clear()
        value = int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
        self[word] = value
        return value


class NgramIndex:
    """The runs of `n` words of evaluation items, as 64-bit hashes; answers how many of them a text holds.

    An item of fewer than `n` words counts as its whole word sequence if it has at least 8 words (SHORTEST_ITEM);
    shorter ones are ordinary phrases and are left out. Two runs are taken for equal when their 64-bit hashes are.
    Not safe for several threads at once.
    """

    def __init__(self, texts: Iterable[str], n: int = 13) -> None:
        assert n >= SHORTEST_ITEM, n
        self._n = n
        self._word_hashes = _WordHashes()
        found: dict[int, list[Hashes]] = {length: [] for length in range(SHORTEST_ITEM, n + 1)}
        for text in texts:
            words = normalise(text)
            length = min(len(words), n)
            if length >= SHORTEST_ITEM:
                found[length].append(self._runs(self._hash_words(words), length))
        self._runs_by_length = {length: np.unique(np.concatenate(hashes)) for length, hashes in found.items() if hashes}
        # A bitmap of the hashes' leading bits sends most runs away before the binary search.
        self._table = np.zeros(1 << _TABLE_BITS, dtype=bool)
        for hashes in self._runs_by_length.values():
            self._table[_leading(hashes)] = True

    def __len__(self) -> int:
        """The number of distinct runs held."""
        return sum(len(hashes) for hashes in self._runs_by_length.values())

    def hits(self, text: str) -> int:
        """How many runs of words in `text` (by position, all lengths together) are runs of an evaluation item."""
        return int(self.hits_batch([text])[0])

    def hits_batch(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """`hits` of each of N texts, int64 (N,); faster than one by one, since short texts share the array work."""
        words = [normalise(text) for text in texts]
        counts = np.array([len(text_words) for text_words in words], dtype=np.int64)
        hashes = self._hash_words([word for text_words in words for word in text_words])
        ends = np.cumsum(counts)
        text_of_word = np.repeat(np.arange(len(texts)), counts)
        hits = np.zeros(len(texts), dtype=np.int64)
        for length, wanted in self._runs_by_length.items():
            runs = self._runs(hashes, length)
            starts = np.flatnonzero(self._table[_leading(runs)])
            # A run must not reach from one text into the next.
            starts = starts[starts + length <= ends[text_of_word[starts]]]
            places = np.minimum(np.searchsorted(wanted, runs[starts]), len(wanted) - 1)
            np.add.at(hits, text_of_word[starts[wanted[places] == runs[starts]]], 1)
        return hits

    def _hash_words(self, words: list[str]) -> Hashes:
        known = self._word_hashes
        return np.array([known[word] for word in words], dtype=np.uint64)

    def _runs(self, hashes: Hashes, length: int) -> Hashes:
        """The hash of every run of `length` words, (max(0, N - length + 1),)."""
        count = max(0, len(hashes) - length + 1)
        runs = hashes[:count].copy()
        for offset in range(1, length):
            runs *= _MULTIPLIER
            runs += hashes[offset : offset + count]
        return runs


def _leading(hashes: Hashes) -> NDArray[np.intp]:
    return (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.intp)
