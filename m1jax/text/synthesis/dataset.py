"""A folder of questions: conversations and preferences to train on, test questions about held-out entities."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m1jax import artefact
from m1jax.errors import UserError
from m1jax.text.overlap import normalise
from m1jax.text.synthesis import order
from m1jax.text.synthesis.graph import Entity, Graph
from m1jax.text.synthesis.items import Item, Maker
from m1jax.text.synthesis.ontologies import ONTOLOGIES, Ontology
from m1jax.text.synthesis.split import split
from m1jax.text.synthesis.teacher import Lesson, Teacher, lessons
from m1jax.text.synthesis.templates import LESSONS, Template

TRAIN, PREFERENCES, TEST, MANIFEST = "train", "preferences", "test/questions.jsonl", "manifest.json"
_ONTOLOGY = {ontology.name: ontology for ontology in ONTOLOGIES}
_VERBATIM = (
    "quoted verbatim with this citation, whole or not at all; no mentions are extracted from their text, and no "
    "teacher rewords it: the licence asks that nothing is altered"
)
_CONSEQUENCES = {
    "CC-BY": "quoted whole; whoever passes them on cites the source as here",
    "GPL": "quoted whole; what is made of them is passed on under the same licence only",
}
"""What follows from a licence, by how its name begins."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is made: see SynthesisConfig."""

    items_per_kind: int
    test_items_per_kind: int
    test_share: float
    seed: int
    kinds: tuple[str, ...] = ()
    """Kinds that are made; empty: all."""
    lessons: int = 0
    """Conversations that a teacher writes, at most."""
    teacher: str = ""
    """The teacher's name."""
    absent: tuple[str, ...] = ()
    """Graphs that were wanted and could not be fetched, for the manifest."""


