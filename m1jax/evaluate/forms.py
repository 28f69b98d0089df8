"""How a question is put to a model: as a text that goes on with the answer, or as a user's turn that is answered."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from m1jax.evaluate.items import Item
from m1jax.tokenizer.chat import Chat, Message

BASE, CHAT, CHAT_CLOZE = FORMS = ("base", "chat", "chat-cloze")
"""Names of the forms: a base model continues a text; an assistant chooses among choices that it has read, or answers
without having read them (a small model cannot yet choose: Gu et al., arXiv 2406.08446)."""


class Encoder(Protocol):
    """The part of a tokenizer that items need."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without any special token added."""


@dataclass(frozen=True)
class Asked:
    """An item as a model reads it: ids of the prompt, and of each choice behind it."""

    prompt: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest choice."""
        return len(self.prompt) + max(map(len, self.ends))


def text_before(item: Item) -> str:
    """The plain prompt, which ends without a space: a space and a choice continue it.

    A cloze, without letters: a small base model has no notion of "the answer is B", but it can tell likely text from
    unlikely.
    """
    before = f"Context: {item.context}\n" if item.context else ""
    return f"{before}Question: {item.question}\nAnswer:"


def as_text(items: Sequence[Item], tokenizer: Encoder) -> list[Asked]:
    """Items in the form of plain text."""
    return continued([text_before(item) for item in items], [item.choices for item in items], tokenizer)


def continued(texts: Sequence[str], choices: Sequence[Sequence[str]], tokenizer: Encoder) -> list[Asked]:
    """Texts, each with the choices that continue it after a space.

    Text and choice are encoded together, so that a choice has the tokens that it has in the whole text; they are cut
    where the text ends. Where a token of any choice spans that place, all choices of the text are cut before it, and
    their scores still belong to the same piece of text.
    """
    prompts = tokenizer.encode_batch(texts)
    joined = [f"{text} {choice}" for text, some in zip(texts, choices, strict=True) for choice in some]
    wholes = iter(tokenizer.encode_batch(joined))
    found = []
    for some, prompt in zip(choices, prompts, strict=True):
        own = [next(wholes) for _ in some]
        cut = min(_common(prompt, whole) for whole in own)
        if cut:
            found.append(Asked(tuple(prompt[:cut]), tuple(tuple(whole[cut:]) for whole in own)))
        else:  # nothing is left to condition on
            ends = tokenizer.encode_batch([f" {choice}" for choice in some])
            found.append(Asked(tuple(prompt), tuple(map(tuple, ends))))
    return found


def messages(item: Item, form: str = CHAT) -> list[Message]:
    """The user's turn: context, question and, in the form `chat`, the choices, one a line."""
    question = "\n".join([item.question, *(f"- {choice}" for choice in item.choices if form == CHAT)])
    return [{"role": "user", "content": f"{item.context}\n\n{question}" if item.context else question}]


def as_chat(items: Sequence[Item], chat: Chat, form: str = CHAT) -> list[Asked]:
    """Items in a chat format, in one of the two forms of a chat.

    A choice is the text of the assistant's answer, without the mark that ends it. The ids are those of `m1 chat` and of
    rows for fine-tuning.
    """
    talks: list[tuple[list[Message], bool]] = []
    for item in items:
        asked = messages(item, form)
        talks.append((asked, True))
        talks += [([*asked, {"role": "assistant", "content": choice}], False) for choice in item.choices]
    encoded = iter(chat.encode_batch(talks))
    found = []
    for item in items:
        prompt = next(encoded)
        wholes = [next(encoded) for _ in item.choices]
        cut = min(_common(prompt, whole) for whole in wholes)
        ends = tuple(tuple(itertools.takewhile(lambda i: i not in chat.ends, whole[cut:])) for whole in wholes)
        found.append(Asked(tuple(prompt[:cut]), ends))
    return found


def _common(prompt: Sequence[int], text: Sequence[int]) -> int:
    """Tokens with which both begin."""
    pairs = itertools.zip_longest(prompt, text[: len(prompt)])
    return next((n for n, (one, other) in enumerate(pairs) if one != other), len(prompt))
