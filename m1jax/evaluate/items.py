"""A question with the texts that may answer it, the one definition for every set; and what lines of a file hold."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from m1jax.errors import UserError


@dataclass(frozen=True)
class Item:
    """One question."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""
    kind: str = ""
    """Accuracy is reported by kind."""
    context: str = ""
    """Text that the question is about; the model reads it first."""
    entity: str = ""
    """What the question is about: questions about one entity are not independent of each other."""

    @property
    def text(self) -> str:
        """Question, context and choices without a prompt's wording: what the overlap check compares."""
        return "\n".join(part for part in (self.question, self.context, *self.choices) if part)


class MalformedError(Exception):
    """A line that holds no item; its message says why."""


@dataclass(frozen=True)
class SetAside:
    """A line that is not asked."""

    place: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """What a set of questions holds."""

    items: tuple[Item, ...]
    set_aside: tuple[SetAside, ...]

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """How many lines were set aside for each reason, the most frequent first."""
        return Counter(fault.reason for fault in self.set_aside).most_common()


REPEATED = "a repeated question"
"""The reason for a line that says what an earlier one does: counting it again would feign a narrower interval."""


def parse(line: bytes, make: Callable[[dict[str, Any]], Item]) -> Item:
    """The item that `make` finds in a line's JSON object, checked; raises MalformedError."""
    try:
        record = json.loads(line.decode("utf-8"))
        if not isinstance(record, dict):
            raise MalformedError("not a JSON object")
        item = make(record)
        item.text.encode("utf-8")  # half a surrogate pair, written as an escape, is no text either
    except UnicodeError as error:
        raise MalformedError("not UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise MalformedError("not JSON") from error
    except KeyError as error:
        raise MalformedError(f"no field {error}") from error
    except (TypeError, AttributeError) as error:
        raise MalformedError("a field is not a text") from error
    if not item.question:
        raise MalformedError("an empty question")
    if len(item.choices) < 2:
        raise MalformedError("fewer than two choices")
    if not all(choice.strip() for choice in item.choices):
        raise MalformedError("an empty choice")
    if len(set(item.choices)) < len(item.choices):
        raise MalformedError("two equal choices")
    if not 0 <= item.answer < len(item.choices):
        raise MalformedError("an answer outside of its choices")
    return item


def collect(lines: Iterable[tuple[str, bytes]], make: Callable[[str, dict[str, Any]], Item]) -> Loaded:
    """The items of lines, each with its place; `make` is called with the place and the line's object."""
    items: list[Item] = []
    faults: list[SetAside] = []
    texts: set[str] = set()
    ids: set[str] = set()
    for place, line in lines:
        if not line.strip():
            continue
        try:
            item = parse(line, lambda record, place=place: make(place, record))  # type: ignore[misc]
        except MalformedError as reason:
            faults.append(SetAside(place, str(reason)))
            continue
        if item.text in texts:
            faults.append(SetAside(place, REPEATED))
        elif item.id in ids:
            faults.append(SetAside(place, "the id of an earlier question"))
        else:
            texts.add(item.text)
            ids.add(item.id)
            items.append(item)
    return Loaded(tuple(items), tuple(faults))


def sample(items: Sequence[Item], limit: int | None, seed: int = 0) -> list[Item]:
    """At most `limit` items drawn without replacement, in their own order; the same ones for the same seed."""
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise UserError(f"the limit of evaluation items must be at least 1, got {limit}.")
    chosen = random.Random(seed).sample(range(len(items)), limit)
    return [items[index] for index in sorted(chosen)]


def spread(items: Sequence[Item], count: int, seed: int = 0) -> list[Item]:
    """`count` items drawn without replacement, one of each kind in turn; the same ones for the same seed."""
    drawn = random.Random(seed).sample(list(items), len(items))
    nth: Counter[str] = Counter()
    turns = []
    for item in drawn:
        turns.append(nth[item.kind])
        nth[item.kind] += 1
    order = sorted(range(len(drawn)), key=lambda index: turns[index])
    return [drawn[index] for index in order[:count]]