def write(
    folder: Path, graph: Graph, templates: Sequence[Template], settings: Settings, teacher: Teacher | None = None
) -> dict[str, Any]:
    """Writes train/ and preferences/<kind>.jsonl, test/questions.jsonl and manifest.json; returns the manifest.

    The bytes depend on the arguments alone, and on what the teacher says where there is one. Raises UserError where
    nothing can be asked.
    """
    parts = split(graph, settings.test_share, settings.seed)
    maker = Maker(graph, parts, settings.seed)
    train: list[Item] = []
    test: list[Item] = []
    wanted = [template for template in templates if not settings.kinds or template.kind in settings.kinds]
    for kind in dict.fromkeys(template.kind for template in wanted):
        chosen = [template for template in wanted if template.kind == kind]
        train += maker.items(chosen, settings.items_per_kind, held=False)
        test += maker.items(chosen, settings.test_items_per_kind, held=True)
    if not train:
        raise UserError(
            f"no template finds anything to ask about in {', '.join(graph.of_source)}: choose other sources or kinds "
            f"with config keys synthesis.sources and synthesis.kinds."
        )
    (folder / TRAIN).mkdir()
    (folder / PREFERENCES).mkdir()
    for kind, items in _by_kind(train).items():
        _lines(folder / TRAIN / f"{kind}.jsonl", (conversation(item, settings.seed) for item in items))
        if pairs := [pair for item in items if (pair := preference(item, settings.seed))]:
            _lines(folder / PREFERENCES / f"{kind}.jsonl", pairs)
    taught, unusable = lessons(graph, parts, teacher, settings.lessons, settings.seed) if teacher else ([], Counter())
    if teacher:
        _lines(folder / TRAIN / f"{LESSONS}.jsonl", (_taught(lesson, settings.teacher) for lesson in taught))
    (folder / TEST).parent.mkdir()
    _lines(folder / TEST, map(question, test))
    used = {item.template.id for item in train}
    manifest = {
        "settings": {name: value for name, value in dataclasses.asdict(settings).items() if name != "absent"},
        "absent": settings.absent,
        "templates": artefact.key([dataclasses.asdict(template) for template in templates]),
        "entities": _entities(graph, parts.held),
        "train": _counts(train),
        "unused_templates": [template.id for template in wanted if template.id not in used],
        "lessons": {"items": len(taught), "left_out": dict(sorted(unusable.items()))},
        "test": _counts(test),
        "baselines": {kind: _baselines(items) for kind, items in _by_kind(test).items()},
        "distractors": {
            kind: Counter(ring for item in items for ring in item.rings) for kind, items in _by_kind(test).items()
        },
        "left_out": {kind: dict(sorted(reasons.items())) for kind, reasons in maker.skipped.items()},
        "licences": _licences(graph),
        "fingerprint": artefact.key([artefact.checksum(path) for path in _files(folder)]),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def conversation(item: Item, seed: int) -> dict[str, Any]:
    """An item as a record that `m1 sft` reads.

    A third of the questions with choices have letters; others list them as the chat form of `m1 eval` does, and half of
    the yes-or-no questions do not list them at all.
    """
    asked, reply = item.question, item.reply
    form = order.number(seed, item.id, "form")
    if item.template.form == "choice" and form % 3 == 0:
        asked += "".join(f"\n{chr(65 + i)}. {choice}" for i, choice in enumerate(item.choices))
        reply = f"{chr(65 + item.answer)}. {reply}"
    elif item.template.form == "choice" or (item.template.form == "yes_no" and form % 2):
        asked += "".join(f"\n- {choice}" for choice in item.choices)
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    return {**_origin(item), "template": item.template.id, "messages": messages}


def preference(item: Item, seed: int) -> dict[str, Any] | None:
    """An item with choices as a record that `m1 prefer` reads; None where its answer does not name its choice.

    The right answer was preferred to the same sentence with another choice in it, so that only knowledge tells them
    apart.
    """
    if len(item.choices) < 2 or item.choices[item.answer] not in item.reply:
        return None
    record = conversation(item, seed)
    asked, reply = record.pop("messages")
    others = [i for i in range(len(item.choices)) if i != item.answer]
    wrong = others[order.number(seed, item.id, "rejected") % len(others)]
    rejected = item.reply.replace(item.choices[item.answer], item.choices[wrong])
    if reply["content"] != item.reply:  # with letters
        rejected = f"{chr(65 + wrong)}. {rejected}"
    return {**record, "messages": [asked], "chosen": reply["content"], "rejected": rejected}


def question(item: Item) -> dict[str, Any]:
    """An item as a test question."""
    asked = {"question": item.question, "choices": list(item.choices), "answer": item.answer}
    return {**_origin(item), **asked, "template": item.template.id}


def _taught(lesson: Lesson, teacher: str) -> dict[str, Any]:
    """A lesson as a record that `m1 sft` reads."""
    messages = [{"role": "user", "content": lesson.question}, {"role": "assistant", "content": lesson.answer}]
    about = _about(f"{LESSONS}/{lesson.entity.id}", LESSONS, lesson.entity, "en")
    return {**about, "template": LESSONS, "teacher": teacher, "messages": messages}


def _origin(item: Item) -> dict[str, Any]:
    return _about(item.id, item.template.kind, item.entity, item.template.language)


def _about(identifier: str, kind: str, entity: Entity, language: str) -> dict[str, Any]:
    licence = _ONTOLOGY[entity.source].source.licence
    about = {"id": identifier, "kind": kind, "entity": entity.id, "source": entity.source}
    return {**about, "licence": licence, "language": language}


def _lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _by_kind(items: Iterable[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.template.kind, []).append(item)
    return found


def _counts(items: Sequence[Item]) -> dict[str, Any]:
    return {
        "items": len(items),
        "characters": sum(map(len, (text for item in items for text in item.texts))),
        "kinds": Counter(item.template.kind for item in items),
        "sources": Counter(item.entity.source for item in items),
        "languages": Counter(item.template.language for item in items),
    }


def _entities(graph: Graph, held: frozenset[str]) -> dict[str, dict[str, int]]:
    return {
        source: {"all": len(names), "held_out": len(held.intersection(names))}
        for source, names in graph.of_source.items()
    }


def _baselines(items: Sequence[Item]) -> dict[str, float]:
    """Accuracies that need no knowledge: what chance, a place, a length and shared words come to."""

    def share(pick: Any) -> float:
        return round(sum(pick(item) == item.answer for item in items) / len(items), 4)

    return {
        "items": len(items),
        "chance": round(sum(1 / len(item.choices) for item in items) / len(items), 4),
        "always_first": share(lambda item: 0),
        "always_longest": share(lambda item: _best(item, len)),
        "always_shortest": share(lambda item: _best(item, lambda choice: -len(choice))),
        "most_shared_words": share(_most_shared),
    }


def _most_shared(item: Item) -> int:
    """The choice of which the greatest share of words is in the question."""
    asked = set(normalise(item.question))

    def shared(choice: str) -> float:
        found = normalise(choice)
        return sum(word in asked for word in found) / max(1, len(found))

    return _best(item, shared)


def _best(item: Item, score: Any) -> int:
    """The index of the choice of the highest score, the first of equals."""
    return max(range(len(item.choices)), key=lambda index: score(item.choices[index]))


def _licences(graph: Graph) -> dict[str, dict[str, str]]:
    def of(ontology: Ontology) -> dict[str, str]:
        source = ontology.source
        by_licence = (use for begins, use in _CONSEQUENCES.items() if source.licence.startswith(begins))
        consequence = _VERBATIM if ontology.verbatim else next(by_licence, "quoted whole")
        about = {"licence": source.licence, "citation": source.citation, "use": consequence}
        return {**about, "not_read": ontology.left_out}

    return {name: of(_ONTOLOGY[name]) for name in graph.of_source}
