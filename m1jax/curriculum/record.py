"""Compares what a checkpoint has read with what a curriculum would have read."""

import math
from collections.abc import Mapping
from typing import Any

from m1jax.errors import UserError

_STAGE_KEYS = {"row_length": "row_length", "rows": "the sources' rows in a period"}


def compare(saved: Mapping[str, Any], current: Mapping[str, Any], step: int | None, amend: bool = False) -> list[str]:
    """The differences between two `Curriculum.record()`s after step `step` (None: every difference is in the past).

    A source counts as read from the first step of the first stage that mixes it in. Raises UserError, naming every
    difference, for one in the past, and for one after `step` unless `amend` accepts it.
    """
    taken = math.inf if step is None else step
    past: list[str] = []
    ahead: list[str] = []
    for key, otherwise in (("seed", None), ("tokenizer", None), ("chat_format", "")):
        was, now = saved.get(key, otherwise), current[key]
        if was != now:
            words = ("none" if value == "" else value for value in (was, now))
            (past if taken else ahead).append("{} was {}, is {}".format(key, *words))
    _compare_stages(saved.get("stages", []), current["stages"], taken, past, ahead)
    _compare_sources(saved, current["sources"], taken, past, ahead)
    if past:
        raise UserError(
            f"the checkpoint was trained on other data than this config and these rows give: "
            f"{'; '.join(past + ahead)}: restore what it was trained with, or start a new run in another folder."
        )
    if ahead and not amend:
        raise UserError(
            f"what the run reads after the checkpoint of step {step} was changed: {'; '.join(ahead)}: restore it, "
            f"start a new run in another folder, or accept the change with `m1 train --amend`."
        )
    return ahead


def _steps(stage: Mapping[str, Any]) -> int:
    return sum(steps for _, steps in stage["batches"])


def _first_other_step(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """The first step at which two stages differ in batch size, or only one has a step; infinite if there is none."""
    step = 0
    parts = [[list(part) for part in stage["batches"] if part[1]] for stage in (old, new)]
    while all(parts):
        (rows, steps), (other_rows, other_steps) = (part[0] for part in parts)
        if rows != other_rows:
            return step
        common = min(steps, other_steps)
        step += common
        for part in parts:
            part[0][1] -= common
            if not part[0][1]:
                part.pop(0)
    return step if any(parts) else math.inf


def _compare_stages(
    saved: list[dict[str, Any]], current: list[dict[str, Any]], taken: float, past: list[str], ahead: list[str]
) -> None:
    first = 0
    for old, new in zip(saved, current, strict=False):
        where = past if first < taken else ahead
        where += [
            f"stage {old['name']!r}: {text} was {old[key]}, is {new[key]}"
            for key, text in _STAGE_KEYS.items()
            if old[key] != new[key]
        ]
        # A stage may still change its later steps if the run has not reached them.
        where = past if first + _first_other_step(old, new) < taken else ahead
        if _steps(old) != _steps(new):
            where.append(f"stage {old['name']!r}: steps was {_steps(old)}, is {_steps(new)}")
        if old["batches"][-1][0] != new["batches"][-1][0]:
            where.append(f"stage {old['name']!r}: global_batch was {old['batches'][-1][0]}, is {new['batches'][-1][0]}")
        if old["batches"][:-1] != new["batches"][:-1]:
            texts = [", ".join(f"{n} steps of {rows}" for rows, n in s["batches"][:-1]) or "none" for s in (old, new)]
            where.append(f"stage {old['name']!r}: the batch ramp was {texts[0]}, is {texts[1]}")
        first += _steps(old)
    for old in saved[len(current) :]:
        (past if first < taken else ahead).append(f"stage {old['name']!r} is gone")
        first += _steps(old)
    ahead += [f"stage {new['name']!r} was added" for new in current[len(saved) :]]


def _compare_sources(
    saved: Mapping[str, Any], current: Mapping[str, Mapping[str, str]], taken: float, past: list[str], ahead: list[str]
) -> None:
    first = 0
    seen: set[tuple[str, str]] = set()
    for stage in saved.get("stages", []):
        where = past if first < taken else ahead
        for name in stage["rows"]:
            key = name, str(stage["row_length"])
            if key in seen:
                continue
            seen.add(key)
            if name not in current:
                where.append(f"source {name!r} is gone")
            elif saved["sources"][name].get(key[1]) != current[name].get(key[1]):
                where.append(f"the rows of {key[1]} tokens of source {name!r} have changed")
        first += _steps(stage)
