"""Accuracy on multiple-choice items by comparing how likely the model finds each choice after the prompt."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from m1jax.errors import UserError
from m1jax.evaluate.scoring import Scorer
from m1jax.evaluate.tasks import METRICS, Item, Task


class Encoder(Protocol):
    """The part of a tokenizer that items need."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without any special token added."""


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
    """What a task came to."""

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
    """Tokens that the model read."""
    seconds: float


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson, JASA 22, 1927): unlike ±1.96 s it holds for few items and shares near 0."""
    assert 0 <= correct <= total and total > 0
    z = 1.959963984540054
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At the ends the formula gives 0 and 1, and its arithmetic 0.9999999999999999.
    low = (centre - half) / scale if correct else 0.0
    return low, (centre + half) / scale if correct < total else 1.0


def requests(items: Sequence[Item], tokenizer: Encoder, max_tokens: int) -> tuple[list[Request], int]:
    """One request a choice, item after item, and the number of items whose prompt was shortened.

    Prompt and choice are encoded together, so that a choice has the tokens that it has in the whole text; they are cut
    where the prompt ends. Where a token of any choice spans that place, all choices of the item are cut before it, and
    their scores still belong to the same piece of text. A prompt too long for `max_tokens` loses its beginning, the
    same for all choices of the item.
    """
    prompts = tokenizer.encode_batch([item.prompt for item in items])
    wholes = iter(tokenizer.encode_batch([f"{item.prompt} {choice}" for item in items for choice in item.choices]))
    made: list[Request] = []
    shortened = 0
    for index, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
        texts = [next(wholes) for _ in item.choices]
        cut = min(_common(prompt, text) for text in texts)
        if cut:
            prompt, ends = prompt[:cut], [text[cut:] for text in texts]
        else:  # nothing is left to condition on
            ends = tokenizer.encode_batch([f" {choice}" for choice in item.choices])
        room = max_tokens - max(len(end) for end in ends)
        if room < 1:
            raise UserError(f"a choice of item {item.id} fills a row of {max_tokens} tokens: take longer rows.")
        kept = prompt[-room:]
        shortened += len(kept) < len(prompt)
        made.extend(Request(index, choice, (*kept, *end), len(kept)) for choice, end in enumerate(ends))
    return made, shortened


def _common(prompt: Sequence[int], text: Sequence[int]) -> int:
    """Tokens with which both begin."""
    return next((n for n, (one, other) in enumerate(zip(prompt, text, strict=False)) if one != other), len(prompt))


def count_hits(items: Sequence[Item], scores: Sequence[Sequence[float]]) -> dict[str, int]:
    """Items answered rightly by each metric of METRICS; `scores` holds each choice's log-likelihood (nats) by item."""
    return {
        name: sum(pick(item, score) == item.answer for item, score in zip(items, scores, strict=True))
        for name, pick in METRICS.items()
    }


def summarise(
    task: Task, items: Sequence[Item], hits: Mapping[str, int], *, shortened: int, tokens: int, seconds: float
) -> Result:
    """The result of a task from the hits by metric; at least one item."""
    total, correct = len(items), hits[task.metric]
    constant = None
    if len({item.choices for item in items}) == 1:
        constant = max(Counter(item.answer for item in items).values()) / total
    return Result(
        task=task.name,
        metric=task.metric,
        correct=correct,
        total=total,
        accuracy=correct / total,
        interval=wilson(correct, total),
        chance=sum(1 / len(item.choices) for item in items) / total,
        constant=constant,
        accuracies={name: count / total for name, count in hits.items()},
        shortened=shortened,
        tokens=tokens,
        seconds=seconds,
    )


def evaluate(task: Task, items: Sequence[Item], tokenizer: Encoder, scorer: Scorer) -> Result:
    """Accuracy of `scorer` on `items` (at least one) by the task's metric, and by the others.

    Raises UserError where a choice alone is as long as the scorer's longest row.
    """
    begin = time.perf_counter()
    asked, shortened = requests(items, tokenizer, scorer.max_tokens)
    scores: list[list[float]] = [[] for _ in items]
    for request, score in zip(asked, scorer([(request.tokens, request.first) for request in asked]), strict=True):
        scores[request.item].append(score)
    return summarise(
        task,
        items,
        count_hits(items, scores),
        shortened=shortened,
        tokens=sum(len(request.tokens) for request in asked),
        seconds=time.perf_counter() - begin,
    )
