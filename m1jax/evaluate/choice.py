"""Accuracy on multiple-choice items by comparing how likely the model finds each choice after the prompt."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from m1jax.errors import UserError
from m1jax.evaluate.forms import Asked
from m1jax.evaluate.items import Item
from m1jax.evaluate.scoring import Scorer
from m1jax.evaluate.statistics import wilson

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


@dataclass(frozen=True)
class Request:
    """One choice of one item as the model reads it."""

    item: int
    choice: int
    tokens: tuple[int, ...]
    first: int
    """Index of the choice's first token."""


@dataclass(frozen=True)
class Result:
    """What a set of items came to."""

    task: str
    metric: str
    correct: int
    total: int
    accuracy: float
    interval: tuple[float, float]
    """95% Wilson interval of the accuracy."""
    chance: float
    """Accuracy expected of picking choices blindly."""
    constant: float | None
    """Accuracy of always giving the most frequent answer, where all items share their choices."""
    accuracies: dict[str, float]
    """The accuracy by every metric."""
    shortened: int
    """Items whose prompt lost its beginning to fit into a row."""
    tokens: int
    """Tokens of all prompts with each of their choices."""
    seconds: float


def requests(asked: Sequence[Asked], items: Sequence[Item], max_tokens: int) -> tuple[list[Request], int]:
    """One request a choice, item after item, and the number of items whose prompt was shortened.

    A prompt too long for `max_tokens` loses its beginning, the same for all choices of the item. Raises UserError where
    a choice alone is as long.
    """
    made: list[Request] = []
    shortened = 0
    for index, (item, one) in enumerate(zip(items, asked, strict=True)):
        room = max_tokens - max(map(len, one.ends))
        if room < 1:
            raise UserError(f"a choice of item {item.id} fills a row of {max_tokens} tokens: take longer rows.")
        kept = one.prompt[-room:]
        shortened += len(kept) < len(one.prompt)
        made.extend(Request(index, choice, (*kept, *end), len(kept)) for choice, end in enumerate(one.ends))
    return made, shortened


def count_hits(items: Sequence[Item], scores: Sequence[Sequence[float]]) -> dict[str, int]:
    """Items answered rightly by each metric of METRICS; `scores` holds each choice's log-likelihood (nats) by item."""
    return {
        name: sum(pick(item, score) == item.answer for item, score in zip(items, scores, strict=True))
        for name, pick in METRICS.items()
    }


def chance(items: Sequence[Item]) -> float:
    """Accuracy expected of picking choices blindly; at least one item."""
    return sum(1 / len(item.choices) for item in items) / len(items)


def labels(items: Sequence[Item]) -> bool:
    """Whether the choices of every item are those of another one too: yes and no, in one language or several."""
    return min(Counter(frozenset(item.choices) for item in items).values()) > 1


def constant(items: Sequence[Item]) -> float | None:
    """Accuracy of always giving the most frequent answer, None where the items do not share their choices."""
    if len(items) < 2 or len({frozenset(item.choices) for item in items}) > 1:
        return None
    return max(Counter(item.choices[item.answer] for item in items).values()) / len(items)


def summarise(
    name: str,
    metric: str,
    items: Sequence[Item],
    hits: Mapping[str, int],
    *,
    shortened: int,
    tokens: int,
    seconds: float,
) -> Result:
    """The result of a set of items (at least one) from the hits by metric, of which `metric` is the one that counts."""
    total, correct = len(items), hits[metric]
    return Result(
        task=name,
        metric=metric,
        correct=correct,
        total=total,
        accuracy=correct / total,
        interval=wilson(correct, total),
        chance=chance(items),
        constant=constant(items),
        accuracies={name: count / total for name, count in hits.items()},
        shortened=shortened,
        tokens=tokens,
        seconds=seconds,
    )


def evaluate(name: str, metric: str, items: Sequence[Item], asked: Sequence[Asked], scorer: Scorer) -> Result:
    """Accuracy of `scorer` on `items` (at least one) by `metric`, and by the others; `asked` are they as it reads them.

    Raises UserError where a choice alone is as long as the scorer's longest row.
    """
    begin = time.perf_counter()
    made, shortened = requests(asked, items, scorer.max_tokens)
    scores: list[list[float]] = [[] for _ in items]
    for request, score in zip(made, scorer([(request.tokens, request.first) for request in made]), strict=True):
        scores[request.item].append(score)
    return summarise(
        name,
        metric,
        items,
        count_hits(items, scores),
        shortened=shortened,
        tokens=sum(len(request.tokens) for request in made),
        seconds=time.perf_counter() - begin,
    )
