"""Comparing what a checkpoint has read with what a curriculum would have read."""

import math
from collections.abc import Mapping
from typing import Any

from m1jax.errors import UserError

_STAGE_KEYS = {"row_length": "row_length", "global_batch": "global_batch", "rows": "the sources' rows in a period"}


def compare(saved: Mapping[str, Any], current: Mapping[str, Any], step: int | None) -> None:
    """Raises UserError with every difference between two `Curriculum.record()`s after `step` steps (None: all).

    A source counts as read from the first step of the first stage that mixes it in.
    """
    taken = math.inf if step is None else step
    past: list[str] = []
    ahead: list[str] = []
    for key in ("seed", "tokenizer"):
        if saved.get(key) != current[key]:
            (past if taken else ahead).append(f"{key} was {saved.get(key)}, is {current[key]}")
    _compare_stages(saved.get("stages", []), current["stages"], taken, past, ahead)
    _compare_sources(saved, current["sources"], taken, past, ahead)
    if past:
        raise UserError(
            f"the checkpoint has read other data than this config and these rows give: {'; '.join(past + ahead)}: put "
            f"back what it was trained with, or start a new run in another folder."
        )
    if ahead:
        raise UserError(
            f"what lies ahead of the checkpoint at step {step} was changed: {'; '.join(ahead)}: restore it, or start a "
            f"new run in another folder."
        )


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
        if old["steps"] != new["steps"]:
            # A stage may yet end elsewhere, as long as the run has not gone beyond either end.
            where = past if first + min(old["steps"], new["steps"]) < taken else ahead
            where.append(f"stage {old['name']!r}: steps was {old['steps']}, is {new['steps']}")
        first += old["steps"]
    for old in saved[len(current) :]:
        (past if first < taken else ahead).append(f"stage {old['name']!r} is gone")
        first += old["steps"]
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
        first += stage["steps"]
