"""Questions about entities: what a template makes of an entity, in training or held out."""

import dataclasses
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from m1jax.text.synthesis import order
from m1jax.text.synthesis.choices import Distractors
from m1jax.text.synthesis.graph import Entity, Graph
from m1jax.text.synthesis.names import same_words
from m1jax.text.synthesis.ontologies import VERBATIM
from m1jax.text.synthesis.split import Split
from m1jax.text.synthesis.templates import Template
from m1jax.text.synthesis.values import Value, Values

_FEWEST_PHENOTYPES = 3
_BETWEEN = {"en": "; ", "zh": "；"}


@dataclasses.dataclass(frozen=True)
class Item:
    """One question and its right answer; with choices the answer is also the index of one of them."""

    template: Template
    entity: Entity
    question: str
    reply: str
    """What an assistant says: without choices the answer, else the choice."""
    choices: tuple[str, ...] = ()
    answer: int = -1
    rings: tuple[str, ...] = ()
    """How near the wrong choices are."""

    @property
    def id(self) -> str:
        """Unique among items of one graph."""
        return f"{self.template.id}/{self.entity.id}"

    @property
    def texts(self) -> tuple[str, ...]:
        """What a reader of the item reads, in one piece each: the question with its choices, and the answer."""
        return ("\n".join((self.question, *self.choices)), self.reply)


class SkippedError(Exception):
    """An entity of which a template makes no item; the message is the reason."""


class Maker:
    """Makes items on both sides of a split; `skipped` counts what it left out, by kind and reason."""

    def __init__(self, graph: Graph, split: Split, seed: int) -> None:
        self._graph = graph
        self._split = split
        self._seed = seed
        self._values = Values(graph)
        self._distractors = Distractors(graph, self._values, split.held, seed)
        self._made: Counter[str] = Counter()
        self.skipped: dict[str, Counter[str]] = {}
        self._order = {
            source: sorted(names, key=lambda name: (order.number(seed, graph.concept[name]), name))
            for source, names in graph.of_source.items()
        }

    def items(self, templates: Sequence[Template], most: int, held: bool) -> list[Item]:
        """At most `most` items of templates of one kind, as many of each template and source as there are.

        Entities come in an order of their concepts, so that one concept is asked about in many ways. Of the held-out
        side only test questions; of the other none that holds a name of a held-out entity.
        """
        streams = [
            self._stream(template, source, held)
            for template in templates
            if template.is_test or not held
            for source in self._order
            if asks_about(template, source)
        ]
        found: list[Item] = []
        while streams and len(found) < most:
            for stream in list(streams):
                item = next(stream, None)
                if item is None:
                    streams.remove(stream)
                elif len(found) < most:
                    found.append(item)
        return found

    def _stream(self, template: Template, source: str, held: bool) -> Iterator[Item]:
        skipped = self.skipped.setdefault(template.kind, Counter())
        for name in self._order[source]:
            if (name in self._split.held) != held:
                continue
            try:
                item = self._item(template, self._graph.entities[name], held)
            except SkippedError as reason:
                skipped[str(reason)] += 1
                continue
            self._made[template.id] += 1
            yield item

    def _item(self, template: Template, entity: Entity, held: bool) -> Item:
        given = self._given(template, entity, held)
        asked = [value for value in self._values.asked(entity, template) if held or value.owner not in self._split.held]
        known = {same_words(value.text) for value in given}
        right = [value for value in asked if same_words(value.text) not in known]
        if not right:
            raise SkippedError(f"no {template.asked} that the question does not say")
        item = self._asking(template, entity, given, right)
        if not held and any(self._split.names.holds(text) for text in item.texts):
            raise SkippedError("names a held-out entity")
        return item

    def _given(self, template: Template, entity: Entity, held: bool) -> list[Value]:
        """What the question gives: one value, or several phenotypes."""
        values = [
            value for value in self._values.given(entity, template) if held or value.owner not in self._split.held
        ]
        if not values:
            raise SkippedError(f"no {template.given}")
        if template.given == "phenotype" and len(values) < _FEWEST_PHENOTYPES:
            raise SkippedError("too few phenotypes to know a disease by")
        many = template.count if template.given == "phenotype" else 1
        return order.shuffled(values, self._seed, template.id, entity.id, "given")[:many]

    def _asking(self, template: Template, entity: Entity, given: Sequence[Value], right: Sequence[Value]) -> Item:
        seed = (self._seed, template.id, entity.id)
        text = _BETWEEN[template.language].join(value.text for value in given)
        answer = order.chosen(right, *seed, "right")
        filled = {"given": text, "name": entity.names.get(template.language, ""), "code": entity.code}
        question = order.chosen(template.questions, *seed, "question")
        if template.form == "choice":
            wrong = self._wrong(template, entity, given, answer, template.choices - 1)
            place = self._place(template, template.choices)
            choices = [choice for choice, _ in wrong]
            choices.insert(place, answer.text)
            rings = tuple(ring for _, ring in wrong)
            return Item(template, entity, _fill(question, filled), answer.text, tuple(choices), place, rings)
        if template.form == "yes_no":
            place = self._place(template, 2)
            wrong = self._wrong(template, entity, given, answer, 1) if place else []
            said = wrong[0][0] if place else answer.text
            asked = _fill(question, {**filled, "answer": said})
            rings = tuple(ring for _, ring in wrong)
            return Item(template, entity, asked, template.answers[place], template.answers, place, rings)
        if template.form == "list":
            values = order.shuffled(right, *seed, "list")[: template.count]
            if template.asked == "mention":  # in the order of the text
                values = list(right[: template.count])
            filled["count"] = str(len(values))
            filled["answer"] = _BETWEEN[template.language].join(value.text for value in values)
        else:
            filled["answer"] = answer.text
        reply = order.chosen(template.answers, *seed, "answer")
        return Item(template, entity, _fill(question, filled), _fill(reply, filled))

    def _wrong(
        self, template: Template, entity: Entity, given: Sequence[Value], right: Value, count: int
    ) -> list[tuple[str, str]]:
        found = self._distractors.wrong(template, entity, given, right, count)
        if found is None:
            raise SkippedError("too few wrong answers")
        return order.shuffled(found, self._seed, template.id, entity.id, "wrong")

    def _place(self, template: Template, choices: int) -> int:
        """The index of the right choice: each equally often, in an order that is new for every round of them."""
        number = self._made[template.id]
        rounds = order.shuffled(range(choices), self._seed, template.id, number // choices)
        return rounds[number % choices]


def asks_about(template: Template, source: str) -> bool:
    """Whether a template has questions about the entities of a source.

    What the text of a verbatim source names is not derived from it.
    """
    derived = template.asked == "mention" and source in VERBATIM
    return not derived and (not template.sources or source in template.sources)


def _fill(phrase: str, filled: Mapping[str, str]) -> str:
    return string.Formatter().vformat(phrase, (), filled)
