"""Long context: text that has nothing to do with a conversation, before and after its first question.

It stands inside of the question's turn. Attention is causal, so that text behind an answer would be read by nothing
that is learned; and a user who asks about long text puts it into a message, so that text outside of any turn would
never come again. The conversation stays one conversation of the chat format: one piece of a row, whose positions run
through, and whose answers alone are learned.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from m1jax.errors import UserError
from m1jax.text.conversations import Conversation, Inserted
from m1jax.text.documents import Document, Rejected, document_files, origin_of, read_documents
from m1jax.text.folder import read_folder
from m1jax.text.passages import passages
from m1jax.text.set_aside import Items, Known, text_hash
from m1jax.tokenizer import Tokenizer
from m1jax.tokenizer.chat import FormatChat

_GAP = "\n\n"
_FEWEST = 32
"""Tokens below which nothing is put around a conversation: it is as long as wanted."""
_AT_ONCE = 256


@dataclasses.dataclass
class Surrounded:
    """What was put around conversations."""

    conversations: int = 0
    """That text was put around."""
    long_already: int = 0
    """That were chosen, but are as long as wanted by themselves."""
    tokens: int = 0
    """That this made them longer by."""
    parts: int = 0
    """Runs of text of one document each."""
    readings: int = 0
    """Times that the text was begun."""


class Surroundings:
    """Puts text around a share of conversations, which then have at most `length` tokens, EOS among them."""

    def __init__(
        self,
        documents: Callable[[], Items],
        chat: FormatChat,
        tokenizer: Tokenizer,
        length: int,
        share: float,
        counts: Surrounded,
    ) -> None:
        """`documents` reads the text from its beginning, again whenever it ends; its Rejected are handed on once.

        `counts` is kept up to date.
        """
        self._chat, self._length, self._share, self._counts = chat, length, share, counts
        self._text = _Text(documents, tokenizer, counts)
        self._known = Known()

    def around(self, items: Iterable[Conversation | Rejected]) -> Iterator[Conversation | Rejected]:
        """The items in order, the chosen ones in long context; a chosen conversation that came before is Rejected.

        Raises UserError where the text holds no document.
        """
        for item in items:
            if isinstance(item, Conversation) and self._chosen(item):
                item = self._surrounded(item)
            yield from self._text.set_aside()
            yield item

    def _chosen(self, conversation: Conversation) -> bool:
        return text_hash(_said(conversation)) < self._share * 2**64

    def _surrounded(self, conversation: Conversation) -> Conversation | Rejected:
        # Copies would get other text each, and not be known for copies any more.
        if self._known.seen([_said(conversation)], [None])[0]:
            shown = "\n".join(f"{message['role']}: {message['content']}" for message in conversation.messages)
            return Rejected(conversation.id, "duplicate text", shown, conversation.source, conversation.record_id)
        own = self._size(conversation)
        room = self._length - own
        if room < _FEWEST:
            self._counts.long_already += 1
            return conversation
        before = text_hash(f"place {_said(conversation)}") * room >> 64
        first, behind = self._text.take(before), self._text.take(room - before)
        while first or behind:
            found = _inserted(conversation, first, behind)
            if (size := self._size(found)) <= self._length:
                self._counts.conversations += 1
                self._counts.tokens += size - own
                self._counts.parts += len(found.inserted)
                return found
            # Encoded together, passages may have more tokens than one by one.
            longer = behind if len(behind) > len(first) else first
            longer.pop()
        return conversation

    def _size(self, conversation: Conversation) -> int:
        return sum(len(part.ids) for part in self._chat.parts(conversation.messages)) + 1


class Passage(NamedTuple):
    """Some text of a document, and which reading of the folder gave it, counted from 1."""

    origin: str
    text: str
    reading: int


class _Text:
    """Passages of documents one after the other, without end."""

    def __init__(self, documents: Callable[[], Items], tokenizer: Tokenizer, counts: Surrounded) -> None:
        self._documents, self._tokenizer, self._counts = documents, tokenizer, counts
        self._aside: list[Rejected] = []
        self._stream = self._passages()
        self._waiting: collections.deque[tuple[Passage, int]] = collections.deque()
        self._begun = 0

    def take(self, room: int) -> list[Passage]:
        """The next passages, of at most `room` tokens together; what does not fit is kept for the next time."""
        found: list[Passage] = []
        while True:
            if not self._waiting:
                self._fill()
            passage, tokens = self._waiting[0]
            if tokens > room:
                return found
            self._waiting.popleft()
            found.append(passage)
            room -= tokens
            self._counts.readings = passage.reading

    def set_aside(self) -> list[Rejected]:
        """What was Rejected since the last call."""
        found, self._aside = self._aside, []
        return found

    def _fill(self) -> None:
        some = list(itertools.islice(self._stream, _AT_ONCE))
        counts = map(len, self._tokenizer.encode_arrays([passage.text for passage in some]))
        self._waiting.extend(zip(some, counts, strict=True))

    def _passages(self) -> Iterator[Passage]:
        while True:
            self._begun += 1
            empty = True
            for item in self._documents():
                if isinstance(item, Document):
                    empty = False
                    origin = origin_of(item)
                    yield from (Passage(origin, text, self._begun) for text in passages(item.text.strip() + _GAP))
                elif self._begun == 1:
                    self._aside.append(item)
            if empty:
                raise UserError(
                    "config key data.long_context.text: the folder holds no usable document: give one with text."
                )


def read_text(folder: Path, domains: Sequence[str], language: str) -> Iterator[Document | Rejected]:
    """Documents of a corpus, of its sources in turn, or else of a folder of files; raises UserError without any."""
    if not (folder / "documents").is_dir():
        yield from read_folder(folder, domains, language)
        return
    sources = collections.deque(map(read_documents, document_files(folder)))
    while sources:
        source = sources.popleft()
        if (document := next(source, None)) is not None:
            yield document
            sources.append(source)


def _said(conversation: Conversation) -> str:
    """What is learned and read, by which copies are known."""
    return repr((conversation.messages, conversation.weights))


def _inserted(conversation: Conversation, first: Sequence[Passage], behind: Sequence[Passage]) -> Conversation:
    """The conversation with passages before and behind its first question."""
    at = conversation.first_question
    question = conversation.messages[at]["content"]
    text, inserted = "", []
    for origin, more in _joined(first):
        inserted.append(Inserted(len(text), len(text) + len(more), origin))
        text += more
    text += question
    for origin, more in _joined(behind):
        more = _GAP + more.removesuffix(_GAP)
        inserted.append(Inserted(len(text), len(text) + len(more), origin))
        text += more
    messages = list(conversation.messages)
    messages[at] = {**messages[at], "content": text}
    return dataclasses.replace(conversation, messages=tuple(messages), inserted=tuple(inserted))


def _joined(some: Sequence[Passage]) -> Iterator[tuple[str, str]]:
    """Origin and text of the passages of each document, which end with an empty line."""
    for origin, run in itertools.groupby(some, key=lambda passage: passage.origin):
        if text := "".join(passage.text for passage in run).strip():
            yield origin, text + _GAP
