"""Chat formats as data: what is written before and after each role's text. A new format is one more instance here."""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from m1jax import artefact
from m1jax.errors import UserError

ANSWERS = "assistant"
"""The role whose turns the model writes."""
Message = Mapping[str, Any]
"""{"role": one of the format's roles, "content": its text, or a list of text parts}; the content of an answer may be
the ids that a model wrote, which are then kept as they are."""


class Own(enum.Enum):
    """A special token that each tokenizer names itself; the value is its variable in a Jinja template."""

    BOS = "bos_token"
    EOS = "eos_token"


@dataclass(frozen=True)
class Special:
    """A special token by its text."""

    text: str


Piece = str | Special | Own
"""Plain text, or a special token: one of the format's own or one that the tokenizer names."""


@dataclass(frozen=True)
class Turn:
    """The pieces before and after the text of a turn."""

    before: tuple[Piece, ...]
    after: tuple[Piece, ...] = ()


class Slot(NamedTuple):
    """One piece of a conversation in its place."""

    piece: Any
    """A Piece, or a message's content (text or ids)."""
    is_content: bool
    role: str | None
    """The role whose turn it belongs to; None for what opens a conversation."""
    message: int | None
    """Index of the message that it belongs to; None for the default system turn and the generation prompt."""
    answer: int | None
    """Index of the answer that the model writes with it: the answer's text, and all up to the mark that ends it."""


@dataclass(frozen=True)
class ChatFormat:
    """What a conversation looks like to a model; raises UserError where nothing would mark an answer's end.

    An answer ends with the first special token behind its text, in whichever piece it comes: in the `after` of its
    turn, or, where that has none, in the `before` of the next turn or in `closing`.
    """

    name: str
    turns: Mapping[str, Turn]
    """The roles, "assistant" and "user" among them."""
    default_system: str | None = None
    """Text of the system turn that begins a conversation without one; None for none."""
    opening: tuple[Piece, ...] = ()
    """Stands once, before the first turn."""
    closing: tuple[Piece, ...] = ()
    """Stands behind an answer that is the last message."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", MappingProxyType(dict(self.turns)))
        needed = {ANSWERS, "user", *(["system"] if self.default_system is not None else [])}
        if lacking := needed - set(self.turns):
            raise UserError(f"the chat format {self.name} has no turn for {', '.join(sorted(lacking))}: add it.")
        if not self.answers_close:
            without = [role for role, turn in self.turns.items() if not _has_mark(turn.before)]
            if without or not _has_mark(self.closing):
                raise UserError(
                    f"nothing marks the end of an answer in the chat format {self.name}: put a special token behind "
                    f"the assistant's text, or before every role's text and in `closing`."
                )

    @property
    def fingerprint(self) -> str:
        """Its name, and eight hexadecimal digits that change with anything that it writes."""
        return f"{self.name} {artefact.key(str(self))[:8]}"

    @property
    def answers_close(self) -> bool:
        """Whether an answer's own turn holds the mark that ends it."""
        return _has_mark(self.turns[ANSWERS].after)

    @property
    def generation_prompt(self) -> tuple[Piece, ...]:
        """Stands behind the messages when an answer is asked for: what precedes every answer in training too."""
        return self.turns[ANSWERS].before

    @property
    def marks(self) -> list[Special]:
        """The special tokens of its own, each once."""
        turns = [*self.opening, *self.closing]
        for turn in self.turns.values():
            turns += [*turn.before, *turn.after]
        return list(dict.fromkeys(piece for piece in turns if isinstance(piece, Special)))

    @property
    def ends(self) -> list[Special | Own]:
        """The special tokens that end an answer: its end mark, and any that begins a turn of somebody else."""
        sides = [self.turns[ANSWERS].after, self.closing, *(turn.before for turn in self.turns.values())]
        first = (next((piece for piece in side if not isinstance(piece, str)), None) for side in sides)
        return list(dict.fromkeys(piece for piece in first if piece is not None))

    def slots(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Slot]:
        """Every piece of a conversation in order, with the message and the answer that it belongs to.

        Raises UserError for a role that the format does not know and a content that is no text.
        """
        found: list[Slot] = []
        open_answer: int | None = None

        def put(pieces: Sequence[Piece], role: str | None, message: int | None) -> None:
            nonlocal open_answer
            for piece in pieces:
                found.append(Slot(piece, False, role, message, open_answer))
                open_answer = open_answer if isinstance(piece, str) else None

        checked = list(_checked(messages, self))
        put(self.opening, None, None)
        if self.default_system is not None and (not checked or checked[0][0] != "system"):
            put(self.turns["system"].before, "system", None)
            found.append(Slot(self.default_system, True, "system", None, None))
            put(self.turns["system"].after, "system", None)
        for index, (role, content) in enumerate(checked):
            put(self.turns[role].before, role, index)
            open_answer = index if role == ANSWERS else None
            found.append(Slot(content, True, role, index, open_answer))
            put(self.turns[role].after, role, index)
        if add_generation_prompt:
            put(self.generation_prompt, ANSWERS, None)
        elif checked and checked[-1][0] == ANSWERS:
            put(self.closing, ANSWERS, len(checked) - 1)
        return found

    def text(self, messages: Sequence[Message], own: Mapping[Own, str], *, add_generation_prompt: bool = False) -> str:
        """The conversation as one text; `own` gives the text of the special tokens that the tokenizer names."""
        return "".join(written(slot, own) for slot in self.slots(messages, add_generation_prompt=add_generation_prompt))


