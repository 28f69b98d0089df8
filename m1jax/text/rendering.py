"""Conversations as documents of parts: a chat format says where marks go, each answer's weight what is learned.

The ids of a document, with the EOS that packing puts behind it, are those of `Chat.encode`. What an answer's weight
holds for is the answer's text and all up to the mark that ends it: the mark of the next turn, that of the answer's own
turn, or EOS. What precedes an answer, as `<C_A>`, has weight 0, and so has every other turn.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from m1jax.text.conversations import Conversation
from m1jax.text.documents import PAIR, SIDE, WHOLE, Document, Part, Rejected
from m1jax.text.preference_records import Preference
from m1jax.text.set_aside import set_aside
from m1jax.tokenizer import Tokenizer
from m1jax.tokenizer.chat import FormatChat
from m1jax.tokenizer.chat import Part as ChatPart
from m1jax.tokenizer.chat.formats import ANSWERS

UNANSWERED = "the end of a conversation, which no answer follows"


class Renderer:
    """Makes documents of at most `row_length` tokens, EOS among them, out of conversations."""

    def __init__(self, chat: FormatChat, tokenizer: Tokenizer, row_length: int) -> None:
        self._chat, self._row_length = chat, row_length
        self._tokenizer = tokenizer
        self._bytes = np.asarray(tokenizer.token_bytes)
        self._names = {i: text for text, i in tokenizer.special_tokens.items()}
        for mark in chat.format.marks:
            if (found := tokenizer.token_id(mark.text)) is not None:
                self._names[found] = mark.text

    def documents(self, items: Iterable[Conversation | Rejected]) -> Iterator[Document | Rejected]:
        """A document of each conversation, in order; what is Rejected already stays so.

        A conversation that is too long is cut behind its last answer that fits, and ends with EOS there. What is cut
        off is Rejected with its reason, and so is a conversation without a learned answer that fits, or with a role
        that the chat format does not know.
        """
        for item in items:
            if isinstance(item, Rejected):
                yield item
            else:
                yield from self._documents(item)

    def pairs(self, items: Iterable[Preference | Rejected]) -> Iterator[Document | Rejected]:
        """The two documents of each preference, side by side, in order; what is Rejected already stays so.

        Neither side is ever cut: a preference of which one is too long, or has a role that the chat format does not
        know, is Rejected.
        """
        number = 0
        for item in items:
            if isinstance(item, Rejected):
                yield item
                continue
            both = self._side(item.chosen), self._side(item.rejected)
            if fault := next((found for found in both if isinstance(found, str)), None):
                yield self._rejected(item.chosen, 0, fault)
                continue
            for side, conversation, parts in zip((1, 0), (item.chosen, item.rejected), both, strict=True):
                assert not isinstance(parts, str)
                yield self._document(conversation, parts, {PAIR: number, SIDE: side})
            number += 1

    def _side(self, conversation: Conversation) -> list[Part] | str:
        """The parts of a whole conversation, or why there are none."""
        if fault := self._unknown(conversation):
            return fault
        size, parts = self._longest(conversation, [len(conversation.messages)])
        return parts if size else f"a side of a pair is longer than a row of {self._row_length} tokens"

    def _unknown(self, conversation: Conversation) -> str | None:
        """Which role the chat format does not know."""
        roles = [message["role"] for message in conversation.messages]
        unknown = next((role for role in roles if role not in self._chat.format.turns), None)
        return unknown and f"the chat format {self._chat.format.name} has no role {unknown}"

    def _document(self, conversation: Conversation, parts: Sequence[Part], columns: Mapping[str, int]) -> Document:
        return Document.of_parts(
            conversation.id,
            parts,
            conversation.source,
            conversation.language,
            conversation.domain,
            difficulty=conversation.difficulty,
            columns=columns,
            shard=conversation.shard,
            record_id=conversation.record_id,
        )

    def _documents(self, conversation: Conversation) -> Iterator[Document | Rejected]:
        if fault := self._unknown(conversation):
            yield self._rejected(conversation, 0, fault)
            return
        learned = [i for i, weight in enumerate(conversation.weights) if weight]
        answers = [i + 1 for i, message in enumerate(conversation.messages) if message["role"] == ANSWERS]
        size, parts = self._longest(conversation, answers)
        if size <= learned[0]:
            reason = f"the first answer that is learned ends beyond a row of {self._row_length} tokens"
            yield self._rejected(conversation, 0, reason)
            return
        yield self._document(conversation, parts, {WHOLE: 1})
        if size < answers[-1]:
            reason = f"the end of a conversation, cut at a turn to fit a row of {self._row_length} tokens"
            yield self._rejected(conversation, size, reason)
        elif size < len(conversation.messages):
            yield self._rejected(conversation, size, UNANSWERED)

    def _longest(self, conversation: Conversation, answers: Sequence[int]) -> tuple[int, list[Part]]:
        """The most messages that fit and end with an answer, and their parts; `answers` are the sizes to try."""
        whole = self._chat.parts(conversation.messages)
        possible = self._possible(whole, len(conversation.messages))
        for size in reversed(answers):
            if size > possible:
                continue
            found = whole if size == len(conversation.messages) else self._chat.parts(conversation.messages[:size])
            if parts := self._fitting(conversation, size, found):
                return size, parts
        return 0, []

    def _possible(self, whole: Sequence[ChatPart], messages: int) -> int:
        """The most messages that may fit: a bound, so that a long conversation is not encoded once for each answer."""
        tokens = 0
        for part in whole:
            tokens += len(part.ids)
            if part.is_content and part.message is not None and tokens >= self._row_length:
                return part.message
        return messages

    def _fitting(self, conversation: Conversation, size: int, found: Sequence[ChatPart]) -> list[Part]:
        """The document's parts from those of the first `size` messages, the last of which is an answer.

        None where they do not fit.
        """
        found = [part for part in found if part.ids]
        # What ends the conversation is the mark behind the answer, or EOS, which packing puts there.
        last = max(i for i, part in enumerate(found) if part.answer == size - 1)
        ends = found[last].ids == [self._tokenizer.eos_id] and not found[last].is_content
        found = found[: last + (not ends)]
        if sum(len(part.ids) for part in found) + 1 > self._row_length:
            return []
        parts = []
        for part in found:
            if part.is_content and part.message is not None:
                text = conversation.messages[part.message]["content"]
            else:
                text = "".join(self._shown(part.ids))
            weight = 0.0 if part.answer is None else conversation.weights[part.answer]
            if conversation.inserted and part.is_content and part.message == conversation.first_question:
                parts += self._divided(conversation, text, part.ids)
            else:
                parts.append(Part(text, tuple(part.ids), weight))
        # EOS has the weight of the last part: behind another mark that ended the answer it is not learned.
        return parts if ends else [*parts, Part(weight=0.0)]

    def _divided(self, conversation: Conversation, text: str, ids: Sequence[int]) -> list[Part]:
        """A question's ids, divided where documents that are inserted in its text begin and end; none is learned.

        A token over a border belongs to what is before it.
        """
        origins = {end: origin for _, end, origin in conversation.inserted}
        borders = sorted({0, len(text), *(at for start, end, _ in conversation.inserted for at in (start, end))})
        pieces = [text[start:end] for start, end in itertools.pairwise(borders)]
        ends = np.cumsum([len(piece.encode()) for piece in pieces])
        sizes = np.cumsum(self._bytes[np.asarray(ids)])
        # A space that the tokenizer put before the text, say, is not in the text.
        cuts = np.searchsorted(sizes - (sizes[-1] - ends[-1]), ends).tolist()
        cuts = [0, *(min(cut + 1, len(ids)) for cut in cuts[:-1]), len(ids)]
        parts: list[Part] = []
        for piece, border, (start, end) in zip(pieces, borders[1:], itertools.pairwise(cuts), strict=True):
            if start < end or not parts:
                parts.append(Part(piece, tuple(ids[start:end]), 0.0, origins.get(border, "")))
            else:  # one token holds the piece and the end of the one before it
                parts[-1] = dataclasses.replace(parts[-1], text=parts[-1].text + piece)
        return parts

    def _shown(self, ids: Sequence[int]) -> Iterator[str]:
        """The text of ids that are not of a message, special tokens by their names."""
        for special, some in itertools.groupby(ids, self._names.__contains__):
            together = list(some)
            yield from map(self._names.__getitem__, together) if special else [self._tokenizer.decode(together)]

    def _rejected(self, conversation: Conversation, first: int, reason: str) -> Rejected:
        """The messages from `first` on, set aside."""
        text = "\n".join(f"{message['role']}: {message['content']}" for message in conversation.messages[first:])
        document = Document(
            conversation.id, text, conversation.source, conversation.language, conversation.domain,
            record_id=conversation.record_id,
        )  # fmt: skip
        return set_aside(document, reason)
