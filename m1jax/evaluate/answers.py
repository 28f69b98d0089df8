"""What a model made of each question: kept one a line, summed up by kind, compared with another model's.

A result is a folder of two files, so that a later comparison needs no second run of a model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m1jax import artefact
from m1jax.errors import UserError
from m1jax.evaluate import choice, forms, statistics
from m1jax.evaluate.forms import Asked
from m1jax.evaluate.items import Item, SetAside

KIND = "answers"
"""Of the stamp of a folder with a result."""
ITEMS, ABOUT = "items.jsonl", "about.json"
ALL = "all"
"""Name of the line with all kinds together."""


@dataclass(frozen=True)
class Answers:
    """Items, the log-likelihood of each of their choices in nats, and how they came to be."""

    items: tuple[Item, ...]
    scores: tuple[tuple[float, ...], ...]
    about: Mapping[str, Any]
    """Set, model, form, lines set aside, tokens and seconds."""

    @property
    def form(self) -> str:
        """In which form the questions were put."""
        return self.about["form"]

    @property
    def ids(self) -> set[str]:
        """Those of the items."""
        return {item.id for item in self.items}


@dataclass(frozen=True)
class Share:
    """How many answers of a kind were right."""

    correct: int
    total: int
    accuracy: float
    interval: tuple[float, float]
    """Wilson's, of 95%; of the effective size where questions share entities."""
    metric: str
    other: float
    """The accuracy by the other metric."""


@dataclass(frozen=True)
class Line:
    """A kind of question."""

    kind: str
    chance: float
    longest: float
    """Accuracy expected of always giving the longest choice."""
    constant: float | None
    """Accuracy of always giving the most frequent answer, where all questions share their choices."""
    own: Share
    against: Share | None = None
    """The other model on the same questions."""
    difference: statistics.Difference | None = None


def fitting(
    items: Sequence[Item], asked: Sequence[Asked], positions: int
) -> tuple[list[Item], list[Asked], list[SetAside]]:
    """The items that fit into a model's context, as the model reads them, and the others."""
    pairs = list(zip(items, asked, strict=True))
    fit = [(item, one) for item, one in pairs if one.longest <= positions]
    reason = f"longer than the context of {positions} tokens"
    too_long = [SetAside(item.id, reason) for item, one in pairs if one.longest > positions]
    return [item for item, _ in fit], [one for _, one in fit], too_long


def metric(form: str, items: Sequence[Item]) -> str:
    """The metric that counts for items of one kind.

    An assistant that has read the choices decides by few words, and length matters little. What continues a question
    alone favours short choices, so those are compared by byte, unless the questions share them (yes, no).
    """
    return "likelihood" if form == forms.CHAT or choice.labels(items) else "likelihood per byte"


def by_kind(own: Answers, against: Answers | None = None) -> list[Line]:
    """A line for each kind in the order of the items, and one for all where there are several.

    Raises UserError where a question differs between the two, or they share none.
    """
    mine = outcomes(own)
    theirs = {} if against is None else outcomes(against)
    if against is not None:
        _check_same(own, against)
    groups = _groups(own.items)
    if len(groups) > 1:
        groups[ALL] = list(own.items)
    return [_line(kind, items, mine, theirs) for kind, items in groups.items()]


@dataclass(frozen=True)
class Outcome:
    """Whether an item was answered rightly, by the metric that counts and by the other one."""

    metric: str
    right: bool
    other: bool


def _groups(items: Sequence[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.kind, []).append(item)
    return found


def outcomes(answers: Answers) -> dict[str, Outcome]:
    """By the item's id."""
    metrics = {kind: metric(answers.form, items) for kind, items in _groups(answers.items).items()}
    found = {}
    for item, scores in zip(answers.items, answers.scores, strict=True):
        hits = {name: pick(item, scores) == item.answer for name, pick in choice.METRICS.items()}
        right = hits.pop(metrics[item.kind])
        found[item.id] = Outcome(metrics[item.kind], right, *hits.values())
    return found


def _check_same(own: Answers, against: Answers) -> None:
    by_id = {item.id: item for item in against.items}
    shared = [item for item in own.items if item.id in by_id]
    for item in shared:
        if (item.text, item.answer) != (by_id[item.id].text, by_id[item.id].answer):
            raise UserError(
                f"question {item.id} is not the same in both results: ask both models the same questions, or compare "
                f"with another result."
            )
    if not shared:
        raise UserError("the two results have no question in common: compare results of the same questions.")


def _line(kind: str, items: Sequence[Item], mine: Mapping[str, Outcome], theirs: Mapping[str, Outcome]) -> Line:
    shared = [item for item in items if item.id in theirs]
    difference = None
    if shared:
        pairs = [(mine[item.id].right, theirs[item.id].right) for item in shared]
        first, second = [own for own, _ in pairs], [other for _, other in pairs]
        difference = statistics.paired(first, second, _entities(shared))
    return Line(
        kind,
        choice.chance(items),
        sum(_longest(item) for item in items) / len(items),
        choice.constant(items),
        _share(items, mine),
        _share(shared, theirs) if shared else None,
        difference,
    )


def _longest(item: Item) -> float:
    """How often picking one of the longest choices blindly is right."""
    longest = max(map(len, item.choices))
    best = [place for place, text in enumerate(item.choices) if len(text) == longest]
    return (item.answer in best) / len(best)


def _entities(items: Sequence[Item]) -> list[tuple[str, str]]:
    """What makes items go together: one entity; without one, an item is alone."""
    return [("entity", item.entity) if item.entity else ("item", item.id) for item in items]


def _share(items: Sequence[Item], outcomes: Mapping[str, Outcome]) -> Share:
    some = [outcomes[item.id] for item in items]
    correct, total = sum(outcome.right for outcome in some), len(some)
    scale = statistics.effective_size([float(outcome.right) for outcome in some], _entities(items)) / total
    return Share(
        correct,
        total,
        correct / total,
        statistics.wilson(correct * scale, total * scale),
        " or ".join(sorted({outcome.metric for outcome in some})),
        sum(outcome.other for outcome in some) / total,
    )


def write(answers: Answers, folder: Path) -> None:
    """Writes a result into a folder that exists."""
    with open(folder / ITEMS, "w", encoding="utf-8", newline="\n") as file:
        for item, scores in zip(answers.items, answers.scores, strict=True):
            line = {**asdict(item), "scores": scores}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / ABOUT).write_text(json.dumps(answers.about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> Answers:
    """A result from its folder, or from its items.jsonl; raises UserError where it is none, or damaged."""
    folder = path.parent if path.name == ITEMS else path
    artefact.require(folder, KIND, "eval --model")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        records = [json.loads(line) for line in (folder / ITEMS).read_text(encoding="utf-8").splitlines()]
        scores = tuple(tuple(map(float, record.pop("scores"))) for record in records)
        items = tuple(Item(**{**record, "choices": tuple(record["choices"])}) for record in records)
        answers = Answers(items, scores, about)
        assert (
            answers.form and items and all(len(item.choices) == len(s) for item, s in zip(items, scores, strict=True))
        )
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"the result in {folder} is damaged: delete it and run `m1 eval` again.") from error
    return answers
