"""Longer conversations by a teacher model: text, knowledge points, question, long answer, check against the text.

The road of the Baichuan-M1 report (arXiv 2502.12671) for medical knowledge. A teacher is a function from messages and
settings to a text (m1jax.client); it reads no text of a verbatim source and none that names a held-out entity.
"""

import concurrent.futures
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from m1jax.text.synthesis import order
from m1jax.text.synthesis.graph import Entity, Graph
from m1jax.text.synthesis.ontologies import VERBATIM
from m1jax.text.synthesis.split import Split

SHORTEST = 60
"""Characters of a definition that is worth a lesson."""
AT_ONCE = 8
"""Requests on their way."""
POINTS = (
    "List the medical facts that the following text states, one in each line, at most five. State only what the text "
    "states.\n\n{text}"
)
QUESTION = (
    "Write one question that a medical student could ask, which the following fact answers. Name what it is about; do "
    "not mention a text. Reply with the question alone.\n\n{point}"
)
ANSWER = "Answer the question of a medical student thoroughly and correctly, in one to three paragraphs.\n\n{question}"
CHECK = (
    "Reference:\n{text}\n\nQuestion: {question}\n\nAnswer:\n{answer}\n\nDoes the answer agree with the reference, and "
    "contradict it nowhere? Reply with the one word Yes or No."
)
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s*")

Teacher = Callable[..., str]


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A question and a long answer about an entity."""

    entity: Entity
    question: str
    answer: str


class _SkippedError(Exception):
    """A text of which no lesson is made; the message is the reason."""


def lessons(graph: Graph, split: Split, teacher: Teacher, most: int, seed: int) -> tuple[list[Lesson], Counter[str]]:
    """At most `most` lessons about different entities, and how many were left out for which reason.

    The same answers of the teacher give the same lessons. Raises what the teacher raises.
    """
    found: list[Lesson] = []
    skipped: Counter[str] = Counter()
    texts = _texts(graph, split, seed)
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        while len(found) < most and (some := _take(texts, min(AT_ONCE, most - len(found)))):
            for made in pool.map(lambda pair: _attempt(teacher, split, *pair), some):
                if isinstance(made, Lesson):
                    found.append(made)
                else:
                    skipped[made] += 1
    return found, skipped


def article(entity: Entity) -> str:
    """What the teacher reads of an entity."""
    others = f"\nAlso called: {'; '.join(entity.synonyms)}." if entity.synonyms else ""
    return f"{entity.names['en']}\n{entity.definition}{others}"


def _texts(graph: Graph, split: Split, seed: int) -> Iterator[tuple[Entity, str]]:
    for name in order.shuffled(graph.entities, seed, "lessons"):
        entity = graph.entities[name]
        allowed = entity.source not in VERBATIM and name not in split.held
        if allowed and "en" in entity.names and len(entity.definition) >= SHORTEST:
            text = article(entity)
            if not split.names.holds(text):
                yield entity, text


def _take(texts: Iterator[tuple[Entity, str]], count: int) -> list[tuple[Entity, str]]:
    return [pair for pair, _ in zip(texts, range(count), strict=False)]


def _attempt(teacher: Teacher, split: Split, entity: Entity, text: str) -> Lesson | str:
    try:
        return _lesson(teacher, split, entity, text)
    except _SkippedError as reason:
        return str(reason)


def _lesson(teacher: Teacher, split: Split, entity: Entity, text: str) -> Lesson:
    said = _ask(teacher, POINTS.format(text=text), 400)
    points = [_BULLET.sub("", line).strip() for line in said.splitlines()]
    points = [point for point in points if point]
    if not points:
        raise _SkippedError("no knowledge points")
    question = _ask(teacher, QUESTION.format(point=points[0]), 100)
    if "\n" in question or not question.endswith(("?", "？")):
        raise _SkippedError("no question")
    answer = _ask(teacher, ANSWER.format(question=question), 800)
    if not answer:
        raise _SkippedError("no answer")
    if any(split.names.holds(written) for written in (question, answer)):
        raise _SkippedError("names a held-out entity")
    verdict = _ask(teacher, CHECK.format(text=text, question=question, answer=answer), 5)
    agreed = re.match(r"\W*(yes|no)\b", verdict, re.IGNORECASE)
    if not agreed:
        raise _SkippedError("no verdict")
    if agreed[1].lower() == "no":
        raise _SkippedError("the answer does not agree with the text")
    return Lesson(entity, question, answer)


def _ask(teacher: Teacher, prompt: str, longest: int) -> str:
    settings: dict[str, Any] = {"temperature": 0.0, "max_tokens": longest}
    return teacher([{"role": "user", "content": prompt}], **settings).strip()
