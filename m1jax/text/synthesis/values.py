"""What a template gives of an entity and asks for: texts, each with the entity that it is a name of."""

import dataclasses

from m1jax.text.synthesis.graph import Entity, Graph
from m1jax.text.synthesis.names import NameIndex, words
from m1jax.text.synthesis.templates import NAMES, OWN, Template

LONGEST_GIVEN = 600
LONGEST_CHOICE = 240
"""Characters of a text in a question, and of one that is asked for; longer ones are left out, never cut."""
_SHORTEST_MENTION = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A text, and the id of the entity that it belongs to."""

    text: str
    owner: str


class Values:
    """Looks up slots (see templates.OWN and templates.OTHERS) in a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._indices: dict[str, NameIndex] = {}

    def given(self, entity: Entity, template: Template) -> list[Value]:
        """What the question may give: where one answer is right, no name that several entities of the source have."""
        texts = [value for value in self._slot(entity, template.given, template) if len(value.text) <= LONGEST_GIVEN]
        if template.asked in OWN and template.given in NAMES:
            return [value for value in texts if not self._graph.is_shared(entity.source, value.text)]
        return texts

    def asked(self, entity: Entity, template: Template) -> list[Value]:
        """Right answers."""
        return [value for value in self._slot(entity, template.asked, template) if len(value.text) <= LONGEST_CHOICE]

    def _slot(self, entity: Entity, slot: str, template: Template) -> list[Value]:
        if slot in ("parent", "phenotype"):
            ids = self._graph.parents(entity.id) if slot == "parent" else entity.phenotypes
            return [value for other in ids for value in self._named(other, template.language)]
        if slot == "mention":
            found = dict.fromkeys(self._index(template.of).longest(entity.definition))
            return [value for other in found for value in self._named(other, template.language)]
        texts = own(entity, slot, template.language)
        # Where the definition names its own term, what is asked for is said.
        blind = template.is_test or template.given == "definition"
        if slot == "definition" and template.asked != "mention" and blind:
            texts = [text for text in texts if not any(contains(text, name) for name in entity.known_as)]
        return [Value(text, entity.id) for text in texts]

    def _named(self, name: str, language: str) -> list[Value]:
        other = self._graph.entities.get(name)
        return [Value(other.names[language], name)] if other and language in other.names else []

    def _index(self, source: str) -> NameIndex:
        """Names of the entities of a source, found by the first text that asks for them."""
        if source not in self._indices:
            entities = [self._graph.entities[name] for name in self._graph.of_source.get(source, ())]
            names = ((entity.names.get("en", ""), entity.id) for entity in entities)
            self._indices[source] = NameIndex(pair for pair in names if len(pair[0]) >= _SHORTEST_MENTION)
        return self._indices[source]


def own(entity: Entity, slot: str, language: str) -> list[str]:
    """Texts of an entity itself."""
    if slot.startswith("name"):
        _, _, named = slot.partition(":")
        return [entity.names[named or language]] if (named or language) in entity.names else []
    if slot == "synonym":
        return list(entity.synonyms)
    if slot == "variant":
        return [*entity.synonyms, *entity.inclusions]
    return [text for text in (entity.code if slot == "code" else entity.definition,) if text]


def contains(text: str, name: str) -> bool:
    """Whether a text holds a name as whole words."""
    sought = words(name)
    return bool(sought) and f" {' '.join(sought)} " in f" {' '.join(words(text))} "
