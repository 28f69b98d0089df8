"""Chance that is the same on every machine and Python: a number made of a seed and words."""

import hashlib
from collections.abc import Iterable, Sequence


def number(seed: int, *of: object) -> int:
    """63 bits that depend on the seed and on `of` (by `str`) alone."""
    text = "\x1f".join(map(str, (seed, *of)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def shuffled[T](items: Iterable[T], seed: int, *of: object) -> list[T]:
    """The items in an order that depends on the seed, on `of` and on each item's `str`."""
    return sorted(items, key=lambda item: (number(seed, *of, item), str(item)))


def chosen[T](items: Sequence[T], seed: int, *of: object) -> T:
    """One of the items."""
    return items[number(seed, *of) % len(items)]
