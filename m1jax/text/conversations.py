"""Conversations: what one is, and which of them can be learned from.

user_system, system   before the first question
user                  a question; nobody else asks
assistant             an answer, which the model writes
function, code        what a tool gave, read by the next answer
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from m1jax.config.domains import nearest
from m1jax.text.records import BLANK
from m1jax.tokenizer.chat.formats import ANSWERS, BAICHUAN_M1

ROLES = tuple(BAICHUAN_M1.turns)
"""Every role that a conversation may have."""
ALIASES = {
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": ANSWERS,
    "chatgpt": ANSWERS,
    "bot": ANSWERS,
    "model": ANSWERS,
    "tool": "function",
    "observation": "function",
}
"""Other names of roles, as datasets have them."""
_CALLS = ("function_call", "tool_calls", "tool_call")
_NO_CALLS = "a message calls tools, for which the chat formats have no text"
_AFTER: Mapping[str | None, tuple[str, ...]] = {
    None: ("system", "user_system", "user"),
    "system": ("user_system", "user"),
    "user_system": ("user",),
    "user": (ANSWERS,),
    ANSWERS: ("user", "function", "code"),
    "function": (ANSWERS, "function", "code"),
    "code": (ANSWERS, "function", "code"),
}
"""The roles that may follow each; None: that may be first."""
_LONGEST_NAME = 40


class UnusableError(Exception):
    """A conversation that nothing can be learned from; the message is the reason."""


class Inserted(NamedTuple):
    """Characters `start` to `end` (that one excluded) of a text that are of the document `origin`."""

    start: int
    end: int
    origin: str


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as chat formats take them, {"role", "content"}, and how much each of them is learned.

    `weights` has a number of 0 or more for each message: that of each token of an answer and of the mark that ends it;
    0 for what the model does not write. `inserted` are ranges of the first question's text, in order, that other
    documents make up. The rest is as in Document.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    weights: tuple[float, ...]
    source: str
    language: str
    domain: str
    difficulty: float | None = None
    shard: str = ""
    record_id: str = ""
    inserted: tuple[Inserted, ...] = ()

    @property
    def first_question(self) -> int:
        """The index of its first question."""
        return next(i for i, message in enumerate(self.messages) if message["role"] == "user")


def checked(given: Sequence[Any], learn: str = "all") -> tuple[tuple[Mapping[str, str], ...], tuple[float, ...]]:
    """Messages and weights of a conversation, from messages as datasets have them.

    A message is {"role", "content"}, or {"from", "value"}; its content is a text or a list of text parts. An answer's
    `weight`, 0 or more, says how much it is learned. Where it is missing, `learn` decides: "all" answers, with weight
    1, or only the "last". A system message without text counts as none. Raises UnusableError.
    """
    messages: list[Mapping[str, str]] = []
    weights: list[float | None] = []
    for message in given:
        if not isinstance(message, Mapping):
            raise UnusableError(f"a message of type {type(message).__name__}, not an object with role and content")
        role = role_of(message)
        if any(message.get(name) for name in _CALLS):
            raise UnusableError(_NO_CALLS)
        text = text_of(message)
        if BLANK.fullmatch(text):
            if role in ("system", "user_system"):
                continue
            raise UnusableError("an empty answer" if role == ANSWERS else f"an empty message of role {role}")
        before = messages[-1]["role"] if messages else None
        if role not in _AFTER[before]:
            raise UnusableError(f"roles out of order: {role} " + (f"after {before}" if before else "first"))
        messages.append({"role": role, "content": text})
        weights.append(_weight(message) if role == ANSWERS else 0.0)
    if all(message["role"] != ANSWERS for message in messages):
        raise UnusableError("no answer")
    last = max(i for i, message in enumerate(messages) if message["role"] == ANSWERS)
    decided = [float(learn == "all" or i == last) if weight is None else weight for i, weight in enumerate(weights)]
    if not any(decided):
        raise UnusableError("no answer has a weight above 0")
    return tuple(messages), tuple(decided)


def role_of(message: Mapping[str, Any]) -> str:
    """The role of a message, one of ROLES; raises UnusableError for another."""
    named = next((message[name] for name in ("role", "from") if message.get(name) is not None), None)
    if not isinstance(named, str):
        raise UnusableError("a message without a role" if named is None else "a role that is no text")
    role = named.strip().lower()
    role = ALIASES.get(role, role)
    if role in _CALLS:
        raise UnusableError(_NO_CALLS)
    if role not in ROLES:
        known = (*ROLES, *ALIASES)
        raise UnusableError(f"unknown role {named[:_LONGEST_NAME]!r} (nearest known: {nearest(role, known)!r})")
    return role


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, "" where it has none; raises UnusableError where it is something else.

    Text in parts, as OpenAI's protocol has it, is joined with nothing in between.
    """
    content = next((message[name] for name in ("content", "value") if message.get(name) is not None), "")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UnusableError(f"a message's content is of type {type(content).__name__}, not a text")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise UnusableError(f"a part of a message is of type {str(kind)[:_LONGEST_NAME]!r}, not a text")
        texts.append(part["text"])
    return "".join(texts)


def _weight(message: Mapping[str, Any]) -> float | None:
    """An answer's own weight; None where it has none."""
    weight = message.get("weight")
    if weight is None:
        return None
    if not isinstance(weight, bool | int | float) or not 0 <= weight < math.inf:
        raise UnusableError("an answer's weight is not a number of 0 or more")
    return float(weight)
