"""The learning rate over a staged run: one segment a stage, joined end to end."""

from collections.abc import Iterable

import optax

from m1jax.config import LearningRateConfig, RunConfig, StageConfig


def segment(rate: LearningRateConfig, steps: int) -> optax.Schedule:
    """Learning rate of one stage by its own step count, 0 … steps - 1.

    A linear warm-up from 0 reaches `start` at `warmup_steps`; the rest goes from `start` to `end` as a constant, a
    line or half a cosine (report, section on pre-training: 2,000 steps of warm-up, constant, cosine 4e-4 to 2e-5).
    """
    rest = max(steps - rate.warmup_steps, 1)
    if rate.shape == "cosine" and rate.start > 0:
        main = optax.cosine_decay_schedule(rate.start, rest, alpha=rate.end / rate.start)
    else:
        main = optax.linear_schedule(rate.start, rate.end, rest)
    if not rate.warmup_steps:
        return main
    # The first step must move: the ramp is (step + 1) / (warmup_steps + 1), not step / warmup_steps.
    first = rate.start / (rate.warmup_steps + 1)
    return optax.join_schedules(
        [optax.linear_schedule(first, rate.start, rate.warmup_steps), main], [rate.warmup_steps]
    )


def learning_rate(config: RunConfig) -> optax.Schedule:
    """Learning rate of the whole run by global step."""
    segments: list[optax.Schedule] = []
    ends: list[int] = []
    for rate, steps in _runs(config.stages):
        segments.append(segment(rate, steps))
        ends.append((ends[-1] if ends else 0) + steps)
    return optax.join_schedules(segments, ends[:-1])


def _runs(stages: Iterable[StageConfig]) -> list[tuple[LearningRateConfig, int]]:
    """The segments and their steps: a stage whose segment goes on lengthens the one before."""
    runs: list[tuple[LearningRateConfig, int]] = []
    for stage in stages:
        if stage.learning_rate.goes_on:
            rate, steps = runs.pop()
            runs.append((rate, steps + stage.steps))
        else:
            runs.append((stage.learning_rate, stage.steps))
    return runs
