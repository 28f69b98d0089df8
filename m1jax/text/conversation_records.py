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
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from m1jax.errors import UserError
from m1jax.text.conversations import Conversation, UnusableError, checked, role_of, text_of
from m1jax.text.documents import Rejected
from m1jax.text.encodings import undecodable
from m1jax.text.folder import read_records
from m1jax.text.records import BLANK, LARGEST, Place, Reading, Record
from m1jax.tokenizer.chat.formats import ANSWERS

_LISTS = ("messages", "conversations", "conversation")
_PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
_BESIDE = {"instruction": ("input", "history")}
"""Further fields beside a question, by its field."""
_MOST_REASONS = 100
_MOST_LISTED = 12
_LONGEST_NAME = 40


@dataclasses.dataclass(frozen=True)
class ConversationReading(Reading[Conversation]):
    """Records as conversations; `learn` is that of `conversations.checked`."""

    learn: str = "all"
    _reasons: set[str] = dataclasses.field(default_factory=set, compare=False, repr=False)
    """Reasons that hold names out of the data, of which there may be as many as records."""

    @functools.cached_property
    def lists(self) -> tuple[str, ...]:
        """Fields that may hold a list of messages."""
        if "messages" in self.fields:
            return (self.fields["messages"],)
        return () if "question" in self.fields else _LISTS

    @functools.cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Fields that may hold a question and its answer."""
        if "question" in self.fields:
            return ((self.fields["question"], self.fields["answer"]),)
        return () if "messages" in self.fields else _PAIRS

    @property
    def names(self) -> Iterable[str]:
        """See Reading."""
        beside = [name for question, _ in self.pairs for name in _BESIDE.get(question, ())]
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
            try:
                size = sum(len(message["content"].encode()) for message in messages)
            except UnicodeEncodeError:
                raise UnusableError(undecodable(record.raw) if record.torn else "no valid Unicode") from None
            if size > LARGEST:
                raise UnusableError(f"larger than {LARGEST >> 20} MiB")
        except UnusableError as error:
            return place.rejected(self._named(str(error)), record, record.raw or _shown(record))
        return Conversation(messages=messages, weights=weights, **place.origin(record))

    def _named(self, reason: str) -> str:
        """The reason, without its details once there are many different ones."""
        if len(self._reasons) < _MOST_REASONS:
            self._reasons.add(reason)
        return reason if reason in self._reasons else reason.partition(" (")[0].partition("'")[0].strip()

    def _messages(self, record: Record) -> Sequence[Any]:
        """The record's messages, a system message first where a field of its own holds it."""
        for name in self.lists:
            if record.get(name) is not None:
                messages = _listed(record.get(name), name)
                break
        else:
            for question, answer in self.pairs:
                if record.get(question) is not None and record.get(answer) is not None:
                    messages = _paired(record, question, answer)
                    break
            else:
                filled = [name for name in record.values if record.get(name) is not None]
                raise UnusableError(f"no conversation ({self._unknown(filled)})")
        name = self.fields.get("system", "system")
        system = record.get(name) if name else None
        # A conversation's own system message wins.
        if system is None or (messages and _says_system(messages[0])):
            return messages
        return [{"role": "system", "content": _plain(system, name)}, *messages]

    def _unknown(self, names: Sequence[str]) -> str:
        """What a record without a conversation has, and what is nearest to a field that is known."""
        known = [*self.lists, *(name for pair in self.pairs for name in pair)]
        listed = ", ".join(repr(name[:_LONGEST_NAME]) for name in names[:_MOST_LISTED]) or "none"
        listed += ", …" if len(names) > _MOST_LISTED else ""
        halves = [(here, gone) for pair in self.pairs for here, gone in (pair, pair[::-1]) if here in names]
        if halves:
            here, gone = halves[0]
            return f"its fields: {listed}; {here!r} without {gone!r}"
        others = set(names).difference(self.names)
        near = {name: found[0] for name in sorted(others) if (found := difflib.get_close_matches(name, known, n=1))}
        hints = [f"nearest known: {near[name]!r} for {name[:_LONGEST_NAME]!r}" for name in names if name in near]
        return "; ".join([f"its fields: {listed}", *hints[:1]])


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


def _listed(value: Any, name: str) -> Sequence[Any]:
    """A list of messages, which may be written as JSON."""
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UnusableError(f"the field {name!r} is a text that is no JSON, not a list of messages") from None
    if not isinstance(value, list):
        raise UnusableError(f"the field {name!r} is of type {type(value).__name__}, not a list of messages")
    return value


def _paired(record: Record, question: str, answer: str) -> Sequence[Any]:
    asked, answered = record.get(question), record.get(answer)
    if isinstance(asked, list) and isinstance(answered, list):
        read = [{**message, "weight": 0} if isinstance(message, Mapping) else message for message in asked]
        return [*read, *answered]
    texts = [_plain(asked, question)]
    messages: list[Mapping[str, Any]] = []
    for name in _BESIDE.get(question, ()):
        value = record.get(name)
        if value is None:
            continue
        if name == "history":
            messages = _earlier(value)
        else:
            texts.append(_plain(value, name))
    text = "\n\n".join(text for text in texts if not BLANK.fullmatch(text))
    messages.append({"role": "user", "content": text})
    return [*messages, {"role": ANSWERS, "content": _plain(answered, answer)}]


def _earlier(pairs: Any) -> list[Mapping[str, Any]]:
    """The messages of a list of pairs, question and answer."""
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UnusableError("the field 'history' is not a list of pairs")
    roles = ("user", ANSWERS)
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _plain(value: Any, name: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise UnusableError(undecodable(value)) from None
    if not isinstance(value, str):
        raise UnusableError(f"the field {name!r} is of type {type(value).__name__}, not a text")
    return value


def _says_system(message: Any) -> bool:
    """Whether a message is a system prompt that is not empty."""
    return isinstance(message, Mapping) and role_of(message) == "system" and not BLANK.fullmatch(text_of(message))


def _shown(record: Record) -> bytes:
    """A row as text, where there are no bytes of a line to show."""
    values = {name: record.get(name) for name in record.values}
    return json.dumps(values, ensure_ascii=False, default=_readable).encode(errors="backslashreplace")


def _readable(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
