"""Changes made to a run after it was started: one line of JSON each."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m1jax.train.run import records


def read(path: Path) -> list[dict[str, Any]]:
    """The changes so far, oldest first: `time` (UTC), `step` taken before it, `changes` in words."""
    return records.read(path)


def append(path: Path, step: int, changes: Sequence[str]) -> None:
    """Adds a change after `step` steps, unless the last entry is the same (a killed run had already written it)."""
    before = read(path)
    if before and (before[-1]["step"], before[-1]["changes"]) == (step, list(changes)):
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    records.append(path, {"time": now, "step": step, "changes": list(changes)})
