"""The needle test: a fact somewhere in a long text, a question about it at the end, in the form of a chat.

The model is asked twice on one reading of the text: how likely it finds the right answer among others that differ in
the value only, and what it answers greedily. After G. Kamradt, "Needle In A Haystack" (2023); values are numbers, as in
Hsieh et al., arXiv 2404.06654.
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from m1jax.errors import UserError
from m1jax.generate.engine import LanguageModel
from m1jax.generate.sampling import Sampling
from m1jax.generate.session import Generation
from m1jax.generate.text import answers
from m1jax.text.passages import passages
from m1jax.tokenizer import Tokenizer
from m1jax.tokenizer.chat import Chat, Message

ANSWER_TOKENS = 32
"""Room for the answer; a length holds the prompt and this."""
_DIGITS = 5
_PUT_BACK = 8


@dataclasses.dataclass(frozen=True)
class Wording:
    """The sentence with the fact, which is also the answer, the question, and the things that have a code."""

    fact: str
    question: str
    things: tuple[str, ...]


WORDINGS = {
    "en": Wording(
        "The code of the {thing} is {value}.",
        "Answer from the text above: what is the code of the {thing}?",
        ("green cabinet", "old bicycle", "harbour gate", "third locker", "blue suitcase", "garden shed"),
    ),
    "zh": Wording(
        "{thing}的密码是{value}。",
        "请根据上文回答：{thing}的密码是什么？",
        ("绿色柜子", "旧自行车", "港口大门", "三号储物柜", "蓝色手提箱", "花园小屋"),
    ),
}
"""By language."""


@dataclasses.dataclass(frozen=True)
class Needle:
    """A fact: its question, and the answers to choose from, of which the one at `right` is the fact itself."""

    question: str
    answers: tuple[str, ...]
    right: int
    value: str

    @property
    def fact(self) -> str:
        """The sentence that is put into the text."""
        return self.answers[self.right]


def needle(wording: Wording, candidates: int, seed: int, trial: int) -> Needle:
    """The needle of a trial: a thing and `candidates` different numbers of five digits, by seed and trial."""
    draw = random.Random(f"needle {seed} {trial}")
    thing = wording.things[trial % len(wording.things)]
    values = [str(value) for value in draw.sample(range(10 ** (_DIGITS - 1), 10**_DIGITS), candidates)]
    right = draw.randrange(candidates)
    made = tuple(wording.fact.format(thing=thing, value=value) for value in values)
    return Needle(wording.question.format(thing=thing), made, right, values[right])


class Haystack:
    """Text in passages, and how many tokens each has; read as a ring, from another place in every trial."""

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer, most_tokens: int):
        """Takes text until it has `most_tokens`; raises UserError where there is less."""
        self.passages: list[str] = []
        counts: list[int] = []
        for text in texts:
            some = passages(text.rstrip() + "\n\n")
            self.passages += some
            counts += map(len, tokenizer.encode_batch(some))
            if sum(counts) >= most_tokens:
                break
        self._counts = np.array(counts, np.int64)
        self.tokens = int(self._counts.sum())
        if self.tokens < most_tokens:
            raise UserError(
                f"the text has {self.tokens} tokens, and the longest context needs {most_tokens}: give more text, or "
                f"shorter lengths."
            )

    def filled(self, trial: int, trials: int, room: int) -> tuple[list[str], np.ndarray]:
        """Passages of at most `room` tokens, and how many tokens stand before each, with their number at the end."""
        first = int(np.searchsorted(np.cumsum(self._counts), self.tokens * trial // trials, side="right"))
        ring = np.roll(np.arange(len(self.passages)), -first)
        before = np.concatenate([[0], np.cumsum(self._counts[ring])])
        count = max(0, int(np.searchsorted(before, room, side="right")) - 1)
        return [self.passages[i] for i in ring[:count]], before[: count + 1]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a model made of one prompt."""

    length: int
    depth: float
    """Where the fact stands: 0 before all text, 1 behind it."""
    trial: int
    tokens: int
    """Of the prompt."""
    margin: float
    """Log p of the right answer minus that of the likeliest other, nats: above 0 where the right one is chosen."""
    text: str
    """The greedy answer."""
    value: str
    """What it should hold."""

    @property
    def chosen(self) -> bool:
        """Whether the right answer is the likeliest."""
        return self.margin > 0

    @property
    def said(self) -> bool:
        """Whether the greedy answer holds the value."""
        return re.search(rf"(?<!\d){self.value}(?!\d)", self.text) is not None


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is asked: a prompt for each length (tokens, the answer included), depth and trial."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    trials: int = 1
    candidates: int = 8
    wording: Wording = WORDINGS["en"]
    seed: int = 0

    def check(self, max_positions: int) -> None:
        """Raises UserError for numbers out of range and lengths beyond the model's positions."""
        if not self.lengths or not self.depths or self.trials < 1 or self.candidates < 2:
            raise UserError("the needle test needs a length, a depth, 1 or more trials and 2 or more candidates.")
        if wrong := [depth for depth in self.depths if not 0 <= depth <= 1]:
            raise UserError(f"a depth of {wrong[0]:g} is not between 0 (before the text) and 1 (behind it).")
        if max(self.lengths) > max_positions:
            raise UserError(
                f"a length of {max(self.lengths)} tokens is more than the model's {max_positions} positions: give "
                f"shorter lengths."
            )


