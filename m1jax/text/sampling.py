"""An even sample of a corpus: so many bytes of it, over all of its sources."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m1jax.text.documents import read_documents

Sources = Mapping[str, Mapping[str, Any]]
"""Domain and bytes of each source, as the corpus's stamp records them."""


def taken_bytes(sources: Sources, budget: int) -> dict[str, int]:
    """Bytes of text to take of each source: all of the small ones, equal parts of the others, `budget` in all."""
    left, taken = budget, {}
    for rank, (name, source) in enumerate(sorted(sources.items(), key=lambda item: (item[1]["bytes"], item[0]))):
        taken[name] = min(source["bytes"], left // (len(sources) - rank))
        left -= taken[name]
    return taken


def texts(corpus: Path, sources: Sources, domains: Sequence[str], budget: int) -> Iterator[str]:
    """Texts of the sources of these domains, evenly over each; `budget` bytes of all domains together."""
    wanted = taken_bytes(sources, budget)
    seen = dict.fromkeys(sources, 0)
    taken = dict.fromkeys(sources, 0)
    for document in read_documents(corpus / "documents"):
        name = document.source
        if name not in sources or sources[name]["domain"] not in domains:
            continue
        size = len(document.text.encode())
        seen[name] += size
        # Taken as soon as the source's share of what was seen allows it.
        if taken[name] * sources[name]["bytes"] < seen[name] * wanted[name]:
            taken[name] += size
            yield document.text
