"""Preferences from a folder of the user's own records: a question with an answer that was preferred to another.

    chosen, rejected                    the two answers: texts, messages, or whole lists of messages
    prompt, question, instruction       the question, a text or a list of messages; `input` and `history` beside
                                        `instruction`, as in conversations
    messages, conversations             the messages before the answers
    system                              beside any of them, a text

Lists of messages that hold the question themselves need no other field. Only the last answer may differ, and only it is
learned.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from m1jax.errors import UserError
from m1jax.text import record_messages as messages_of
from m1jax.text.conversations import Conversation, UnusableError, checked, role_of
from m1jax.text.documents import Rejected
from m1jax.text.folder import read_records
from m1jax.text.records import Place, Reading, Record
from m1jax.tokenizer.chat.formats import ANSWERS

_QUESTIONS = ("prompt", "question", "instruction")


@dataclasses.dataclass(frozen=True, slots=True)
class Preference:
    """Two conversations that differ in the last answer, which is the only one that is learned."""

    chosen: Conversation
    rejected: Conversation


@dataclasses.dataclass(frozen=True)
class PreferenceReading(Reading[Preference]):
    """Records as preferences."""

    _reasons: messages_of.Reasons = dataclasses.field(default_factory=messages_of.Reasons, compare=False, repr=False)

    @functools.cached_property
    def sides(self) -> tuple[str, str]:
        """Names of the fields of the two answers."""
        return self.fields.get("chosen", "chosen"), self.fields.get("rejected", "rejected")

    @functools.cached_property
    def lists(self) -> tuple[str, ...]:
        """Fields that may hold the messages before the answers."""
        return (self.fields["messages"],) if "messages" in self.fields else messages_of.LISTS

    @functools.cached_property
    def questions(self) -> tuple[str, ...]:
        """Fields that may hold the question."""
        return (self.fields["question"],) if "question" in self.fields else _QUESTIONS

    @property
    def names(self) -> Iterable[str]:
        """See Reading."""
        beside = [name for question in self.questions for name in messages_of.BESIDE.get(question, ())]
        system = self.fields.get("system", "system")
        return [*self.sides, *self.lists, *self.questions, *beside, system, *self.others.values()]

    def check_columns(self, schema: pa.Schema, path: Path) -> None:
        """See Reading."""
        if missing := [name for name in self.sides if name not in schema.names]:
            raise UserError(
                f"{path} has no column {missing[0]!r} (its columns: {', '.join(schema.names) or 'none'}): name the two "
                f"answers with config keys data.fields.chosen and data.fields.rejected."
            )

    def item(self, place: Place, record: Record) -> Preference | Rejected:
        """See Reading."""
        try:
            chosen, rejected = (self._side(record, name) for name in self.sides)
            if chosen == rejected:
                raise UnusableError("chosen and rejected are equal")
            if chosen[:-1] != rejected[:-1]:
                raise UnusableError("chosen and rejected answer different questions")
            messages_of.check_text([*chosen, rejected[-1]], record)
        except UnusableError as error:
            return place.rejected(self._reasons.named(str(error)), record, record.raw or messages_of.shown(record))
        weights = (*[0.0] * (len(chosen) - 1), 1.0)
        origin = place.origin(record)
        both = (
            Conversation(messages=messages, weights=weights, **{**origin, "id": f"{origin['id']}/{side}"})
            for messages, side in ((chosen, "chosen"), (rejected, "rejected"))
        )
        return Preference(*both)

    def _side(self, record: Record, name: str) -> tuple[Mapping[str, str], ...]:
        """The whole conversation that ends with an answer, checked."""
        value = record.get(name)
        if value is None:
            filled = [field for field in record.values if record.get(field) is not None]
            raise UnusableError(f"no {name} answer ({messages_of.listed(filled)})")
        answer = self._answer(value, name)
        before = [] if _asks(answer) else self._before(record)
        messages, _ = checked(messages_of.with_system(record, self.fields, [*before, *answer]), "last")
        if messages[-1]["role"] != ANSWERS:
            raise UnusableError(f"{name} does not end with an answer")
        return messages

    def _answer(self, value: Any, name: str) -> Sequence[Any]:
        """An answer as messages."""
        if isinstance(value, Mapping):
            return [value]
        if isinstance(value, list):
            return value
        return [{"role": ANSWERS, "content": messages_of.plain(value, name)}]

    def _before(self, record: Record) -> Sequence[Any]:
        """The messages of the question."""
        for name in self.lists:
            if record.get(name) is not None:
                return messages_of.messages_in(record.get(name), name)
        for name in self.questions:
            if (value := record.get(name)) is not None:
                return value if isinstance(value, list) else messages_of.asked(record, name)
        raise UnusableError("no question (give it as prompt, or as messages in both answers)")


def _asks(messages: Sequence[Any]) -> bool:
    """Whether messages begin with something else than an answer."""
    return bool(messages) and isinstance(messages[0], Mapping) and role_of(messages[0]) != ANSWERS


def read_preferences(
    folder: Path,
    domains: Sequence[str],
    language: str = "en",
    *,
    fields: Mapping[str, str] | None = None,
    domain_names: Mapping[str, str] | None = None,
) -> Iterator[Preference | Rejected]:
    """Preferences of all .jsonl and .parquet files below `folder`, found, named and refused as documents are.

    See `text.folder.read_folder`; the shapes of records are above. Set aside, each with its reason, are records without
    two answers or a question, equal answers, answers to different questions, and what no conversation may hold.
    """
    return read_records(folder, PreferenceReading(tuple(domains), language, fields or {}, domain_names or {}))
