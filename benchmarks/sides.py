"""Sides of a benchmark that take turns: processes that answer each line with a line of JSON."""

import json
from typing import Any


def ask(process: Any, word: str = "") -> Any:
    """A line of JSON from a side, after a word to it; ends the benchmark where the side has ended."""
    if word:
        process.stdin.write(word + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a side ended: see its error above")
    return json.loads(line)