def run(
    grid: Grid, model: LanguageModel, tokenizer: Tokenizer, chat: Chat, texts: Iterable[str], system: str | None = None
) -> Iterator[Found]:
    """Asks the model, length by length; raises UserError as `Grid.check` does and where the text is too short."""
    grid.check(model.config.max_positions)
    haystack = Haystack(texts, tokenizer, max(grid.lengths))
    ends = list(dict.fromkeys([*chat.ends, *model.eos_ids]))
    for length, depth, trial in itertools.product(grid.lengths, grid.depths, range(grid.trials)):
        fact = needle(grid.wording, grid.candidates, grid.seed, trial)
        talk = _talk(haystack, fact, chat, grid, length, depth, trial, system)
        prompt = chat.encode(talk, add_generation_prompt=True)
        session = model.session(capacity=length)
        session.extend(prompt)
        scores = [session.log_likelihood(_answer(chat, talk, prompt, answer)) for answer in fact.answers]
        generation = Generation(session, ANSWER_TOKENS, Sampling(), 0, ends, flow=False)
        (said,) = list(answers(generation, tokenizer))[-1]
        right = scores.pop(fact.right)
        yield Found(length, depth, trial, len(prompt), right - max(scores), said.text.strip(), fact.value)


def _talk(
    haystack: Haystack, fact: Needle, chat: Chat, grid: Grid, length: int, depth: float, trial: int, system: str | None
) -> list[Message]:
    """The messages of a prompt that leaves ANSWER_TOKENS of `length`, as full of text as whole passages allow."""
    opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    def talk(passages: Sequence[str], place: int) -> list[Message]:
        before, after = "".join(passages[:place]), "".join(passages[place:])
        # The fact stands on a line of its own where lines end, else among the sentences of its line.
        gap = " " if before and not before.endswith("\n") else "\n\n"
        text = f"{before}{fact.fact}{gap}{after}".rstrip()
        return [*opening, {"role": "user", "content": f"{text}\n\n{fact.question}"}]

    def size(messages: list[Message]) -> int:
        return len(chat.encode(messages, add_generation_prompt=True))

    room = length - ANSWER_TOKENS
    passages, before = haystack.filled(trial, grid.trials, room - size(talk([], 0)))
    for count in range(len(passages), max(0, len(passages) - _PUT_BACK), -1):
        place = int(np.abs(before[: count + 1] - depth * before[count]).argmin())
        messages = talk(passages[:count], place)
        if size(messages) <= room:
            return messages
    raise UserError(f"a length of {length} tokens has no room for text around the fact: give a longer one.")


def _answer(chat: Chat, talk: Sequence[Message], prompt: Sequence[int], answer: str) -> list[int]:
    """The ids of an answer behind its prompt, with what ends it."""
    ids = chat.encode([*talk, {"role": "assistant", "content": answer}])
    if ids[: len(prompt)] != prompt:
        raise UserError("the model's chat template writes an answered question in another way than an open one.")
    return ids[len(prompt) :]
