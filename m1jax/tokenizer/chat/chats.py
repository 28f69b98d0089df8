"""Conversations as ids: a chat format, or a model's own template, with a tokenizer."""

import abc
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from m1jax.errors import UserError
from m1jax.tokenizer.chat import template as templates
from m1jax.tokenizer.chat.formats import ANSWERS, FORMATS, ChatFormat, Message, Own, Special, role_and_content
from m1jax.tokenizer.chat.template import Refused, Template
from m1jax.tokenizer.interface import Tokenizer

_RENDERED_AT_ONCE = 256
"""Conversations that a model's own template renders in one go, which has a limit of seconds."""


class Part(NamedTuple):
    """Some ids of a conversation and what they are."""

    ids: list[int]
    is_content: bool
    """Whether they are a message's text (or the default system text) rather than marks around it."""
    role: str | None
    """The role whose turn they belong to; None for what opens a conversation."""
    message: int | None
    """Index of the message that they belong to; None for the default system turn and the generation prompt."""
    answer: int | None
    """Index of the answer that the model writes with them: the answer's text, and all up to the mark that ends it.

    These are the targets of supervised fine-tuning. Where nothing stands between turns the end mark is the next turn's.
    """


class Chat(abc.ABC):
    """What turns messages into ids for one tokenizer."""

    origin: str
    """Which format it is and how that is known, for people."""
    ends: list[int]
    """Ids that end an answer."""

    @abc.abstractmethod
    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
        """Ids of a conversation, with `add_generation_prompt` up to where the next answer begins.

        Special tokens typed inside a message are text. Raises UserError for a role that the format does not know and a
        content that is no text.
        """

    def encode_batch(self, talks: Sequence[tuple[Sequence[Message], bool]]) -> list[list[int]]:
        """Ids of conversations, each with its `add_generation_prompt`: see `encode`."""
        return [self.encode(messages, add_generation_prompt=asked) for messages, asked in talks]

    @abc.abstractmethod
    def parts(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Part]:
        """The same piece by piece, which training needs; the ids in a row are those of `encode`.

        Raises UserError as `encode` does, and where only the model's own template is known.
        """


class FormatChat(Chat):
    """A chat format with a tokenizer that has its special tokens; raises UserError for one that lacks some."""

    def __init__(self, chat_format: ChatFormat, tokenizer: Tokenizer, origin: str = "") -> None:
        if lacking := missing(chat_format, tokenizer):
            raise UserError(
                f"the tokenizer lacks {', '.join(lacking)}, which the chat format {chat_format.name} needs: take "
                f"another format, or a tokenizer that has them."
            )
        self.format, self.origin = chat_format, origin or chat_format.name
        self._tokenizer = tokenizer
        self._marks = {mark.text: self._id(mark) for mark in chat_format.marks}
        self.ends = list(dict.fromkeys([tokenizer.eos_id, *map(self._id, chat_format.ends)]))
        # Longest first, so that a mark which begins another does not hide it.
        self._typed = re.compile("|".join(map(re.escape, sorted(self._marks, key=len, reverse=True))))

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
        """See Chat. No token holds parts of a mark and of a content, but both are encoded as parts of one text."""
        parts = self.parts(messages, add_generation_prompt=add_generation_prompt)
        return [i for part in parts for i in part.ids]

    def parts(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Part]:
        """See Chat."""
        slots = self.format.slots(messages, add_generation_prompt=add_generation_prompt)
        found: list[Part] = []
        begins = True
        for slot in slots:
            found.append(Part(self._ids(slot.piece, begins), *slot[1:]))
            if slot.piece:
                begins = isinstance(slot.piece, Special | Own) and self._tokenizer.special_begins
        return found

    def _ids(self, piece: str | Special | Own | list[int], begins: bool) -> list[int]:
        if isinstance(piece, list):
            return piece
        return self._as_text(piece, begins) if isinstance(piece, str) else [self._id(piece)]

    def _id(self, mark: Special | Own) -> int:
        if isinstance(mark, Own):
            return self._tokenizer.bos_id if mark is Own.BOS else self._tokenizer.eos_id
        found = self._tokenizer.token_id(mark.text)
        assert found is not None, mark
        return found

    def _as_text(self, text: str, begins: bool) -> list[int]:
        """Ids of a text in which no mark acts, in a tokenizer too for which the mark is a token like any other."""
        ids = self._tokenizer.encode(text, continues=not begins)
        if not self._typed.search(text) or set(ids).isdisjoint(self._marks.values()):
            return ids
        # Cut behind the first character of every mark that is typed.
        cuts = [0, *(found.start() + 1 for found in self._typed.finditer(text)), len(text)]
        pieces = [text[start:end] for start, end in itertools.pairwise(cuts)]
        return [
            i
            for number, piece in enumerate(pieces)
            for i in self._tokenizer.encode(piece, continues=number > 0 or not begins)
        ]


