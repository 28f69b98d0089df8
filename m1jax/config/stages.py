"""A stage of a run: its tokens, rows, batches, mixture, learning rate and rotary base; and sub-stages.

A stage is one record. What varies inside a stage (weights, difficulty) is written as several records: `blend` and
`easy_first` make them in a config file, from one.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def bounded(low: float | None = None, choices: tuple[str, ...] | None = None, **rest: Any) -> Any:
    """A dataclass field whose value must be at least `low`, or one of `choices`."""
    return field(metadata={"low": low, "choices": choices}, **rest)


@dataclass(frozen=True)
class LearningRateConfig:
    """One segment of the schedule: linear warm-up from 0 to `start`, then `shape` from `start` to `end`."""

    start: float = bounded(0.0)
    end: float = bounded(0.0)
    shape: str = bounded(choices=("constant", "linear", "cosine"), default="constant")
    warmup_steps: int = bounded(0, default=0)
    goes_on: bool = False
    """This stage continues the schedule of the one before: the same values, one curve over both."""


@dataclass(frozen=True)
class RampConfig:
    """How the global batch grows at the beginning of a stage: from `start` rows, by `increment` rows at a time.

    The sizes below the full batch share `tokens` equally, each rounded up to whole steps. Every size compiles the step
    once more.
    """

    start: int = bounded(0, default=0)
    """Rows of the first step; 0: the whole stage has the full batch."""
    increment: int = bounded(0, default=0)
    tokens: int = bounded(0, default=0)


@dataclass(frozen=True)
class StageConfig:
    """One stage of the curriculum."""

    name: str
    mixture: Mapping[str, float]
    """Share of tokens by source, or by domain ("domain:NAME"), which its sources divide by their size."""
    learning_rate: LearningRateConfig
    tokens: int = bounded(1)
    """Tokens of this stage, padding included, rounded up to whole steps."""
    row_length: int = bounded(2)
    global_batch: int = bounded(1)
    """Rows of one step, over all hosts."""
    rope_base: float = bounded(1.0)
    ramp: RampConfig = RampConfig()
    difficulty: tuple[float, ...] = (0.0, 1.0)
    """(low, high): which buckets of sources packed by difficulty are read, by their middle; 0 is easiest, 1 hardest."""
    skip_steps: bool = True
    """Whether the step-skipping clip acts in this stage."""

    @property
    def batches(self) -> tuple[tuple[int, int], ...]:
        """(rows of a step, steps of that size), in order; the last has `global_batch` rows."""
        sizes = range(self.ramp.start, self.global_batch, self.ramp.increment) if self.ramp.start else ()
        left = self.tokens
        parts = []
        for rows in sizes:
            steps = -(-self.ramp.tokens // (len(sizes) * self.row_length * rows))
            parts.append((rows, steps))
            left -= steps * rows * self.row_length
        return (*parts, (self.global_batch, max(-(-left // (self.row_length * self.global_batch)), 0)))

    @property
    def steps(self) -> int:
        """Optimiser steps of this stage."""
        return sum(steps for _, steps in self.batches)

    @property
    def rows(self) -> int:
        """Rows of all steps of this stage."""
        return sum(rows * steps for rows, steps in self.batches)


def blend(stage: Mapping[str, Any], to: Mapping[str, float], parts: int) -> tuple[dict[str, Any], ...]:
    """A stage (as a config file writes it) whose mixture goes to `to` in `parts` equal sub-stages.

    The first has the stage's own weights, the last those of `to`, both scaled to sum to 1; the learning rate is one
    curve over all, and a batch ramp acts in the first. `parts` is 2 or more.
    """
    first, last = (_scaled(weights) for weights in (stage["mixture"], to))
    pairs = {key: (first.get(key, 0.0), last.get(key, 0.0)) for key in first | last}
    shares = [i / (parts - 1) for i in range(parts)]
    mixtures = [{key: a * (1 - share) + b * share for key, (a, b) in pairs.items()} for share in shares]
    return _substages(stage, [{"mixture": mixture} for mixture in mixtures])


def easy_first(stage: Mapping[str, Any], parts: int) -> tuple[dict[str, Any], ...]:
    """A stage (as a config file writes it) in `parts` equal sub-stages, each reading the next harder part.

    The stage's difficulty range is divided evenly: give as many parts as it holds buckets, or a divisor.
    """
    low, high = stage.get("difficulty", (0.0, 1.0))
    cuts = [*(low + (high - low) * i / parts for i in range(parts)), high]
    return _substages(stage, [{"difficulty": cut} for cut in itertools.pairwise(cuts)])


def _scaled(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


def _substages(stage: Mapping[str, Any], changes: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    made = []
    for i, change in enumerate(changes):
        part = {**stage, **change, "name": f"{stage['name']}.{i + 1}"}
        # Whole tokens, without loss over the parts.
        part["tokens"] = stage["tokens"] * (i + 1) // len(changes) - stage["tokens"] * i // len(changes)
        if i:
            part["learning_rate"] = {**stage["learning_rate"], "goes_on": True}
            part.pop("ramp", None)
        made.append(part)
    return tuple(made)
