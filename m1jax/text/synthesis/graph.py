"""Entities of ontologies and classifications, and what the graph of all of them knows about each."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from m1jax.text.synthesis.names import same_words


@dataclasses.dataclass(frozen=True, slots=True)
class Entity:
    """One term of a source, verbatim; `names` has its name by language, and ids of others are those of one source."""

    id: str
    source: str
    names: Mapping[str, str]
    code: str = ""
    """As people write it: A00.1; empty where the source has no codes beside its ids."""
    definition: str = ""
    synonyms: tuple[str, ...] = ()
    inclusions: tuple[str, ...] = ()
    """Terms that a classification files under this one, which may be narrower."""
    parents: tuple[str, ...] = ()
    phenotypes: tuple[str, ...] = ()

    @property
    def known_as(self) -> tuple[str, ...]:
        """Every name, synonym and inclusion term."""
        return (*self.names.values(), *self.synonyms, *self.inclusions)


class Graph:
    """Entities by id, in a fixed order, with what follows from all of them together.

    Entities of any source that share a name, a synonym (`names.same_words`) or a code are one concept: the concept's
    name is the id of one of them.
    """

    def __init__(self, entities: Iterable[Entity]) -> None:
        """Raises AssertionError where two entities have one id."""
        self.entities: dict[str, Entity] = {}
        self.children: dict[str, list[str]] = {}
        self.of_source: dict[str, list[str]] = {}
        for entity in entities:
            assert entity.id not in self.entities, entity.id
            self.entities[entity.id] = entity
            self.of_source.setdefault(entity.source, []).append(entity.id)
        for entity in self.entities.values():
            for parent in self.parents(entity.id):
                self.children.setdefault(parent, []).append(entity.id)
        marks = {entity.id: {same_words(name) for name in entity.known_as} - {""} for entity in self.entities.values()}
        self._named = Counter((self.entities[name].source, mark) for name, of in marks.items() for mark in of)
        self.concept = _concepts(self.entities.values())
        self.members: dict[str, list[str]] = {}
        for name, concept in self.concept.items():
            self.members.setdefault(concept, []).append(name)
        self._above: dict[str, frozenset[str]] = {}
        self._concepts_above: dict[str, frozenset[str]] = {}
        self._phenotypes: dict[str, frozenset[str]] = {}

    def parents(self, name: str) -> list[str]:
        """Ids directly above that the graph holds."""
        return [parent for parent in self.entities[name].parents if parent in self.entities and parent != name]

    def together(self, name: str) -> list[str]:
        """Ids of the entity's concept, its own among them."""
        return self.members[self.concept[name]]

    def is_shared(self, source: str, text: str) -> bool:
        """Whether several entities of a source have this name, synonym or inclusion term."""
        return self._named[source, same_words(text)] > 1

    def above(self, name: str) -> frozenset[str]:
        """Ids of all ancestors."""
        if name not in self._above:
            # Without recursion, and so that a circle of a damaged source ends too.
            found: set[str] = set()
            open_ = self.parents(name)
            while open_:
                parent = open_.pop()
                if parent not in found:
                    found.add(parent)
                    open_ += self.parents(parent)
            self._above[name] = frozenset(found)
        return self._above[name]

    def below(self, name: str) -> Iterator[str]:
        """Ids of all descendants, each once."""
        found, open_ = {name}, [name]
        while open_:
            for child in self.children.get(open_.pop(), ()):
                if child not in found:
                    found.add(child)
                    open_.append(child)
                    yield child

    def concepts_above(self, name: str) -> frozenset[str]:
        """Concepts of the ancestors of the entity and of those that mean the same."""
        concept = self.concept[name]
        if concept not in self._concepts_above:
            found = {self.concept[above] for member in self.members[concept] for above in self.above(member)}
            self._concepts_above[concept] = frozenset(found)
        return self._concepts_above[concept]

    def related(self, one: str, other: str) -> bool:
        """Whether two entities are one concept, or one is above the other in any source."""
        first, second = self.concept[one], self.concept[other]
        return first == second or first in self.concepts_above(other) or second in self.concepts_above(one)

    def phenotype_concepts(self, name: str) -> frozenset[str]:
        """Concepts of the phenotypes of the entity and of those that mean the same."""
        concept = self.concept[name]
        if concept not in self._phenotypes:
            ids = (other for member in self.members[concept] for other in self.entities[member].phenotypes)
            self._phenotypes[concept] = frozenset(self.concept[other] for other in ids if other in self.entities)
        return self._phenotypes[concept]

    def neighbours(self, name: str, turn: int, most: int) -> Iterator[tuple[str, str]]:
        """(id, ring) of entities of the same source around one, the rings "siblings", "cousins" and "others".

        A ring has at most `most` entities, which `turn` chooses. An entity has the siblings of all that mean the same.
        """
        source = self.entities[name].source
        parents = [parent for member in self.together(name) for parent in self.parents(member)]
        around = (other for above in parents for up in self.parents(above) for other in self._children(up, turn))
        cousins = (child for parent in around for child in self._children(parent, turn))
        siblings = (child for parent in parents for child in self._children(parent, turn))
        near = (("siblings", siblings), ("cousins", cousins), ("others", _rotated(self.of_source[source], turn)))
        seen = set(self.together(name))
        for ring, ids in near:
            for other in itertools.islice(ids, most):
                for member in self.together(other):
                    if member not in seen and self.entities[member].source == source:
                        seen.add(member)
                        yield member, ring

    def _children(self, name: str, turn: int) -> Iterator[str]:
        return _rotated(self.children.get(name, ()), turn)


def _rotated(ids: Sequence[str], turn: int) -> Iterator[str]:
    """All ids, from a place that `turn` decides."""
    start = turn % len(ids) if ids else 0
    return itertools.chain(itertools.islice(ids, start, None), itertools.islice(ids, start))


def _concepts(entities: Iterable[Entity]) -> dict[str, str]:
    """Concept of each id: entities that share a name or a code are joined, and so are those joined with them."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    first: dict[str, str] = {}
    for entity in entities:
        leader[entity.id] = entity.id
        marks = {same_words(name) for name in (*entity.names.values(), *entity.synonyms)} - {""}
        marks |= {f"code {entity.code}"} if entity.code else set()
        for mark in sorted(marks):
            known, new = find(first.setdefault(mark, entity.id)), find(entity.id)
            leader[new] = known
    return {name: find(name) for name in leader}
