"""Wrong answers: near neighbours of the right one in the graph, and never true themselves."""

from collections.abc import Iterable, Iterator, Sequence

from m1jax.text.synthesis import order
from m1jax.text.synthesis.graph import Entity, Graph
from m1jax.text.synthesis.names import same_words
from m1jax.text.synthesis.templates import Template
from m1jax.text.synthesis.values import Value, Values, contains

_LOOKED_AT = 200
"""Entities of a ring, at most, that are looked at for one question."""


class Distractors:
    """Finds wrong answers on one side of the split."""

    def __init__(self, graph: Graph, values: Values, held: frozenset[str], seed: int) -> None:
        self._graph = graph
        self._values = values
        self._held = held
        self._seed = seed

    def wrong(
        self, template: Template, entity: Entity, given: Sequence[Value], right: Value, count: int
    ) -> list[tuple[str, str]] | None:
        """`count` (text, ring) of wrong answers to a question about `entity`; None where there are not as many.

        As many of them are longer than the right answer as chance says, where the graph has such: nobody can guess the
        answer by its length.
        """
        longer = order.number(self._seed, template.id, entity.id, "longer") % (count + 1)
        wanted = {True: longer, False: count - longer}
        found: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
        for text, ring in self._candidates(template, entity, given, right):
            # An answer of the same length goes where one is missing.
            is_longer = len(text) > len(right.text) or (
                len(text) == len(right.text) and len(found[False]) >= wanted[False]
            )
            found[is_longer].append((text, ring))
            if all(len(found[side]) >= wanted[side] for side in wanted):
                break
        kept = [*found[True][:longer], *found[False][: count - longer]]
        rest = [*found[True][longer:], *found[False][count - longer :]]
        kept += rest[: count - len(kept)]
        return kept if len(kept) == count else None

    def _candidates(
        self, template: Template, entity: Entity, given: Sequence[Value], right: Value
    ) -> Iterator[tuple[str, str]]:
        """(text, ring) of wrong answers, nearest first, each text once."""
        seen = {same_words(value.text) for value in self._values.asked(entity, template)}
        seen |= {same_words(right.text), *(same_words(value.text) for value in given)}
        side = right.owner in self._held
        turn = order.number(self._seed, template.id, entity.id)
        for name, ring in self._graph.neighbours(right.owner, turn, _LOOKED_AT):
            if (name in self._held) != side or not self._is_wrong(template, entity, given, name):
                continue
            other = self._graph.entities[name]
            if right.owner == entity.id:
                texts = [value.text for value in self._values.asked(other, template)]
            else:
                texts = [other.names[template.language]] if template.language in other.names else []
            fresh = [text for text in texts if same_words(text) not in seen]
            if fresh:
                text = order.chosen(fresh, self._seed, template.id, entity.id, name)
                seen.add(same_words(text))
                yield text, ring

    def _is_wrong(self, template: Template, entity: Entity, given: Sequence[Value], name: str) -> bool:
        """Whether naming the entity `name` (or what it has) answers the question falsely."""
        graph = self._graph
        if template.asked == "mention":
            known = graph.entities[name].known_as
            return not any(contains(entity.definition, other) for other in known)
        if template.asked == "phenotype":
            return not _agree(graph, [name], graph.phenotype_concepts(entity.id))
        if graph.related(entity.id, name):
            return False
        if template.given == "parent":
            return all(graph.concept[value.owner] not in graph.concepts_above(name) for value in given)
        if template.given == "phenotype":
            shared = _agree(graph, [value.owner for value in given], graph.phenotype_concepts(name))
            return 2 * len(shared) <= len(given)
        return True


def _agree(graph: Graph, ids: Iterable[str], concepts: Iterable[str]) -> list[str]:
    """Those ids that are one of the concepts, or above or below one."""
    known = list(concepts)
    above = {higher for concept in known for higher in graph.concepts_above(concept)}.union(known)
    return [name for name in ids if graph.concept[name] in above or not graph.concepts_above(name).isdisjoint(known)]
