"""Which entities are held out: whole families, so that the neighbours of a held-out entity are held out too."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from m1jax.text.synthesis import order
from m1jax.text.synthesis.graph import Graph
from m1jax.text.synthesis.names import NameIndex

SMALLEST = 4
LARGEST = 60
"""Entities of a family, with everything that means the same or is below."""
MOST_MENTIONS = 20
"""A name that more texts of other entities hold would cost too many training items."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Ids that are held out, and an index of all their names, codes and ids."""

    held: frozenset[str]
    names: NameIndex


def split(graph: Graph, share: float, seed: int) -> Split:
    """Holds out about `share` of each source's entities, family by family.

    A family is all that is below one entity (or the entity itself, in a source without a hierarchy). With each of its
    entities, everything of the same concept is held out, in any source, and everything below that.
    """
    candidates = {source: _families(graph, source, share, seed) for source in graph.of_source}
    rare = _rare(graph, list(dict.fromkeys(itertools.chain.from_iterable(candidates.values()))))
    held: set[str] = set()
    for source, families in candidates.items():
        names = frozenset(graph.of_source[source])
        count = len(held & names)
        for family in families:
            if count < share * len(names) and family in rare:
                count += len((family - held) & names)
                held |= family
    return Split(frozenset(held), NameIndex(_names(graph, sorted(held))))


def _families(graph: Graph, source: str, share: float, seed: int) -> list[frozenset[str]]:
    """Candidates in a random order, three times as many as are wanted: some have names that are too common."""
    names = graph.of_source[source]
    flat = not any(graph.parents(name) for name in names)
    found: list[frozenset[str]] = []
    size = 0
    for top in order.shuffled(names, seed, "families"):
        if size >= 3 * share * len(names):
            break
        family = _closed(graph, [top] if flat else graph.below(top))
        here = len(family.intersection(names))
        if (1 if flat else SMALLEST) <= here <= max(SMALLEST, share * len(names)):
            size += here
            found.append(family)
    return found


def _closed(graph: Graph, start: Iterable[str]) -> frozenset[str]:
    """The entities with all that means the same or is below; empty where these are more than LARGEST."""
    found: set[str] = set()
    open_ = list(start)
    while open_:
        name = open_.pop()
        if name not in found:
            found.add(name)
            if len(found) > LARGEST:
                return frozenset()
            open_ += [*graph.together(name), *graph.children.get(name, ())]
    return frozenset(found)


def _rare(graph: Graph, families: Sequence[frozenset[str]]) -> set[frozenset[str]]:
    """Those of whose names none is in more than MOST_MENTIONS texts of entities outside of the family."""
    everybody = sorted(set().union(*families))
    index = NameIndex(_names(graph, everybody))
    mentions = dict.fromkeys(everybody, 0)
    family_of: dict[str, set[int]] = {}
    for number, family in enumerate(families):
        for name in family:
            family_of.setdefault(name, set()).add(number)
    for entity in graph.entities.values():
        own = family_of.get(entity.id, set())
        for owner in set(index.owners(" . ".join([*entity.known_as, entity.definition]))):
            if not own & family_of[owner]:
                mentions[owner] += 1
    return {family for family in families if all(mentions[name] <= MOST_MENTIONS for name in family)}


def _names(graph: Graph, ids: Iterable[str]) -> Iterable[tuple[str, str]]:
    """(name, id) for each name, code and id."""
    for name in ids:
        entity = graph.entities[name]
        for text in (*entity.known_as, entity.code, entity.id):
            if text:
                yield text, name
