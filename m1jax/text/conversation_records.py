"""Conversations from a folder of the user's own records, in the shapes that datasets have.

    messages, conversations, conversation    a list of messages: see `conversations.checked`
    prompt and completion                    a question and its answer, or two lists of messages, of which the second
                                             is learned
    instruction, input, output               a question of two parts, `input` may be missing; `history`: earlier pairs
    question and answer                      a question and its answer
    system                                   beside any of them, a text

Where data.fields names `messages`, or `question` and `answer`, only these fields are looked at.
"""

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from m1jax.errors import UserError
from m1jax.text.conversations import Conversation, UnusableError, checked
from m1jax.text.documents import Rejected
from m1jax.text.folder import read_records
from m1jax.text.record_messages import (
    BESIDE,
    LISTS,
    Reasons,
    asked,
    check_text,
    listed,
    messages_in,
    plain,
    short,
    shown,
    with_system,
)
from m1jax.text.records import Place, Reading, Record
from m1jax.tokenizer.chat.formats import ANSWERS

_PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))


@dataclasses.dataclass(frozen=True)
class ConversationReading(Reading[Conversation]):
    """Records as conversations; `learn` is that of `conversations.checked`."""

    learn: str = "all"
    _reasons: Reasons = dataclasses.field(default_factory=Reasons, compare=False, repr=False)

    @functools.cached_property
    def lists(self) -> tuple[str, ...]:
        """Fields that may hold a list of messages."""
        if "messages" in self.fields:
            return (self.fields["messages"],)
        return () if "question" in self.fields else LISTS

    @functools.cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Fields that may hold a question and its answer."""
        if "question" in self.fields:
            return ((self.fields["question"], self.fields["answer"]),)
        return () if "messages" in self.fields else _PAIRS

    @property
    def names(self) -> Iterable[str]:
        """See Reading."""
        beside = [name for question, _ in self.pairs for name in BESIDE.get(question, ())]
        pairs = [name for pair in self.pairs for name in pair]
        return [*self.lists, *pairs, *beside, self.fields.get("system", "system"), *self.others.values()]

    def check_columns(self, schema: pa.Schema, path: Path) -> None:
        """See Reading."""
        names = set(schema.names)
        if not names.intersection(self.lists) and not any(names.issuperset(pair) for pair in self.pairs):
            raise UserError(
                f"{path} has no conversation: {self._unknown(schema.names)}; name its columns with config key "
                f"data.fields.messages, or data.fields.question and data.fields.answer."
            )

    def item(self, place: Place, record: Record) -> Conversation | Rejected:
        """See Reading."""
        try:
            messages, weights = checked(self._messages(record), self.learn)
            check_text(messages, record)
        except UnusableError as error:
            return place.rejected(self._reasons.named(str(error)), record, record.raw or shown(record))
        return Conversation(messages=messages, weights=weights, **place.origin(record))

    def _messages(self, record: Record) -> Sequence[Any]:
        """The record's messages, a system message first where a field of its own holds it."""
        for name in self.lists:
            if record.get(name) is not None:
                return with_system(record, self.fields, messages_in(record.get(name), name))
        for question, answer in self.pairs:
            if record.get(question) is not None and record.get(answer) is not None:
                return with_system(record, self.fields, _paired(record, question, answer))
        filled = [name for name in record.values if record.get(name) is not None]
        raise UnusableError(f"no conversation ({self._unknown(filled)})")

    def _unknown(self, names: Sequence[str]) -> str:
        """What a record without a conversation has, and what is nearest to a field that is known."""
        known = [*self.lists, *(name for pair in self.pairs for name in pair)]
        halves = [(here, gone) for pair in self.pairs for here, gone in (pair, pair[::-1]) if here in names]
        if halves:
            here, gone = halves[0]
            return f"{listed(names)}; {here!r} without {gone!r}"
        others = set(names).difference(self.names)
        near = {name: found[0] for name in sorted(others) if (found := difflib.get_close_matches(name, known, n=1))}
        hints = [f"nearest known: {near[name]!r} for {short(name)!r}" for name in names if name in near]
        return "; ".join([listed(names), *hints[:1]])


def read_conversations(
    folder: Path,
    domains: Sequence[str],
    language: str = "en",
    *,
    fields: Mapping[str, str] | None = None,
    domain_names: Mapping[str, str] | None = None,
    learn: str = "all",
) -> Iterator[Conversation | Rejected]:
    """Conversations of all .jsonl and .parquet files below `folder`, found, named and refused as documents are.

    See `text.folder.read_folder`; the shapes of records are above. Set aside, each with its reason, are records without
    a conversation (naming the nearest known field), unknown roles, roles out of order, empty messages, and those
    without an answer that is learned.
    """
    return read_records(folder, ConversationReading(tuple(domains), language, fields or {}, domain_names or {}, learn))


def _paired(record: Record, question: str, answer: str) -> Sequence[Any]:
    """A question and its answer, texts or two lists of messages, of which the second is learned."""
    before, answered = record.get(question), record.get(answer)
    if isinstance(before, list) and isinstance(answered, list):
        read = [{**message, "weight": 0} if isinstance(message, Mapping) else message for message in before]
        return [*read, *answered]
    return [*asked(record, question), {"role": ANSWERS, "content": plain(answered, answer)}]
