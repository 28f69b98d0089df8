"""What was changed in a run on its way: a line of JSON a change."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m1jax.train.run import records


def read(path: Path) -> list[dict[str, Any]]:
    """The changes so far, oldest first: `time` (UTC), `step` taken before it, `changes` in words."""
    return records.read(path)


def append(path: Path, step: int, changes: Sequence[str]) -> None:
    """Adds a change after `step` steps; one that a killed run wrote already, and repeats, is not added again."""
    before = read(path)
    if before and (before[-1]["step"], before[-1]["changes"]) == (step, list(changes)):
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    records.append(path, {"time": now, "step": step, "changes": list(changes)})
