"""Messages out of the fields of a user's record, for conversations and preferences."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from m1jax.text.conversations import UnusableError, role_of, text_of
from m1jax.text.encodings import undecodable
from m1jax.text.records import BLANK, LARGEST, Record
from m1jax.tokenizer.chat.formats import ANSWERS

LISTS = ("messages", "conversations", "conversation")
"""Fields that may hold a list of messages."""
BESIDE: Mapping[str, Sequence[str]] = {"instruction": ("input", "history")}
"""Further fields beside a question, by its field."""
_MOST_REASONS = 100
_MOST_LISTED = 12
_LONGEST_NAME = 40


class Reasons:
    """Names reasons that hold names out of the data, of which there may be as many as records."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def named(self, reason: str) -> str:
        """The reason, without its details once there are many different ones."""
        if len(self._named) < _MOST_REASONS:
            self._named.add(reason)
        return reason if reason in self._named else reason.partition(" (")[0].partition("'")[0].strip()


def messages_in(value: Any, name: str) -> Sequence[Any]:
    """A list of messages, which may be written as JSON."""
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UnusableError(f"the field {name!r} is a text that is no JSON, not a list of messages") from None
    if not isinstance(value, list):
        raise UnusableError(f"the field {name!r} is of type {type(value).__name__}, not a list of messages")
    return value


def asked(record: Record, name: str) -> list[Mapping[str, Any]]:
    """The messages of a question in the field `name`: what is beside it, earlier turns and further text, included."""
    texts = [plain(record.get(name), name)]
    messages: list[Mapping[str, Any]] = []
    for beside in BESIDE.get(name, ()):
        value = record.get(beside)
        if value is None:
            continue
        if beside == "history":
            messages = _earlier(value)
        else:
            texts.append(plain(value, beside))
    text = "\n\n".join(text for text in texts if not BLANK.fullmatch(text))
    return [*messages, {"role": "user", "content": text}]


def with_system(record: Record, fields: Mapping[str, str], messages: Sequence[Any]) -> Sequence[Any]:
    """The messages, a system message first where a field of its own holds it; a conversation's own one wins."""
    name = fields.get("system", "system")
    system = record.get(name) if name else None
    if system is None or (messages and _says_system(messages[0])):
        return messages
    return [{"role": "system", "content": plain(system, name)}, *messages]


def check_text(messages: Sequence[Mapping[str, str]], record: Record) -> None:
    """Raises UnusableError where the messages hold no valid Unicode or are longer than a document may be."""
    try:
        size = sum(len(message["content"].encode()) for message in messages)
    except UnicodeEncodeError:
        raise UnusableError(undecodable(record.raw) if record.torn else "no valid Unicode") from None
    if size > LARGEST:
        raise UnusableError(f"larger than {LARGEST >> 20} MiB")


def plain(value: Any, name: str) -> str:
    """The text of a field; raises UnusableError where it is something else."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise UnusableError(undecodable(value)) from None
    if not isinstance(value, str):
        raise UnusableError(f"the field {name!r} is of type {type(value).__name__}, not a text")
    return value


def short(name: str) -> str:
    """A field's name, so long as it is not too long."""
    return name[:_LONGEST_NAME]


def listed(names: Sequence[str]) -> str:
    """The fields of a record, in words."""
    some = ", ".join(repr(short(name)) for name in names[:_MOST_LISTED]) or "none"
    return f"its fields: {some}" + (", …" if len(names) > _MOST_LISTED else "")


def shown(record: Record) -> bytes:
    """A row as text, where there are no bytes of a line to show."""
    values = {name: record.get(name) for name in record.values}
    return json.dumps(values, ensure_ascii=False, default=_readable).encode(errors="backslashreplace")


def _earlier(pairs: Any) -> list[Mapping[str, Any]]:
    """The messages of a list of pairs, question and answer."""
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UnusableError("the field 'history' is not a list of pairs")
    roles = ("user", ANSWERS)
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _says_system(message: Any) -> bool:
    """Whether a message is a system prompt that is not empty."""
    return isinstance(message, Mapping) and role_of(message) == "system" and not BLANK.fullmatch(text_of(message))


def _readable(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
