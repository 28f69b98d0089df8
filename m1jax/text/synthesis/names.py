"""When two names mean one thing, and whether a text holds a name: by words, without case, punctuation and plurals."""

from collections.abc import Iterable, Iterator
from typing import Any

from m1jax.text.overlap import normalise

_END = ""
"""The key of a node that ends a name; no word is empty."""
_SHORTEST_PLURAL = 4


def words(text: str) -> tuple[str, ...]:
    """The words of a text as names are compared: see `overlap.normalise`; a plural s is dropped."""
    return tuple(
        word[:-1] if len(word) >= _SHORTEST_PLURAL and word.endswith("s") and not word.endswith("ss") else word
        for word in normalise(text)
    )


def same_words(text: str) -> str:
    """Equal for names of the same words in any order: "diabetes mellitus, type 2" and "type 2 diabetes mellitus"."""
    return " ".join(sorted(words(text)))


class NameIndex:
    """Names with an owner each; finds those that a text holds as whole words one after the other."""

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        """Takes (name, owner) pairs; one name may have several owners."""
        self._root: dict[str, Any] = {}
        for name, owner in names:
            node = self._root
            for word in words(name):
                node = node.setdefault(word, {})
            if node is not self._root:
                node.setdefault(_END, {})[owner] = None

    def owners(self, text: str) -> Iterator[str]:
        """Owners of every name in `text`, at every place, names inside of longer names too."""
        found = words(text)
        for start in range(len(found)):
            for _, owners in self._at(found, start):
                yield from owners

    def longest(self, text: str) -> Iterator[str]:
        """Owners of the names in `text`, the longest at each place, none inside of another."""
        found, start = words(text), 0
        while start < len(found):
            *_, (end, owners) = [(start + 1, {}), *self._at(found, start)]
            yield from owners
            start = end

    def holds(self, text: str) -> bool:
        """Whether `text` holds any of the names."""
        return next(self.owners(text), None) is not None

    def _at(self, found: tuple[str, ...], start: int) -> Iterator[tuple[int, dict[str, None]]]:
        """(end, owners) of each name that begins at `start`, shortest first."""
        node = self._root
        for end in range(start, len(found)):
            following = node.get(found[end])
            if following is None:
                return
            node = following
            if _END in node:
                yield end + 1, node[_END]
