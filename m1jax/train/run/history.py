"""What was changed in a run on its way: a line of JSON a change."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The changes so far, oldest first: `time` (UTC), `step` taken before it, `changes` in words."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def append(path: Path, step: int, changes: Sequence[str]) -> None:
    """Adds a change after `step` steps; one that a killed run wrote already, and repeats, is not added again."""
    before = read(path)
    if before and (before[-1]["step"], before[-1]["changes"]) == (step, list(changes)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"time": now, "step": step, "changes": list(changes)}, ensure_ascii=False) + "\n")