class TemplateChat(Chat):
    """A model's own template that no chat format reproduces: its text is encoded, for generation only."""

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self.origin = f"the template in {template.place}, which no known chat format reproduces (generation only)"
        self._template, self._tokenizer = template, tokenizer
        special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)))
        self.ends = list(dict.fromkeys([tokenizer.eos_id, *self._end_marks()]))

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
        """See Chat. Template and contents are encoded together, as transformers does it."""
        (ids,) = self.encode_batch([(messages, add_generation_prompt)])
        return ids

    def encode_batch(self, talks: Sequence[tuple[Sequence[Message], bool]]) -> list[list[int]]:
        """See Chat. The template is started once for many conversations."""
        found: list[list[int]] = []
        for first in range(0, len(talks), _RENDERED_AT_ONCE):
            some = talks[first : first + _RENDERED_AT_ONCE]
            guards = [self._guard(messages) for messages, _ in some]
            cases = [
                ([self._guarded(number, message, guard) for number, message in enumerate(messages, 1)], asked)
                for (messages, asked), guard in zip(some, guards, strict=True)
            ]
            found += map(self._ids, self._template.render(cases), guards)
        return found

    def _ids(self, text: str | Refused, guard: str) -> list[int]:
        if isinstance(text, Refused):
            raise UserError(
                f"the chat template in {self._template.place} refuses this conversation ({text.reason}): change its "
                f"messages."
            )
        ids: list[int] = []
        end, begins = 0, True
        for mark in self._special.finditer(text):
            ids += self._tokenizer.encode(text[end : mark.start()].replace(guard, ""), continues=not begins)
            ids.append(self._tokenizer.special_tokens[mark[0]])
            end, begins = mark.end(), self._tokenizer.special_begins
        return ids + self._tokenizer.encode(text[end:].replace(guard, ""), continues=not begins)

    def parts(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Part]:
        """See Chat: always raises UserError."""
        raise UserError(
            f"no known chat format reproduces the chat template in {self._template.place}, so what an answer is cannot "
            f"be told for training: add its format to m1jax/tokenizer/chat/formats.py, or use it for generation only."
        )

    def _guard(self, messages: Sequence[Message]) -> str:
        """A character that occurs nowhere."""
        used = set(self._template.source)
        for number, message in enumerate(messages, 1):
            content = role_and_content(number, message)[1]
            used |= set(content) if isinstance(content, str) else set()
        return next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)

    def _guarded(self, number: int, message: Message, guard: str) -> Message:
        """The message with a guard inside every special token that is typed, and where its text begins and ends."""
        role, content = role_and_content(number, message)
        text = content if isinstance(content, str) else self._tokenizer.decode(content)
        text = self._special.sub(lambda found: found[0][0] + guard + found[0][1:], text)
        # White space stays outside, where a template may strip it.
        core = text.strip()
        if core:
            text = text.replace(core, guard + core + guard, 1)
        return {"role": role, "content": text}

    def _end_marks(self) -> list[int]:
        """The special token that follows an answer, at the end and before another turn."""
        answer = "The answer."
        talk: list[Message] = [{"role": "user", "content": "A question."}, {"role": ANSWERS, "content": answer}]
        found = []
        for text in self._template.render([(talk, False), ([*talk, talk[0]], False)]):
            if isinstance(text, str) and answer in text:
                mark = self._special.match(text.rpartition(answer)[2].lstrip())
                found += [self._tokenizer.special_tokens[mark[0]]] if mark else []
        return found


def of(tokenizer: Tokenizer, name: str | None = None, formats: Sequence[ChatFormat] = FORMATS) -> Chat:
    """The chat of a model, by its tokenizer.

    The format called `name`; or the one that renders what the chat template in the tokenizer's folder does, or else
    that template itself; or, without a template, the one whose special tokens the tokenizer has. Raises UserError for
    an unknown name, special tokens that are missing, a template that renders nothing, and where several formats fit.
    """
    if name is not None:
        return FormatChat(named(name, formats), tokenizer)
    fitting = [known for known in formats if not missing(known, tokenizer)]
    template = templates.of_folder(tokenizer.folder) if tokenizer.folder else None
    if template is not None:
        names = {i: text for text, i in tokenizer.special_tokens.items()}
        own = {Own.BOS: names[tokenizer.bos_id], Own.EOS: names[tokenizer.eos_id]}
        fitting = templates.recognise(template, fitting, own)
        if not fitting:
            return TemplateChat(template, tokenizer)
        how = f"recognised by what the template in {template.place} renders"
    elif not fitting:
        raise UserError(
            "the model's tokenizer has neither a chat template nor the special tokens of a known chat format "
            f"({', '.join(_shown(known) for known in formats)}): use `m1 generate`, or another model."
        )
    else:
        how = "by the tokenizer's special tokens"
    if len(fitting) > 1:
        raise UserError(
            f"several chat formats fit this model ({', '.join(known.name for known in fitting)}): name one of them, in "
            f"`m1 chat` with --chat-format, in a config with data.chat_format."
        )
    return FormatChat(fitting[0], tokenizer, f"{fitting[0].name}, {how}")


def fingerprint(tokenizer: Tokenizer, name: str | None = None) -> str:
    """The fingerprint of the format that `of` finds, or what else the chat of a model is."""
    chat = of(tokenizer, name)
    return chat.format.fingerprint if isinstance(chat, FormatChat) else chat.origin


def missing(chat_format: ChatFormat, tokenizer: Tokenizer) -> list[str]:
    """The special tokens of a format that a tokenizer lacks."""
    return [mark.text for mark in chat_format.marks if tokenizer.token_id(mark.text) is None]


def named(name: str, formats: Sequence[ChatFormat] = FORMATS) -> ChatFormat:
    """The format of this name, in any case of its letters; raises UserError where there is none."""
    for known in formats:
        if known.name.lower() == name.lower():
            return known
    raise UserError(f"the chat format {name!r} is unknown: use one of {', '.join(known.name for known in formats)}.")


def _shown(chat_format: ChatFormat) -> str:
    return f"{chat_format.name}: {' '.join(mark.text for mark in chat_format.marks)}"
