"""The share of a run's wall time, restarts included, that was spent on steps that count."""

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m1jax.train.run import records


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Seconds of a run."""

    productive: float
    """Steps in the record; a step that was repeated after a kill counts once. Waiting for data does not
    count, nor what the first step of a start or a stage took beyond its stage's median (it compiled)."""
    wall: float
    """From the first start to now, pauses between an end and the next start included."""
    starts: int

    @property
    def share(self) -> float:
        """Productive over wall time, 0 to 1."""
        return min(self.productive / self.wall, 1.0) if self.wall > 0 else 0.0

    @property
    def sentence(self) -> str:
        """What a person reads at the end of a run."""
        times = "1 start" if self.starts == 1 else f"{self.starts} starts"
        return f"Goodput {self.share:.0%}: {self.productive:,.0f} s of steps in {self.wall:,.0f} s, {times}."


def note_start(path: Path, step: int) -> None:
    """Adds a start of the run, after `step` steps, to its record."""
    records.append(path, {"time": time.time(), "step": step})


def measure(starts: Path, lines: Sequence[Mapping[str, Any]], now: float) -> Goodput:
    """Goodput at `now` (Unix seconds) of a run from the record of its starts and the lines of its metrics.jsonl."""
    begun = records.read(starts)
    firsts = {start["step"] + 1 for start in begun}
    productive, usual, stage = 0.0, _medians(lines), None
    for line in lines:
        seconds = line["seconds"] - line["data_wait"]
        if line["step"] in firsts or line["stage"] != stage:
            seconds = min(seconds, usual[line["stage"]])
        stage = line["stage"]
        productive += max(seconds, 0.0)
    return Goodput(productive, now - begun[0]["time"], len(begun))


def _medians(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {}
    for line in lines:
        seconds.setdefault(line["stage"], []).append(line["seconds"] - line["data_wait"])
    return {stage: statistics.median(values) for stage, values in seconds.items()}