def written(slot: Slot, own: Mapping[Own, str]) -> str:
    """The text of a slot whose content is text."""
    if isinstance(slot.piece, Own):
        return own[slot.piece]
    return slot.piece.text if isinstance(slot.piece, Special) else slot.piece


def upto_mark(pieces: Sequence[Piece]) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """The pieces up to and with the first special token, and those behind it; all and none where there is none."""
    cut = next((i + 1 for i, piece in enumerate(pieces) if not isinstance(piece, str)), len(pieces))
    return tuple(pieces[:cut]), tuple(pieces[cut:])


def _has_mark(pieces: Sequence[Piece]) -> bool:
    return any(not isinstance(piece, str) for piece in pieces)


def _checked(messages: Sequence[Message], chat_format: ChatFormat) -> Iterator[tuple[str, Any]]:
    for number, message in enumerate(messages, 1):
        role, content = role_and_content(number, message)
        if role not in chat_format.turns:
            raise UserError(
                f"message {number} has the role {role!r}, which the chat format {chat_format.name} does not know: use "
                f"one of {', '.join(chat_format.turns)}."
            )
        yield role, content


def role_and_content(number: int, message: Message) -> tuple[str, Any]:
    """Role and content (text, or ids) of message `number`; raises UserError where it has not both.

    Text in parts, [{"type": "text", "text": …}, …] as OpenAI's protocol has it, is joined with nothing in between.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError(f"message {number} has no role: give each message a role and a content.")
    content = message.get("content")
    if isinstance(content, list) and content and all(isinstance(part, Mapping) for part in content):
        return message["role"], "".join(_text_part(number, part) for part in content)
    if not isinstance(content, str) and not (
        message["role"] == ANSWERS and isinstance(content, list) and all(type(i) is int for i in content)
    ):
        kind = type(content).__name__
        raise UserError(f"message {number} has no text: its content is of type {kind}, give a string.")
    return message["role"], content


def _text_part(number: int, part: Mapping[str, Any]) -> str:
    if part.get("type") != "text":
        raise UserError(
            f"message {number} has a part of type {part.get('type')!r}: only parts of type 'text' can be read, leave "
            f"it out."
        )
    if not isinstance(part.get("text"), str):
        raise UserError(f"message {number} has a part of type 'text' without a text: give it the key text, a string.")
    return part["text"]


BAICHUAN_M1 = ChatFormat(
    "Baichuan-M1",
    # Nothing stands between turns, so that the next turn's token, or eos, is what ends an answer.
    turns={
        role: Turn((Special(token),))
        for role, token in (
            ("system", "<B_SYS>"),
            ("user_system", "<B_USYS>"),
            ("user", "<C_Q>"),
            (ANSWERS, "<C_A>"),
            ("function", "<B_FUNC>"),
            ("code", "<B_CODE>"),
        )
    },
    default_system="You are a helpful assistant.",
    closing=(Own.EOS,),
)
CHATML = ChatFormat(
    "ChatML",
    turns={
        role: Turn((Special("<|im_start|>"), f"{role}\n"), (Special("<|im_end|>"), "\n"))
        for role in ("system", "user", ANSWERS)
    },
)
FORMATS = (BAICHUAN_M1, CHATML)
